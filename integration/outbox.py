"""The sequencer's side of PostgreSQL: reads committed batches and stored bars, writes a round, reads and marks what goes out."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any, Final

import msgspec
import numpy as np
from django.db import connection
from django.utils import timezone

from integration import lease as leases
from integration.bars import Bar, BarKey
from integration.canary import canary_topic
from integration.corrections import Amendment
from integration.lease import HeldLease
from integration.market.errors import FatalError, FencedError
from integration.market.gaps import GapChanges
from integration.models import Gap, OutgoingMessage, SequencerState
from integration.records import BAR_COLUMNS, BAR_SQL, bar_of
from integration.rows import unpack_payload
from integration.sequencer import TICKS_TOPIC, CommittedBatch, Outgoing, Sequenced, tick_message, without_payload
from integration.storage import binary_cursor, read_extras

TICKS_PER_ROUND: Final = 200_000
_READ_ROWS: Final = 64
_EPOCH_DAY: Final = date(1970, 1, 1)


# -- reading ----------------------------------------------------------------------------------------------------------


_BATCH_COLUMNS: Final = "b.id, b.position_id, b.clock, b.ts_received, b.payload, b.extras, s.topic"
_BATCH_FROM: Final = """
  FROM integration_batch b JOIN integration_position p ON p.id = b.position_id JOIN integration_subscription s ON s.id = p.subscription_id
