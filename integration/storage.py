"""Exactly-once effect: one transaction per batch holds the ticks, the quarantine, the batch row and the position.

Also reads back: the state of a partition (snapshot and the batches since), and stored events by identity. Decides nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import psycopg
from django.db import connection, transaction
from django.utils import timezone

from integration.history import archived_ticks
from integration.lease import HeldLease
from integration.market.errors import FencedError, RetriableError
from integration.market.identity import Identities, KnownIdentities
from integration.market.reference import Reference
from integration.market.tally import TallyRow
from integration.market.ticks import FLAG_TIME_UNVERIFIED, QUOTE, TRADE, DeliveredBar, StatusChange, Ticks
from integration.models import Job, Position, QuarantinedEvent, Subscription
from integration.pipeline import Outcome, PartitionState, Refused, SideEvent, Slots, Stored, StoredBytes, StoredTick
from integration.rows import LAYOUTS, copy_pieces, copy_statement, pack_payload, unpack_payload

SNAPSHOT_EVERY: Final = 200
WAITING_STATES: Final = (QuarantinedEvent.State.PARKED, QuarantinedEvent.State.RELEASE_REQUESTED)
_CLUSTER_NS: Final = 60_000_000_000

Checkpoint = Callable[[str], None]


def reach_nothing(_point: str) -> None:
    """Do nothing at a named point; tests end the process there instead."""


def do_nothing() -> None:
    """Wait for PostgreSQL without using the time."""


class Extras(msgspec.Struct, forbid_unknown_fields=True):
    """What a batch row keeps beside its ticks, so that state and output can be folded again from it.

    `identities` are [source, channel, session, sequence, ts_event] of events without a tick row; `statuses`
    [instrument, ts_event, status]; `bars` [instrument, source, timeframe, start, session_date, open, high, low, close, volume];
    `tally` [source, channel, session, received, repeats, claims refused], which `integration.reconciliation` holds against the tables.
    """

    identities: list[tuple[int, int, int, int, int]] = []
    statuses: list[tuple[int, int, str]] = []
    bars: list[tuple[int, int, str, int, int, int, int, int, int, int]] = []
    tally: list[TallyRow] = []


class _Snapshot(msgspec.Struct):
    identities: bytes
    screen: bytes
    statuses: dict[int, tuple[tuple[int, str], ...]]


@dataclass(slots=True, frozen=True)
class BatchFacts:
    """What the loop knows of a batch that the outcome does not."""

    batch_id: int
    position_id: int
    number: int  # gapless; the compare-and-swap value is number - 1
    lease: HeldLease
    reference: Reference
    ts_received: int
    clock: int
    last_message_id: bytes = b""
    released: tuple[int, ...] = ()  # quarantine ids that the messages of a release come from, message by message


@contextmanager
def binary_cursor() -> Iterator[psycopg.Cursor[Any]]:
    """Give a cursor on Django's connection that sends parameters apart and reads results in binary; errors are Django's.

    Django's own binds on the client: a payload would travel as a text literal of twice its size.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.format = psycopg.pq.Format.BINARY
        yield cursor


# -- reading back -----------------------------------------------------------------------------------------------------


def open_position(partition: str, subscription: Subscription) -> Position:
    """Give the position row of a partition, made on first use."""
    position, _ = Position.objects.get_or_create(partition=partition, defaults={"subscription": subscription})
    return position


def load_state(position: Position, reference: Reference, slots: Slots) -> PartitionState:
    """Rebuild what the consumer of a partition must remember: the snapshot, then every batch since."""
    state = PartitionState(KnownIdentities(), slots.new_screen_state())
    if position.snapshot:
        snapshot = msgspec.msgpack.decode(bytes(position.snapshot), type=_Snapshot)
        state.identities = KnownIdentities.load(snapshot.identities)
        state.screen = slots.unpack_screen_state(snapshot.screen)
        state.statuses = snapshot.statuses
    with binary_cursor() as cursor:
        cursor.execute(
            "SELECT payload, extras FROM integration_batch WHERE position_id = %s AND number > %s ORDER BY number",
            [position.pk, position.snapshot_number],
        )
        for payload, extras in cursor:
            _replay(state, unpack_payload(payload), read_extras(extras), reference, slots)
    waiting = position.quarantined.filter(state=QuarantinedEvent.State.PARKED)
    state.lanes = set(waiting.values_list("source", "instrument").distinct())
    return state


