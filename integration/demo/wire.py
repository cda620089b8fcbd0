"""Demo events as bytes, in the four forms of docs/events.md. Times and prices are written in each of the permitted ways."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from integration.demo.catalogue import DISTRIBUTED, PROVIDER, DemoInstrument
from integration.demo.events import STATUS, Event
from integration.demo.faults import MALFORMED
from integration.market.tick_streams import CONTENT_TYPE, encode_ticks_stream
from integration.market.ticks import CONDITION_BITS, QUOTE, TRADE
from integration.market.times import text_from_ns
from integration.market.units import NANOS, text_from_nanos

_KINDS: Final = {TRADE: "trade", QUOTE: "quote", STATUS: "status"}
ARROW_PROPERTIES: Final = {"content-type": CONTENT_TYPE}
_ARROW_COLUMNS: Final = (
    "sequence", "kind", "ts_event", "price", "size", "ask_price", "ask_size", "conditions", "trade_id",
)  # fmt: skip
_encode: Final = msgspec.json.Encoder().encode


def json_message(event: Event, session: int) -> bytes:
    """Write one event in its instrument's JSON form, or in form 1 where that form cannot say it; a malformed one is cut off."""
    data = _encode(_writer(event)(event, session))
    return data[: len(data) * 3 // 5] if event.fault == MALFORMED else data


def arrow_message(events: Sequence[Event], session: int) -> bytes:
    """Write trades and quotes of one channel as one Arrow stream."""
    first = events[0].instrument
    return encode_ticks_stream(
        {name: [getattr(event, name) for event in events] for name in _ARROW_COLUMNS},
        [event.instrument.text for event in events],
        source=first.source,
        channel=first.channel,
        session=session,
    )


def _writer(event: Event) -> Callable[[Event, int], dict[str, Any]]:
    if event.instrument.form == DISTRIBUTED and event.kind == TRADE:
        return _distributed
    if event.instrument.form == PROVIDER and event.kind != STATUS:
        return _provider
    return _normalized


def _normalized(event: Event, session: int) -> dict[str, Any]:
    instrument = event.instrument
    metadata: dict[str, Any] = {"source": instrument.source, "kind": _KINDS[event.kind], **_numbers(event, session)}
    if event.kind == STATUS:
        prices, sizes, metadata["status"] = {}, {}, event.status
    elif event.kind == QUOTE:
        prices = {"bid": _price(instrument, event.price), "ask": _price(instrument, event.ask_price)}
        sizes = {"bid_size": event.size // NANOS, "ask_size": event.ask_size // NANOS}
    else:
        prices, sizes = {"price": _price(instrument, event.price)}, {"size": event.size // NANOS}
        metadata["trade_id"] = event.trade_id
    if event.conditions:
        metadata["conditions"] = [word for word, bit in CONDITION_BITS.items() if event.conditions & bit]
    time = _time(instrument, event.ts_event)
    return {
        "event_id": _event_id(event, session),
        "timestamp": time,
        "market_data": {
            "instrument_id": instrument.text, "timestamp": time, "price_data": prices, "volume_data": sizes, "metadata": metadata,
        },
    }  # fmt: skip


def _distributed(event: Event, session: int) -> dict[str, Any]:
    instrument, time = event.instrument, _time(event.instrument, event.ts_event)
    return {
        "event_id": _event_id(event, session),
        "timestamp": time,
        "distribution": {"source": instrument.source, **_numbers(event, session)},
        "data": {
            "symbol": instrument.symbol, "exchange": instrument.mic, "timestamp": time,
            "price": _price(instrument, event.price), "volume": event.size // NANOS,
        },
        "routing": {"key": instrument.text},
    }  # fmt: skip


def _provider(event: Event, session: int) -> dict[str, Any]:
    instrument, time = event.instrument, _time(event.instrument, event.ts_event)
    data: dict[str, Any] = {
        "symbol": instrument.symbol, "exchange": instrument.mic, "currency": instrument.currency, "timestamp": time,
        "data_type": _KINDS[event.kind],
    }  # fmt: skip
    if event.kind == QUOTE:
        data |= {
            "bid": _price(instrument, event.price), "ask": _price(instrument, event.ask_price),
            "bid_size": event.size // NANOS, "ask_size": event.ask_size // NANOS,
            "spread": (event.ask_price - event.price) / NANOS, "mid_price": (event.ask_price + event.price) / (2 * NANOS),
        }  # fmt: skip
    else:
        data |= {"price": _price(instrument, event.price), "volume": event.size // NANOS}
    return {
        "event_id": _event_id(event, session),
        "timestamp": time,
        "normalized_data": data,
        "processing_metadata": {
            "original_provider": instrument.source, "processing_time_ms": event.sequence % 20 / 10, "quality_score": 1.0,
            "normalization_version": "1.0", **_numbers(event, session),
        },
        "derived_fields": {},
    }  # fmt: skip


def _numbers(event: Event, session: int) -> dict[str, Any]:
    return {"channel": event.instrument.channel, "session": session, "sequence": event.sequence}


def _event_id(event: Event, session: int) -> str:
    return f"{event.instrument.source}-{event.instrument.channel}-{session}-{event.sequence}"


def _time(instrument: DemoInstrument, ts: int) -> int | str:
    return text_from_ns(ts) if instrument.times_as_text else ts


def _price(instrument: DemoInstrument, nanos: int) -> float | str:
    return text_from_nanos(nanos) if instrument.prices_as_text else nanos / NANOS
