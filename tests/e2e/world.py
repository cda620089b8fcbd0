"""Rows of reference data in a real database, workers on it, and what came of them: for the tests of the flow."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db import connection

from config.pipeline import build
from integration import canary
from integration.consumer import PartitionWorker
from integration.models import (
    Instrument,
    InstrumentAlias,
    Listing,
    QuarantinedEvent,
    Quote,
    ReferenceVersion,
    SequencerState,
    Source,
    SourceBinding,
    Subscription,
    Trade,
    Venue,
)
from integration.poison import InFlight
from integration.reference import ReferenceCache
from integration.sources import MemorySource, TickSource
from tests.e2e.events import TOPIC, TS
from tests.stack import session_folder

PARTITION = f"{TOPIC}-partition-0"


def empty_tables() -> None:
    """Drop the slices and write the single rows again: Django's flush knows neither."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent IN ('integration_trade'::regclass, 'integration_quote'::regclass)"
        )
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP TABLE {name}")
    ReferenceVersion.objects.get_or_create(pk=1)
    SequencerState.objects.get_or_create(pk=1)


@dataclass
class World:
    """Ids by name, and the workers that were made, to be closed."""

    instruments: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    workers: list[PartitionWorker] = field(default_factory=list)

    def worker(
        self, source: TickSource | None = None, *, partition: str = PARTITION, topic: str = TOPIC, **changes: Any
    ) -> PartitionWorker:
        """Make a consumer of a partition, by default from memory, with a clock that stands a second behind `TS`."""
        settings: dict[str, Any] = {
            "source": source if source is not None else MemorySource(),
            "slots": build(),
            "references": ReferenceCache(),
            "in_flight": InFlight(
                session_folder() / "run" / "in-flight", f"{connection.settings_dict['NAME']} {partition}"
            ),
            "holder": "test",
            "batch_messages": 100,
            "bar_grace_ns": 2_000_000_000,
            "stop": threading.Event(),
            "now_ns": lambda: TS + 1_000_000_000,
        }
        made = PartitionWorker(topic=topic, partition=partition, **(settings | changes))
        self.workers.append(made)
        return made


def add_instrument(world: World, text: str, *, currency: str = "USD", unit: str = "1", negative: bool = False) -> None:
    """Add an instrument with a listing on the venue of its ticker."""
    venue = text.split(".")[1]
    asset_class = "commodities" if negative else "equities"
    row = Instrument.objects.create(name=text, asset_class=asset_class, allows_negative_price=negative)
    Listing.objects.create(instrument=row, venue_id=venue, currency=currency, price_unit=Decimal(unit))
    InstrumentAlias.objects.create(instrument=row, value=text)
    world.instruments[text] = row.pk


def build_world(*topics: str) -> World:
    """Write the reference data of the tests, with the source alpha bound to `topics`."""
    empty_tables()
    world = World()
    for mic in ("SIMX", canary.VENUE):
        Venue.objects.create(mic=mic, name=mic, is_internal=True)
    for text in ("AAA.SIMX", "BBB.SIMX", "CCC.SIMX", canary.INSTRUMENT):
        add_instrument(world, text)
    add_instrument(world, "OIL.SIMX", negative=True)
    add_instrument(world, "PNC.SIMX", currency="GBP", unit="0.01")
    for code in ("alpha", "beta", "elsewhere"):
        source = Source.objects.create(code=code, name=code, sequence_jump_limit=100_000, ancient_limit_s=400 * 86_400)
        world.sources[code] = source.pk
        if code != "elsewhere":
            SourceBinding.objects.bulk_create(SourceBinding(source=source, topic=topic) for topic in topics or (TOPIC,))
    for topic in topics or (TOPIC,):
        Subscription.objects.create(topic=topic)
    return world


def sequences(model: type[Trade] | type[Quote] = Trade) -> list[int]:
    """Give the sequences of stored trades or quotes, repeats included, sorted."""
    return sorted(model.objects.values_list("sequence", flat=True))


def quarantined(**where: Any) -> list[tuple[str, str]]:
    """Give (code, state) of quarantined events in order of arrival."""
    return list(QuarantinedEvent.objects.filter(**where).order_by("id").values_list("code", "state"))


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds; AssertionError naming it after a generous while."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not true after {seconds} s: {condition}"
        time.sleep(0.05)