def _replay(state: PartitionState, ticks: Ticks, extras: Extras, reference: Reference, slots: Slots) -> None:
    state.identities.adopt(Identities(ticks.source_id, ticks.channel, ticks.session, ticks.sequence, ticks.ts_event))
    others = np.array(extras.identities, np.int64).reshape(-1, 5)
    state.identities.adopt(Identities(*(others[:, column] for column in range(5))))
    if len(ticks):
        # As it was judged then: a time that was not verified moved the state, one that was released did not.
        trust_time = not (ticks.flags & np.uint32(FLAG_TIME_UNVERIFIED)).any()
        state.screen = slots.screen(ticks, reference, state.screen, trust_time=trust_time).state
    for instrument_id, ts, status in extras.statuses:
        changes = (*state.statuses.get(instrument_id, ()), (ts, status))
        state.statuses[instrument_id] = tuple(sorted(changes))[-16:]


def pack_snapshot(state: PartitionState, slots: Slots) -> bytes:
    """Write the state of a partition so that `load_state` need not read all batches."""
    return msgspec.msgpack.encode(
        _Snapshot(state.identities.dump(), slots.pack_screen_state(state.screen), state.statuses)
    )


def read_extras(data: bytes) -> Extras:
    """Read the extras of a batch row."""
    return msgspec.json.decode(data, type=Extras) if data else Extras()


def find_stored(position_id: int, reference: Reference, wanted: Identities) -> list[Stored]:
    """Look up events by identity: in stored ticks of their time, then in the quarantine, then among upstream events."""
    found: dict[tuple[int, int, int, int], Stored] = {}
    keys = list(
        zip(
            *(column.tolist() for column in (wanted.source_id, wanted.channel, wanted.session, wanted.sequence)),
            strict=True,
        )
    )
    for low, high in _clusters(sorted(ts for ts in wanted.ts_event.tolist() if ts > 0)):
        found.update(_stored_ticks(keys, low, high))
        if missing := [key for key in keys if key not in found]:
            found.update((key, StoredTick(content)) for key, content in archived_ticks(missing, low, high).items())
    left = [key for key in keys if key not in found]
    if left:
        found.update(_quarantined(position_id, reference, left))
        found.update(_upstream_events(left))
    return [found.get(key) for key in keys]


def _clusters(times: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Group sorted times into ranges without large holes, so that few slices are read."""
    start = previous = None
    for ts in times:
        if start is None:
            start = ts
        elif previous is not None and ts - previous > _CLUSTER_NS:
            yield start, previous
            start = ts
        previous = ts
    if start is not None and previous is not None:
        yield start, previous


def _unnest(keys: Sequence[tuple[int, ...]]) -> list[list[int]]:
    return [list(column) for column in zip(*keys, strict=True)]


_TICK_QUERY: Final = """
    SELECT source_id, channel, session, sequence, {content} FROM integration_{table}
     WHERE ts_event BETWEEN %s AND %s
       AND (source_id, channel, session, sequence) IN (SELECT * FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::bigint[]))
