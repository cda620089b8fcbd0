"""Demo events as bytes, in the four forms of docs/events.md. Times and prices are written in each of the permitted ways.

The Arrow schema is written from that page and not taken from the service's decoder, so that a slip there shows.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pyarrow as pa

from integration.demo.catalogue import DISTRIBUTED, PROVIDER, DemoInstrument
from integration.demo.events import STATUS, Event
from integration.demo.faults import MALFORMED
from integration.market.ticks import CONDITION_BITS, QUOTE, TRADE
from integration.market.units import NANOS, text_from_nanos

_KINDS: Final = {TRADE: "trade", QUOTE: "quote", STATUS: "status"}
_KIND, _COUNT, _TEXT, _BITS = pa.uint8(), pa.int64(), pa.utf8(), pa.uint32()
_COLUMNS: Final = (
    ("sequence", _COUNT), ("kind", _KIND), ("action", _KIND), ("instrument", _TEXT), ("ts_event", _COUNT), ("price", _COUNT),
    ("size", _COUNT), ("ask_price", _COUNT), ("ask_size", _COUNT), ("conditions", _BITS), ("trade_id", _COUNT),
)  # fmt: skip
_FIELDS: Final = [pa.field(name, kind, nullable=False) for name, kind in _COLUMNS]
ARROW_PROPERTIES: Final = {"content-type": "application/vnd.apache.arrow.stream"}
_encode: Final = msgspec.json.Encoder().encode


def json_message(event: Event, session: int) -> bytes:
    """Write one event in its instrument's JSON form, or in form 1 where that form cannot say it; a malformed one is cut off."""
    data = _encode(_writer(event)(event, session))
    return data[: len(data) * 3 // 5] if event.fault == MALFORMED else data


def arrow_message(events: Sequence[Event], session: int) -> bytes:
    """Write trades and quotes of one channel as one Arrow stream of one record batch."""
    first = events[0].instrument
    metadata = {"version": "1", "source": first.source, "channel": str(first.channel), "session": str(session)}
    schema = pa.schema(_FIELDS, metadata=metadata)
    rows = [
        (e.sequence, e.kind, 0, e.instrument.text, e.ts_event, e.price, e.size, e.ask_price, e.ask_size, e.conditions, e.trade_id)
        for e in events
    ]
    columns = [pa.array(values, kind) for values, (_, kind) in zip(zip(*rows, strict=True), _COLUMNS, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def iso_text(ts: int) -> str:
    """Write ns UTC as ISO 8601 with nine decimals."""
    seconds, fraction = divmod(ts, NANOS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def _writer(event: Event) -> Callable[[Event, int], dict[str, Any]]:
    if event.instrument.form == DISTRIBUTED and event.kind == TRADE:
        return _distributed
    if event.instrument.form == PROVIDER and event.kind != STATUS:
        return _provider
    return _normalized


def _normalized(event: Event, session: int) -> dict[str, Any]:
    instrument = event.instrument
    metadata = {"source": instrument.source, "kind": _KINDS[event.kind], **_numbers(event, session)}
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
    data = {
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
    return iso_text(ts) if instrument.times_as_text else ts


def _price(instrument: DemoInstrument, nanos: int) -> float | str:
    return text_from_nanos(nanos) if instrument.prices_as_text else nanos / NANOS