"""


def unnumbered_batches(limit: int) -> list[CommittedBatch]:
    """Give committed batches that have no number yet. Within a partition ids rise, so that id order keeps its order."""
    with binary_cursor() as cursor:
        cursor.execute(f"SELECT {_BATCH_COLUMNS} {_BATCH_FROM} WHERE b.pub_seq IS NULL ORDER BY b.id LIMIT %s", [limit])
        return _within(_committed(row) for row in cursor.fetchall())


def numbered_batches(after: int) -> Iterable[CommittedBatch]:
    """Give the batches numbered above `after`, in order of their numbers."""
    with binary_cursor() as cursor:
        while True:
            cursor.execute(
                f"SELECT {_BATCH_COLUMNS}, b.pub_seq {_BATCH_FROM} WHERE b.pub_seq > %s ORDER BY b.pub_seq LIMIT %s",
                [after, _READ_ROWS],
            )
            rows = cursor.fetchall()
            if not rows:
                return
            yield from (_committed(row[:-1]) for row in rows)
            after = rows[-1][-1]


def _within(batches: Iterable[CommittedBatch]) -> list[CommittedBatch]:
    """Take batches up to the number of ticks that one transaction should hold."""
    taken: list[CommittedBatch] = []
    ticks = 0
    for batch in batches:
        if taken and ticks + len(batch.ticks) > TICKS_PER_ROUND:
            break
        taken.append(batch)
        ticks += len(batch.ticks)
    return taken


def _committed(row: Sequence[Any]) -> CommittedBatch:
    batch_id, partition, clock, ts_received, payload, extras_bytes, topic = row
    extras = read_extras(extras_bytes)
    return CommittedBatch(
        batch_id, partition, clock, ts_received, unpack_payload(payload), np.array(extras.identities, np.int64).reshape(-1, 5),
        extras.bars, topic == canary_topic(),
    )  # fmt: skip


def load_bars(keys: Sequence[BarKey]) -> list[Bar]:
    """Give the latest stored revision of each key that has one."""
    if not keys:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            # only our own column names are put in
            f"""
            SELECT DISTINCT ON (instrument_id, timeframe, source_id, start) {BAR_SQL} FROM integration_bar
             WHERE (instrument_id, source_id, timeframe, start) IN (SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::bigint[]))
             ORDER BY instrument_id, timeframe, source_id, start, revision DESC
            """,  # noqa: S608
            [list(column) for column in zip(*keys, strict=True)],
        )
        return [bar_of(row) for row in cursor.fetchall()]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_round(
    done: Sequence[Sequenced], state: SequencerState, topics: dict[str, str], lease: HeldLease, checkpoint: bytes
) -> None:
    """Store a round of folded batches in the transaction that is open; FencedError when another sequencer has moved the counter."""
    with binary_cursor() as cursor:
        _number_batches(cursor, done)
        _write_bars(cursor, done)
        _write_amendments(cursor, done)
        _write_messages(cursor, done, topics, state.epoch)
        for sequenced in done:
            _write_gaps(sequenced.gaps)
        cursor.execute(
            "UPDATE integration_sequencerstate SET pub_seq = %s, checkpoint = coalesce(%b, checkpoint),"
            " checkpoint_pub_seq = coalesce(%s, checkpoint_pub_seq) WHERE id = 1 AND pub_seq = %s AND epoch = %s",
            [
                done[-1].pub_seq,
                checkpoint or None,
                done[-1].pub_seq if checkpoint else None,
                done[0].pub_seq - 1,
                state.epoch,
            ],
        )
        if cursor.rowcount != 1:
            raise FencedError(f"the counter is no longer at {done[0].pub_seq - 1}")
    leases.confirm(lease)


def _number_batches(cursor: Any, done: Sequence[Sequenced]) -> None:
    cursor.execute(
        "UPDATE integration_batch SET pub_seq = numbered.pub_seq FROM unnest(%s::bigint[], %s::bigint[]) AS numbered (id, pub_seq)"
        " WHERE integration_batch.id = numbered.id AND integration_batch.pub_seq IS NULL",
        [[item.batch_id for item in done], [item.pub_seq for item in done]],
    )
    if cursor.rowcount != len(done):
        raise FencedError(f"{len(done) - cursor.rowcount} of {len(done)} batches were numbered by another sequencer")


def _write_bars(cursor: Any, done: Sequence[Sequenced]) -> None:
    rows = [_bar_row(bar, item) for item in done for bar in (*item.bars, *item.held)]
    if not rows:
        return
    cursor.executemany(
        f"INSERT INTO integration_bar ({BAR_SQL}, pub_seq, ts_published) VALUES ({', '.join(['%s'] * (len(BAR_COLUMNS) + 2))})"  # noqa: S608
        # A bar without a price yet is held as revision 0 and may be held again with more volume.
        " ON CONFLICT (instrument_id, timeframe, source_id, start, revision) DO UPDATE SET volume = excluded.volume,"
        " turnover = excluded.turnover, trade_count = excluded.trade_count, pub_seq = excluded.pub_seq, ts_published = excluded.ts_published WHERE integration_bar.revision = 0",
        rows,
    )
    if cursor.rowcount != len(rows):
        raise FatalError(
            f"{len(rows) - cursor.rowcount} bar revisions exist already and would be lost", code="bar_revision"
        )


def _bar_row(bar: Bar, item: Sequenced) -> list[Any]:
    values = {name: getattr(bar, name) for name in BAR_COLUMNS}
    values |= {
        "session_date": _EPOCH_DAY + timedelta(days=bar.session_date),
        "volume": bar.volume_decimal,
        "turnover": bar.turnover_decimal,
    }
    return [*values.values(), item.pub_seq, item.clock]


# In the order of an Amendment's fields; the trade's source is the amendment's own.
_AMENDMENT_COLUMNS: Final = (*Amendment.__struct_fields__[:-1], "trade_channel", "trade_session", "trade_sequence")


def _write_amendments(cursor: Any, done: Sequence[Sequenced]) -> None:
    rows = [(*msgspec.structs.astuple(one)[:-1], *one.trade[1:]) for item in done for one in item.amendments]
    if rows:
        cursor.executemany(
            f"INSERT INTO integration_amendment ({', '.join(_AMENDMENT_COLUMNS)})"  # noqa: S608
            f" VALUES ({', '.join(['%s'] * len(_AMENDMENT_COLUMNS))})"
            # One that waited is written again when its trade has come.
            " ON CONFLICT (source_id, channel, session, sequence) DO UPDATE SET state = excluded.state, bound_seq = excluded.bound_seq,"
            " trade_ts = excluded.trade_ts, trade_channel = excluded.trade_channel, trade_session = excluded.trade_session,"
            " trade_sequence = excluded.trade_sequence",
            rows,
        )


def _write_messages(cursor: Any, done: Sequence[Sequenced], topics: dict[str, str], epoch: int) -> None:
    rows = [
        (
            topics[message.topic],
            epoch,
            message.number,
            item.pub_seq,
            message.key,
            message.head or without_payload(message).payload,
        )
        for item in done
        for message in item.messages
    ]
    if rows:
        cursor.executemany(
            "INSERT INTO integration_outgoingmessage (topic, epoch, number, pub_seq, key, payload, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %b, clock_timestamp())",
            rows,
        )


def _write_gaps(changes: GapChanges) -> None:
    for source_id, channel, session, first, last in changes.closed:
        Gap.objects.filter(
            source_id=source_id, channel=channel, session=session, first=first, last=last, state=Gap.State.OPEN
        ).update(state=Gap.State.FILLED, closed_at=timezone.now())
    Gap.objects.bulk_create(
        [
            Gap(source_id=source_id, channel=channel, session=session, first=first, last=last)
            for source_id, channel, session, first, last in changes.opened
        ]
    )


# -- sending ----------------------------------------------------------------------------------------------------------


def stored_messages(topics: dict[str, str], limit: int) -> tuple[int, list[Outgoing]] | None:
    """Give the oldest messages of one epoch that are not marked as sent, with their payloads built again; None when all are."""
    names = {topic: name for name, topic in topics.items()}
    waiting = list(OutgoingMessage.objects.filter(sent_at=None).order_by("id")[:limit])
    if not waiting:
        return None
    epoch = waiting[0].epoch
    return epoch, [_rebuilt(row, names[row.topic]) for row in waiting if row.epoch == epoch]


def _rebuilt(row: OutgoingMessage, name: str) -> Outgoing:
    payload = bytes(row.payload)
    if name != TICKS_TOPIC:
        return Outgoing(name, row.number, row.key, payload)
    with binary_cursor() as cursor:
        cursor.execute("SELECT id, payload FROM integration_batch WHERE pub_seq = %s", [row.pub_seq])
        found = cursor.fetchone()
    if found is None:
        raise FatalError(f"the batch of an unsent message is gone, was pub_seq {row.pub_seq}", code="batch_missing")
    batch_id, stored = found
    message = tick_message(unpack_payload(stored), payload, batch_id, row.pub_seq, row.epoch)
    return Outgoing(name, row.number, row.key, message, payload)


def mark_sent(messages: Sequence[Outgoing], topics: dict[str, str], epoch: int) -> None:
    """Note that the broker has stored these messages, and with them all before them on their topics."""
    highest: dict[str, int] = {}
    for message in messages:
        highest[message.topic] = max(message.number, highest.get(message.topic, 0))
    with connection.cursor() as cursor:
        for topic, number in highest.items():
            cursor.execute(
                "UPDATE integration_outgoingmessage SET sent_at = clock_timestamp()"
                " WHERE sent_at IS NULL AND topic = %s AND epoch = %s AND number <= %s",
                [topics[topic], epoch, number],
            )