"""
_CONTENT: Final = {
    "trade": f"{TRADE}, (flags & 12) >> 2, instrument_id, ts_event, price, size, 0, 0, conditions, trade_id",
    "quote": f"{QUOTE}, (flags & 12) >> 2, instrument_id, ts_event, bid, bid_size, ask, ask_size, conditions, 0",
}


def _stored_ticks(keys: Sequence[tuple[int, ...]], low: int, high: int) -> dict[tuple[int, int, int, int], Stored]:
    found: dict[tuple[int, int, int, int], Stored] = {}
    with connection.cursor() as cursor:
        for table, content in _CONTENT.items():
            cursor.execute(_TICK_QUERY.format(content=content, table=table), [low, high, *_unnest(keys)])
            found.update((row[:4], StoredTick(tuple(row[4:]))) for row in cursor.fetchall())
    return found


def _quarantined(
    position_id: int, reference: Reference, keys: Sequence[tuple[int, ...]]
) -> dict[tuple[int, int, int, int], Stored]:
    codes = {code: facts.id for code, facts in reference.sources.items()}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT source, channel, session, sequence, raw FROM integration_quarantinedevent
             WHERE position_id = %s AND (channel, session, sequence) IN (SELECT * FROM unnest(%s::int[], %s::bigint[], %s::bigint[]))
            """,
            [position_id, *_unnest([key[1:] for key in keys])],
        )
        return {
            (codes.get(source, 0) if channel > -2 else 0, channel, session, sequence): StoredBytes(bytes(raw))
            for source, channel, session, sequence, raw in cursor.fetchall()
        }


def _upstream_events(keys: Sequence[tuple[int, ...]]) -> dict[tuple[int, int, int, int], Stored]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT source_id, channel, session, sequence, raw FROM integration_upstreamevent
             WHERE (source_id, channel, session, sequence) IN (SELECT * FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::bigint[]))
            """,
            _unnest(keys),
        )
        return {row[:4]: StoredBytes(bytes(row[4])) for row in cursor.fetchall()}


# -- the transaction --------------------------------------------------------------------------------------------------


def next_batch_id() -> int:
    """Draw the id of the next batch. An owner draws and uses them one after the other, so that ids rise within a partition."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('integration_batch_id_seq')")
        return int(cursor.fetchone()[0])


def record(
    outcome: Outcome,
    facts: BatchFacts,
    snapshot: bytes,
    now_ns: Callable[[], int],
    reached: Checkpoint = reach_nothing,
    meanwhile: Callable[[], None] = do_nothing,
) -> int:
    """Store a batch in one transaction and draw the id of the next; FencedError when the lease or the position has moved on.

    `snapshot` replaces the position's unless empty. `reached` is called at the points where a crash is worth a test, `meanwhile`
    where PostgreSQL has been given work that we would only wait for; it must not raise.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        reached("before_copy")
        payload = _copy_ticks(cursor, outcome.ticks, facts, reached, meanwhile)
        _insert_refused(outcome, facts, facts.batch_id)
        _insert_sides(cursor, outcome.sides, facts.batch_id)
        next_id = _finish(outcome, facts, payload, snapshot, now_ns())
        reached("before_commit")
        _commit(meanwhile)
    reached("after_commit")
    return next_id


def _commit(meanwhile: Callable[[], None]) -> None:
    """Send COMMIT, and wait for it only after `meanwhile`. Django then finds no transaction left to commit."""
    raw = connection.connection
    with connection.wrap_database_errors, raw.pipeline() as pipeline:
        raw.execute("COMMIT")
        pipeline.sync()
        meanwhile()


def counted_ticks(ticks: Ticks, reference: Reference) -> int:
    """Count ticks but canaries, which are in no count and in no table of ticks."""
    return len(ticks) - int(reference.canary[ticks.instrument_id].sum())


def _copy_ticks(
    cursor: Any, ticks: Ticks, facts: BatchFacts, reached: Checkpoint, meanwhile: Callable[[], None]
) -> bytes:
    """Copy ticks into their tables; give the batch row's payload, which is packed while PostgreSQL takes the rows in."""
    canary = facts.reference.canary
    counted = ticks
    if len(ticks) and canary[ticks.instrument_id].any():
        counted = ticks.take(~canary[ticks.instrument_id])
    payload = None
    for table, (kind, _) in LAYOUTS.items():
        mine = counted.kind == kind
        if mine.any():
            # What COPY raises must be Django's too: the loop tells errors apart by those.
            with connection.wrap_database_errors, cursor.copy(copy_statement(table)) as copy:
                for at, piece in enumerate(
                    copy_pieces(table, counted if mine.all() else counted.take(mine), facts.batch_id)
                ):
                    if at:
                        meanwhile()
                    reached("mid_copy")
                    copy.write(piece)
                payload = pack_payload(ticks) if payload is None else payload
    return pack_payload(ticks) if payload is None else payload


