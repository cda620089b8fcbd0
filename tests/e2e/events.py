"""Events as a producer writes them (docs/events.md), and the reference data that the tests resolve them by. No database."""

import json
from collections.abc import Sequence
from typing import Any

from integration.market.events import encode_ticks_stream
from integration.market.reference import FOREVER, AliasSpan, InstrumentFacts, Reference, SourceFacts
from integration.market.sessions import session_table
from integration.market.ticks import Message

TS = 1_767_623_400_000_000_000  # 2026-01-05 14:30 UTC, a Monday
SECOND = 1_000_000_000
TOPIC = "persistent://market-data/test/equities"
SESSION = 20260105


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def trade(
    sequence: int,
    *,
    price: Any = "10",
    size: Any = 1,
    instrument: str = "AAA.SIMX",
    ts: int = TS,
    source: str = "alpha",
    channel: int = 0,
    **metadata: Any,
) -> bytes:
    """Write a trade in form 1; `sequence` 0 leaves it unnumbered. `metadata` adds or replaces fields of its block."""
    meta = {"source": source, "kind": "trade", "channel": channel, "session": SESSION, "sequence": sequence}
    if sequence == 0:
        meta = {"source": source, "kind": "trade"}
    body = {"instrument_id": instrument, "timestamp": ts, "price_data": {"price": price}, "volume_data": {"size": size}}
    event_id = metadata.pop("event_id", f"t-{sequence}")
    return _json({"event_id": event_id, "timestamp": ts, "market_data": {**body, "metadata": {**meta, **metadata}}})


def quote(
    sequence: int,
    bid: Any = "9.99",
    ask: Any = "10.01",
    *,
    bid_size: Any = 1,
    ask_size: Any = 1,
    instrument: str = "AAA.SIMX",
    ts: int = TS,
    **metadata: Any,
) -> bytes:
    """Write a quote in form 1."""
    meta = {"source": "alpha", "kind": "quote", "session": SESSION, "sequence": sequence, **metadata}
    body = {
        "instrument_id": instrument,
        "timestamp": ts,
        "price_data": {"bid": bid, "ask": ask},
        "volume_data": {"bid_size": bid_size, "ask_size": ask_size},
    }
    return _json({"event_id": f"q-{sequence}", "timestamp": ts, "market_data": {**body, "metadata": meta}})


def status(sequence: int, word: str, *, instrument: str = "AAA.SIMX", ts: int = TS, source: str = "alpha") -> bytes:
    """Write a status change in form 1."""
    meta = {"source": source, "kind": "status", "session": SESSION, "sequence": sequence, "status": word}
    body = {"instrument_id": instrument, "timestamp": ts, "price_data": {}, "volume_data": {}, "metadata": meta}
    return _json({"event_id": f"s-{sequence}", "timestamp": ts, "market_data": body})


def distributed(
    sequence: int,
    *,
    price: Any = 10.5,
    volume: Any = 3,
    symbol: str = "AAA",
    exchange: str = "SIMX",
    ts: Any = TS,
    source: str = "alpha",
) -> bytes:
    """Write a trade in form 2."""
    data = {"symbol": symbol, "exchange": exchange, "timestamp": ts, "price": price, "volume": volume}
    head = {"source": source, "session": SESSION, "sequence": sequence}
    return _json({"event_id": f"d-{sequence}", "timestamp": TS, "distribution": head, "data": data, "routing": {}})


