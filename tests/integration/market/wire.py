"""Events of the contract as documents, their bytes, and what a batch decoded to, message by message."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from integration.market.events import decode
from integration.market.json_forms import TickEvent
from integration.market.ticks import CANCEL, CORRECT, TICK_COLUMNS, DeliveredBar, Message, Rejection, StatusChange

TIME = 1_767_623_400_000_000_000
PUBLISHED = TIME + 5
Document = dict[str, Any]
Outcome = dict[str, Any] | DeliveredBar | StatusChange | Rejection


class Token(str):
    """JSON text that is written as it is."""

    __slots__ = ()


def trade_1(**metadata: Any) -> Document:
    """Form 1, a trade."""
    meta = {
        "source": "simulated",
        "kind": "trade",
        "channel": 1,
        "session": 20260105,
        "sequence": 42,
        "conditions": ["odd_lot"],
    }
    return {
        "event_id": "n-1",
        "timestamp": "2026-01-05T14:30:00Z",
        "market_data": {
            "instrument_id": "AAPL.XNAS",
            "timestamp": TIME,
            "price_data": {"price": "187.15"},
            "volume_data": {"size": 100},
            "metadata": {**meta, "trade_id": 991, "action": "new", **metadata},
        },
    }


def quote_1() -> Document:
    """Form 1, a quote."""
    document = trade_1(kind="quote", conditions=[], trade_id=0)
    document["market_data"] |= {
        "price_data": {"bid": "187.14", "ask": 187.16},
        "volume_data": {"bid_size": 100, "ask_size": "200"},
    }
    return document


def status_1(status: str = "halted") -> Document:
    """Form 1, a status."""
    document = trade_1()
    document["market_data"] |= {"price_data": {}, "volume_data": {}}
    document["market_data"]["metadata"] = {"source": "simulated", "kind": "status", "sequence": 9, "status": status}
    return document


def trade_2() -> Document:
    """Form 2."""
    return {
        "event_id": "d-1",
        "timestamp": TIME,
        "distribution": {"source": "simulated", "channel": 1, "session": 20260105, "sequence": 43},
        "data": {"symbol": "AAPL", "exchange": "XNAS", "timestamp": TIME, "price": 187.15, "volume": 100},
        "routing": {"key": "AAPL.XNAS"},
    }


def quote_3() -> Document:
    """Form 3, a quote."""
    return {
        "event_id": "m-1",
        "timestamp": TIME,
        "normalized_data": {
            "symbol": "EURUSD",
            "exchange": "SIMX",
            "currency": "USD",
            "timestamp": TIME,
            "data_type": "quote",
            "bid": "1.08411",
            "ask": "1.08413",
            "bid_size": 1_000_000,
            "ask_size": 2_000_000,
            "spread": 0.00002,
            "mid_price": 1.08412,
            "vwap": None,
        },
        "processing_metadata": {
            "original_provider": "simulated",
            "processing_time_ms": 0.4,
            "quality_score": 0.98,
            "normalization_version": "1.0",
            "channel": 2,
            "session": 20260105,
            "sequence": 7,
        },
        "derived_fields": {},
    }


def trade_3() -> Document:
    """Form 3, a trade."""
    document = quote_3()
    for key in ("bid", "ask", "bid_size", "ask_size"):
        del document["normalized_data"][key]
    document["normalized_data"] |= {"data_type": "trade", "price": "1.08412", "volume": 1000}
    return document


def bar_3() -> Document:
    """Form 3, a delivered bar."""
    document = trade_3()
    del document["normalized_data"]["price"]
    prices = {"open": 1.1, "high": "1.3", "low": 1, "close": "1.2"}
    document["normalized_data"] |= {"data_type": "ohlc", "timeframe": "1m", **prices}
    document["derived_fields"] = {"volatility": 0.2, "note": "thin", "beta": None}
    return document


FORMS: dict[str, Callable[[], Document]] = {
    "trade_1": trade_1,
    "quote_1": quote_1,
    "status_1": status_1,
    "trade_2": trade_2,
    "trade_3": trade_3,
    "quote_3": quote_3,
    "bar_3": bar_3,
}


def dumps(value: Any, comma: str = ", ", colon: str = ": ") -> str:
    """Write a document as JSON, tokens as they are."""
    if isinstance(value, Token):
        return str(value)
    if isinstance(value, dict):
        return (
            "{"
            + comma.join(f"{json.dumps(key)}{colon}{dumps(item, comma, colon)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + comma.join(dumps(item, comma, colon) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def with_value(document: Document, path: str, value: Any) -> Document:
    """Copy a document with another value at `a.b.c`."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = changed
    for key in parents:
        place = place[key]
    place[last] = value
    return changed


def without(document: Document, path: str) -> Document:
    """Copy a document without the key at `a.b.c`."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = changed
    for key in parents:
        place = place[key]
    del place[last]
    return changed


def paths(document: Document, above: str = "") -> list[str]:
    """List every key of a document as `a.b.c`."""
    found = []
    for key, value in document.items():
        found.append(above + key)
        if isinstance(value, dict):
            found += paths(value, f"{above}{key}.")
    return found


def message(document: Document | str | bytes) -> Message:
    """Give a document or bytes as the broker would."""
    data = (
        document
        if isinstance(document, bytes)
        else (document if isinstance(document, str) else dumps(document)).encode()
    )
    return Message(data, PUBLISHED, PUBLISHED + 1)


def outcomes(messages: Sequence[Message]) -> dict[tuple[int, int], Outcome]:
    """Decode; give what became of each (message, row), -1 for a whole message. Two outcomes of one event are an error."""
    decoded = decode(messages)
    found: dict[tuple[int, int], Outcome] = {}

    def add(place: tuple[int, int], outcome: Outcome) -> None:
        assert place not in found, f"two outcomes of {place}"
        found[place] = outcome

    columns = {name: column.tolist() for name, column in decoded.ticks.columns()}
    for number in range(len(decoded.ticks)):
        tick = {name: values[number] for name, values in columns.items()}
        tick["instrument"] = decoded.instruments[decoded.instrument[number]]
        tick["source"] = decoded.sources[decoded.source[number]]
        tick["currency"] = decoded.currencies[decoded.currency[number]]
        add((tick["message"], tick["row"]), tick)
    for bar in decoded.bars:
        add((bar.message, -1), bar)
    for status in decoded.statuses:
        add((status.message, -1), status)
    for rejection in decoded.rejections:
        add((rejection.message, max(rejection.row, -1)), rejection)
    return found


def tick_of(event: TickEvent, index: int) -> dict[str, Any]:
    """Give the row that a tick of the reference reader must become."""
    flags = {CORRECT: 4, CANCEL: 8}.get(event.action, 0)
    tick = dict.fromkeys(TICK_COLUMNS, 0) | {"ts_publish": PUBLISHED, "message": index, "flags": flags}
    return tick | {name: getattr(event, name) for name in event.__struct_fields__}


def code_of(data: Document | str | bytes) -> str:
    """Give the reason code of one message alone, the empty text when it is accepted."""
    (outcome,) = outcomes([message(data)]).values()
    return outcome.code if isinstance(outcome, Rejection) else ""