def _insert_refused(outcome: Outcome, facts: BatchFacts, batch_id: int) -> None:
    parked, refused = QuarantinedEvent.State.PARKED, QuarantinedEvent.State.QUARANTINED
    items: list[tuple[Refused, str]] = [(item, parked) for item in outcome.parked]
    items += [(item, refused) for item in outcome.refused]
    for code in sorted({item.rejection.code for item, _ in items}):
        Job.enqueue(kind="notify_quarantine", key=code)
    if facts.released:
        items = _settle_released(items, facts.released, batch_id)
    QuarantinedEvent.objects.bulk_create(
        [_quarantine_row(item, state, facts, batch_id) for item, state in items], batch_size=1000
    )


def _quarantine_row(item: Refused, state: str, facts: BatchFacts, batch_id: int) -> QuarantinedEvent:
    rejection = item.rejection
    return QuarantinedEvent(
        position_id=facts.position_id,
        batch_id=batch_id,
        code=rejection.code,
        detail=_storable(rejection.detail, 400),
        state=state,
        source=_storable(rejection.source, 32),
        channel=rejection.channel,
        session=rejection.session,
        sequence=rejection.sequence,
        instrument=_storable(rejection.instrument, 64),
        ts_event=rejection.ts_event,
        ts_publish=item.ts_publish,
        ts_received=item.ts_received,
        raw=item.raw,
    )


