"""Made-up but plausible input for measurements: seeded, the same for every run and for both sides of a comparison."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from integration.market.events import encode_ticks_stream
from integration.market.ticks import Message
from integration.models import (
    AssetClass,
    Instrument,
    InstrumentAlias,
    Listing,
    Source,
    SourceBinding,
    Subscription,
    Venue,
)

SOURCE = "bench"
VENUE = "BNCH"
INSTRUMENTS = 200
ARROW_ROWS = 5_000


def create_reference(topics: list[str]) -> dict[str, int]:
    """Make 200 instruments and a source bound to the topics; give aliases by text."""
    venue = Venue.objects.create(mic=VENUE, name="Bench", calendar="24/7", is_internal=True)
    source = Source.objects.create(code=SOURCE, name="Bench", sequence_jump_limit=2**60)
    for topic in topics:
        SourceBinding.objects.create(source=source, topic=topic)
        Subscription.objects.get_or_create(topic=topic)
    for number in range(INSTRUMENTS):
        instrument = Instrument.objects.create(name=f"Bench {number}", asset_class=AssetClass.EQUITIES)
        Listing.objects.create(instrument=instrument, venue=venue, currency="USD")
        InstrumentAlias.objects.create(instrument=instrument, value=f"B{number}.{VENUE}")
    return dict(InstrumentAlias.objects.filter(value__endswith=f".{VENUE}").values_list("value", "instrument_id"))


def walk(count: int, seed: int) -> dict[str, Any]:
    """Give columns of `count` trades: skewed instruments, a random walk in cents, log-normal sizes, 1 µs apart, ending now."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal(count).cumsum()
    return {
        "which": np.minimum(random.geometric(0.02, count) - 1, INSTRUMENTS - 1),
        "cents": (10_000 + np.abs(steps) * 3).astype(np.int64),
        "size": np.maximum(1, random.lognormal(4, 1, count)).astype(np.int64),
        "ts_event": time.time_ns() - count * 1_000 + np.arange(count) * 1_000,
    }


def json_messages(count: int, seed: int, session: int) -> list[Message]:
    """Give `count` form 2 events, one a message."""
    columns = {name: values.tolist() for name, values in walk(count, seed).items()}
    return [
        Message(json_event(session, sequence, which, cents, size, ts), ts + 500_000, ts + 600_000)
        for sequence, (which, cents, size, ts) in enumerate(zip(*columns.values(), strict=True), start=1)
    ]


def json_event(session: int, sequence: int, which: int, cents: int, size: int, ts: int) -> bytes:
    """Write one form 2 event as a producer would."""
    return json.dumps(
        {
            "event_id": f"{session}-{sequence}",
            "timestamp": ts,
            "distribution": {"source": SOURCE, "channel": 1, "session": session, "sequence": sequence},
            "data": {"symbol": f"B{which}", "exchange": VENUE, "timestamp": ts, "price": cents / 100, "volume": size},
            "routing": {"key": f"B{which}.{VENUE}"},
        }
    ).encode()


def arrow_messages(count: int, seed: int, session: int, rows: int = ARROW_ROWS) -> Iterator[Message]:
    """Give `count` trades as form 4 streams of `rows`."""
    columns = walk(count, seed)
    for start in range(0, count, rows):
        part = {name: values[start : start + rows] for name, values in columns.items()}
        yield arrow_message(part, session, start + 1)


def arrow_message(part: dict[str, Any], session: int, first_sequence: int) -> Message:
    """Write columns of `walk` as one stream."""
    length = len(part["which"])
    stream = encode_ticks_stream(
        {
            "sequence": np.arange(first_sequence, first_sequence + length),
            "kind": np.ones(length, np.uint8),
            "ts_event": part["ts_event"],
            "price": part["cents"] * 10_000_000,
            "size": part["size"] * 1_000_000_000,
        },
        [f"B{which}.{VENUE}" for which in part["which"].tolist()],
        source=SOURCE,
        channel=1,
        session=session,
    )
    newest = int(part["ts_event"][-1])
    return Message(stream, newest + 500_000, newest + 600_000)