def normalized(
    sequence: int,
    data_type: str = "quote",
    *,
    currency: str = "USD",
    symbol: str = "AAA",
    exchange: str = "SIMX",
    ts: Any = TS,
    **values: Any,
) -> bytes:
    """Write a quote, trade or bar in form 3; `values` are its numbers."""
    kinds: dict[str, dict[str, Any]] = {
        "quote": {"bid": "9.5", "ask": "9.6"},
        "trade": {"price": "9.55", "volume": 2},
        "ohlc": {"open": "9", "high": "11", "low": "8", "close": "10", "volume": 100, "timeframe": "1m"},
    }
    numbers = kinds[data_type]
    data = {
        "symbol": symbol,
        "exchange": exchange,
        "currency": currency,
        "timestamp": ts,
        "data_type": data_type,
        **numbers,
        **values,
    }
    meta = {
        "original_provider": "alpha",
        "processing_time_ms": 0.4,
        "quality_score": 0.9,
        "normalization_version": "1.0",
        "session": SESSION,
        "sequence": sequence,
    }
    return _json(
        {
            "event_id": f"m-{sequence}",
            "timestamp": TS,
            "normalized_data": data,
            "processing_metadata": meta,
            "derived_fields": {},
        }
    )


def arrow(
    sequences: Sequence[int],
    *,
    source: str = "alpha",
    channel: int = 7,
    instrument: str = "AAA.SIMX",
    ts: int = TS,
    **columns: Sequence[int],
) -> bytes:
    """Write a form 4 stream of trades, one nano of price per sequence number; `columns` replaces whole columns."""
    count = len(sequences)
    values: dict[str, Sequence[int]] = {
        "sequence": sequences, "kind": [1] * count, "ts_event": [ts + s for s in sequences],
        "price": [10 * SECOND + s for s in sequences], "size": [SECOND] * count,
    }  # fmt: skip
    return encode_ticks_stream(values | columns, [instrument] * count, source=source, channel=channel, session=SESSION)


def message(data: bytes, published: int = TS + 5) -> Message:
    """Wrap bytes as the broker would hand them over."""
    return Message(data, published, published + 1)


def messages(*data: bytes, published: int = TS + 5) -> list[Message]:
    """Wrap several, published one ns after the other."""
    return [message(item, published + at) for at, item in enumerate(data)]


def reference(version: int = 1, *, aliases: dict[str, tuple[AliasSpan, ...]] | None = None, **limits: Any) -> Reference:
    """Compile two equities, a commodity that may be negative, a stock in pence and the canary; `limits` are those of source alpha."""
    names = {
        "AAA.SIMX": (AliasSpan(0, FOREVER, 1),),
        "BBB.SIMX": (AliasSpan(0, FOREVER, 2),),
        "OIL.SIMX": (AliasSpan(0, FOREVER, 3),),
        "PNC.SIMX": (AliasSpan(0, FOREVER, 4),),
        "CANARY.MDIX": (AliasSpan(0, FOREVER, 5),),
        "NEW.SIMX": (AliasSpan(0, TS, 1), AliasSpan(TS, FOREVER, 2)),
        "DAY.XNYS": (AliasSpan(0, FOREVER, 6),),
        **(aliases or {}),
    }
    usd = frozenset({"USD"})
    facts = (
        InstrumentFacts(1, "SIMX", usd, "AAA.SIMX"),
        InstrumentFacts(2, "SIMX", usd, "BBB.SIMX"),
        InstrumentFacts(3, "SIMX", usd, "OIL.SIMX", allows_negative=True),
        InstrumentFacts(4, "SIMX", frozenset({"GBP", "GBX"}), "PNC.SIMX"),
        InstrumentFacts(5, "MDIX", usd, "CANARY.MDIX", is_canary=True),
        InstrumentFacts(6, "XNYS", usd, "DAY.XNYS"),
    )
    here = frozenset({TOPIC})
    sources = {
        "alpha": SourceFacts(1, here, sequence_jump_limit=limits.pop("sequence_jump_limit", 1000), **limits),
        "beta": SourceFacts(2, here),
        "elsewhere": SourceFacts(3, frozenset({TOPIC + "-other"})),
        "gone": SourceFacts(4, here, is_active=False),
    }
    open_always, day = session_table("24/7", last_year=2027), session_table("XNYS", last_year=2027)
    return Reference(
        version,
        names,
        sources,
        {fact.id: fact for fact in facts},
        {"SIMX": open_always, "MDIX": open_always, "XNYS": day},
    )