def _storable(text: str, limit: int) -> str:
    """Make text that a bad event chose safe for a text column: no NUL, no lone surrogates, no more than fits."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:limit]


def _lock_waiting(released: Sequence[int]) -> None:
    """Make sure that nobody has decided otherwise since these events were read; RetriableError when somebody has."""
    waiting = QuarantinedEvent.objects.select_for_update().filter(pk__in=released, state__in=WAITING_STATES)
    if len(waiting.values_list("pk", flat=True)) != len(released):
        raise RetriableError("an event was decided while its release ran", code="release_changed")


def _settle_released(
    items: Sequence[tuple[Refused, str]], released: Sequence[int], batch_id: int
) -> list[tuple[Refused, str]]:
    """Mark what a release let through, write the new reason on what it did not, and give what needs a row of its own.

    A whole stream that is released may have single rows refused: each is an event by itself from then on.
    """
    _lock_waiting(released)
    again = {released[item.rejection.message] for item, _ in items}
    raws = dict(QuarantinedEvent.objects.filter(pk__in=again).values_list("pk", "raw"))
    parts: list[tuple[Refused, str]] = []
    for item, state in items:
        pk = released[item.rejection.message]
        if bytes(raws[pk]) != item.raw:
            parts.append((item, state))
            again.discard(pk)
            continue
        QuarantinedEvent.objects.filter(pk=pk).update(
            state=state,
            code=item.rejection.code,
            detail=_storable(item.rejection.detail, 400),
            updated_at=timezone.now(),
        )
    QuarantinedEvent.objects.filter(pk__in=[pk for pk in released if pk not in again]).update(
        state=QuarantinedEvent.State.RELEASED, released_batch_id=batch_id, updated_at=timezone.now()
    )
    return parts


def _insert_sides(cursor: Any, sides: Sequence[SideEvent], batch_id: int) -> None:
    for side in sides:
        event = side.event
        ts = event.start if isinstance(event, DeliveredBar) else event.ts_event
        cursor.execute(
            "INSERT INTO integration_upstreamevent (source_id, channel, session, sequence, instrument_id, ts_event, batch_id, raw)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [side.source_id, event.channel, event.session, event.sequence, side.instrument_id, ts, batch_id, side.raw],
        )
        if isinstance(event, StatusChange):
            cursor.execute(
                "INSERT INTO integration_instrumentstatus (instrument_id, source_id, status, ts_event, batch_id)"
                " VALUES (%s, %s, %s, %s, %s)",
                [side.instrument_id, side.source_id, event.status, ts, batch_id],
            )


def pack_extras(outcome: Outcome) -> bytes:
    """Write what a batch row keeps beside its ticks; nothing came: no bytes."""
    extras = Extras(tally=outcome.tally.rows())
    for item in outcome.refused + outcome.parked:
        name = item.rejection
        extras.identities.append((item.source_id, name.channel, name.session, name.sequence, name.ts_event))
    for side in outcome.sides:
        event = side.event
        if isinstance(event, StatusChange):
            extras.statuses.append((side.instrument_id, event.ts_event, event.status))
            ts = event.ts_event
        else:
            extras.bars.append(
                (side.instrument_id, side.source_id, event.timeframe, event.start, side.session_date, event.open, event.high, event.low,
                 event.close, event.volume)
            )  # fmt: skip
            ts = event.start
        extras.identities.append((side.source_id, event.channel, event.session, event.sequence, ts))
    return msgspec.json.encode(extras) if extras.tally else b""


# One statement, since each round trip would cost a small batch a tenth of its time. The batch row is only made by whoever moved the
# position: who has lost the partition must hear so, not of a batch number given twice. The lease row stays locked until COMMIT.
_FINISH: Final = """
    WITH moved AS (
      UPDATE integration_position SET number = %(number)s, clock = greatest(clock, %(clock)s), updated_at = clock_timestamp(),
        tick_count = tick_count + %(ticks)s, message_id = coalesce(%(position_message_id)b, message_id),
        snapshot = coalesce(%(snapshot)b, snapshot), snapshot_number = coalesce(%(snapshot_number)s, snapshot_number)
       WHERE id = %(position)s AND number = %(number)s - 1 RETURNING id
    ), stored AS (
      INSERT INTO integration_batch (id, position_id, number, is_release, clock, ts_received, ts_processed, reference_version,
        message_count, tick_count, rejected_count, parked_count, duplicate_count, last_message_id, payload, extras)
      SELECT %(batch)s, id, %(number)s, %(is_release)s, %(clock)s, %(ts_received)s, %(ts_processed)s, %(reference_version)s,
        %(messages)s, %(ticks)s, %(rejected)s, %(parked)s, %(duplicates)s, %(message_id)b, %(payload)b, %(extras)b FROM moved
      RETURNING pg_notify('mdi_batch', '')
    )
    SELECT epoch, (SELECT count(*) FROM stored), nextval('integration_batch_id_seq') FROM integration_lease WHERE name = %(lease)s FOR UPDATE
"""


def _finish(outcome: Outcome, facts: BatchFacts, payload: bytes, snapshot: bytes, ts_processed: int) -> int:
    """Move the position, make the batch row, lock the lease; give the id of the next batch."""
    values = {
        "number": facts.number, "clock": facts.clock, "ticks": counted_ticks(outcome.ticks, facts.reference),
        "position_message_id": facts.last_message_id or None, "snapshot": snapshot or None,
        "snapshot_number": facts.number - 1 if snapshot else None, "position": facts.position_id, "batch": facts.batch_id,
        "is_release": bool(facts.released), "ts_received": facts.ts_received, "ts_processed": ts_processed,
        "reference_version": facts.reference.version, "messages": outcome.message_count, "rejected": len(outcome.refused),
        "parked": len(outcome.parked), "duplicates": outcome.duplicate_count, "message_id": facts.last_message_id,
        "payload": payload, "extras": pack_extras(outcome), "lease": facts.lease.name,
    }  # fmt: skip
    with binary_cursor() as cursor:
        cursor.execute(_FINISH, values, prepare=True)
        epoch, stored, next_id = cursor.fetchone() or (None, 0, 0)
    if epoch != facts.lease.epoch:
        raise FencedError(f"lease {facts.lease.name} has moved on, was epoch {facts.lease.epoch}, is {epoch}")
    if stored != 1:
        raise FencedError(f"position {facts.position_id} is no longer at batch {facts.number - 1}")
    return int(next_id)
