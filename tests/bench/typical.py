"""The typical loop to compare with: one event at a time through json.loads, objects and `bulk_create(1000)`, json.dumps out.

It does the same checks on the same bytes as ours: schema, identity, alias, signs, times, lateness; one transaction per 1,000.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from django.db import connection, models, transaction

from integration.market.ticks import Message


class TypicalTick(models.Model):
    """A tick as an ordinary Django model would hold it."""

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(max_length=128)
    source = models.CharField(max_length=32)
    channel = models.IntegerField()
    session = models.BigIntegerField()
    sequence = models.BigIntegerField()
    instrument_id = models.IntegerField()
    price = models.DecimalField(max_digits=20, decimal_places=9)
    size = models.DecimalField(max_digits=20, decimal_places=9)
    ts_event = models.DateTimeField()
    ts_publish = models.DateTimeField()
    objects: "ClassVar[models.Manager[TypicalTick]]" = models.Manager()

    class Meta:
        app_label = "integration"
        managed = False
        db_table = "typical_tick"
        indexes = [models.Index(fields=["instrument_id", "ts_event"], name="typical_tick_read")]

    def __str__(self) -> str:
        return self.event_id


class TypicalPosition(models.Model):
    """Where the loop stands."""

    id = models.AutoField(primary_key=True)
    number = models.BigIntegerField()
    objects: "ClassVar[models.Manager[TypicalPosition]]" = models.Manager()

    class Meta:
        app_label = "integration"
        managed = False
        db_table = "typical_position"

    def __str__(self) -> str:
        return str(self.number)


def create_tables() -> None:
    """Make the loop's tables."""
    with connection.schema_editor() as editor:
        for model in (TypicalTick, TypicalPosition):
            editor.create_model(model)
    TypicalPosition.objects.create(id=1, number=0)


class TypicalLoop:
    """Consumes messages one by one; `aliases` maps texts to instrument ids."""

    def __init__(self, aliases: dict[str, int]) -> None:
        self.aliases = aliases
        self.seen: set[tuple[str, int, int, int]] = set()
        self.newest: dict[tuple[str, int], int] = {}
        self.stored = 0

    def run(self, messages: Sequence[Message]) -> None:
        """Store messages in transactions of 1,000."""
        ready: list[TypicalTick] = []
        for message in messages:
            tick = self.accept(message)
            if tick is not None:
                ready.append(tick)
            if len(ready) == 1000:
                self.flush(ready)
                ready = []
        if ready:
            self.flush(ready)

    def accept(self, message: Message) -> TypicalTick | None:
        """Check one event."""
        event: dict[str, Any] = json.loads(message.data, parse_float=Decimal)
        data, origin = event["data"], event["distribution"]
        identity = (origin["source"], origin["channel"], origin["session"], origin["sequence"])
        instrument_id = self.aliases.get(f"{data['symbol']}.{data['exchange']}")
        price, size, ts_event = Decimal(data["price"]), Decimal(data["volume"]), data["timestamp"]
        if identity in self.seen or instrument_id is None:
            return None
        if not (price.is_finite() and price > 0 and size.is_finite() and size > 0):
            return None
        if not -7 * 86_400 * 10**9 <= ts_event - message.ts_publish <= 5 * 10**9:
            return None
        self.seen.add(identity)
        key = (origin["source"], instrument_id)
        self.newest[key] = max(ts_event, self.newest.get(key, 0))
        return TypicalTick(
            event_id=event["event_id"],
            source=identity[0],
            channel=identity[1],
            session=identity[2],
            sequence=identity[3],
            instrument_id=instrument_id,
            price=price,
            size=size,
            ts_event=datetime.fromtimestamp(ts_event / 1e9, tz=UTC),
            ts_publish=datetime.fromtimestamp(message.ts_publish / 1e9, tz=UTC),
        )

    def flush(self, ticks: list[TypicalTick]) -> None:
        """Store one transaction and encode what would be published."""
        with transaction.atomic():
            TypicalTick.objects.bulk_create(ticks, batch_size=1000)
            TypicalPosition.objects.filter(pk=1).update(number=models.F("number") + len(ticks))
        for tick in ticks:
            json.dumps(
                {
                    "instrument_id": tick.instrument_id,
                    "price": str(tick.price),
                    "size": str(tick.size),
                    "ts_event": tick.ts_event.isoformat(),
                    "sequence": tick.sequence,
                }
            )
        self.stored += len(ticks)


def timed(loop: TypicalLoop, messages: Sequence[Message]) -> tuple[float, float]:
    """Give (wall seconds, CPU seconds of this process) for the messages."""
    wall, cpu = time.perf_counter(), time.process_time()
    loop.run(messages)
    return time.perf_counter() - wall, time.process_time() - cpu
