"""The sequencer's loop: takes committed batches, stores what the fold gives in one transaction, then publishes and marks.

Order of safety: a number is stored before it is sent, and sent before it is marked. What was sent and not marked is sent again
with the same sequence id, which the broker drops.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final, Protocol

import numpy as np
import structlog
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.utils import timezone

from integration import lease as leases
from integration import metrics
from integration.bars import Bar, BarKey
from integration.canary import canary_topic, mark_canary
from integration.lease import HeldLease
from integration.market.errors import FencedError, RetriableError
from integration.market.gaps import GapChanges
from integration.market.reference import Reference
from integration.models import Gap, OutgoingMessage, SequencerState
from integration.rows import unpack_payload
from integration.sequencer import ECHO_TOPIC, CommittedBatch, Outgoing, Sequenced, Sequencer, tick_message, without_payload
from integration.storage import Checkpoint, binary_cursor, read_extras

log = structlog.get_logger(__name__)

LEASE: Final = "sequencer"
BATCHES_PER_ROUND: Final = 64
TICKS_PER_ROUND: Final = 200_000
CHECKPOINT_EVERY_S: Final = 5.0
RENEW_EVERY_S: Final = 1.0
_RESEND_ROWS: Final = 200
_IDLE_S: Final = 0.25
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_EPOCH_DAY: Final = date(1970, 1, 1)


class Publisher(Protocol):
    """Sends messages in order and returns when the broker has stored every one of them."""

    def publish(self, messages: Sequence[Outgoing], epoch: int) -> None:
        """Send; RetriableError when it is not certain that all were stored, FatalError when they cannot be."""
        ...

    def close(self) -> None:
        """Give up all connections."""
        ...


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
                f"SELECT {_BATCH_COLUMNS}, b.pub_seq {_BATCH_FROM} WHERE b.pub_seq > %s ORDER BY b.pub_seq LIMIT %s", [after, BATCHES_PER_ROUND]
            )
            rows = cursor.fetchall()
            if not rows:
                return
            yield from (_committed(row[:-1]) for row in rows)
            after = rows[-1][-1]


def _within(batches: Iterable[CommittedBatch]) -> list[CommittedBatch]:
    """Take batches up to the number of ticks that one transaction should hold."""
    taken, ticks = [], 0
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


_BAR_COLUMNS: Final = (
    "instrument_id", "source_id", "timeframe", "start", "end", "session_date", "open", "high", "low", "close", "volume", "turnover",
    "trade_count", "first_ts", "last_ts", "revision", "reason", "is_partial", "is_final",
)  # fmt: skip
_BAR_TABLE_COLUMNS: Final = ", ".join(f'"{name}"' for name in _BAR_COLUMNS)


def load_bars(keys: Sequence[BarKey]) -> list[Bar]:
    """Give the latest stored revision of each key that has one."""
    if not keys:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT DISTINCT ON (instrument_id, timeframe, source_id, start) {_BAR_TABLE_COLUMNS} FROM integration_bar
             WHERE (instrument_id, source_id, timeframe, start) IN (SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::bigint[]))
             ORDER BY instrument_id, timeframe, source_id, start, revision DESC
            """,
            [list(column) for column in zip(*keys, strict=True)],
        )
        return [_bar(dict(zip(_BAR_COLUMNS, row, strict=True))) for row in cursor.fetchall()]


def _bar(row: dict[str, Any]) -> Bar:
    return Bar(
        **{
            **row,
            "session_date": (row["session_date"] - _EPOCH_DAY).days,
            "volume": int(row["volume"].scaleb(9)),
            "turnover": int(row["turnover"].scaleb(18)),
        }
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def write_round(done: Sequence[Sequenced], state: SequencerState, topics: dict[str, str], lease: HeldLease, checkpoint: bytes) -> None:
    """Store a round of folded batches in the transaction that is open; FencedError when another sequencer has moved the counter."""
    with binary_cursor() as cursor:
        _number_batches(cursor, done)
        _write_bars(cursor, done)
        _write_messages(cursor, done, topics, state.epoch)
        for sequenced in done:
            _write_gaps(sequenced.gaps)
        cursor.execute(
            "UPDATE integration_sequencerstate SET pub_seq = %s, checkpoint = coalesce(%b, checkpoint),"
            " checkpoint_pub_seq = coalesce(%s, checkpoint_pub_seq) WHERE id = 1 AND pub_seq = %s AND epoch = %s",
            [done[-1].pub_seq, checkpoint or None, done[-1].pub_seq if checkpoint else None, done[0].pub_seq - 1, state.epoch],
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
    rows = [_bar_row(bar, item.pub_seq) for item in done for bar in (*item.bars, *item.held)]
    if not rows:
        return
    cursor.executemany(
        f"INSERT INTO integration_bar ({_BAR_TABLE_COLUMNS}, pub_seq) VALUES ({', '.join(['%s'] * (len(_BAR_COLUMNS) + 1))})"
        # A bar without a price yet is held as revision 0 and may be held again with more volume.
        " ON CONFLICT (instrument_id, timeframe, source_id, start, revision) DO UPDATE SET volume = excluded.volume,"
        " turnover = excluded.turnover, trade_count = excluded.trade_count, pub_seq = excluded.pub_seq WHERE integration_bar.revision = 0",
        rows,
    )


def _bar_row(bar: Bar, pub_seq: int) -> list[Any]:
    values = {name: getattr(bar, name) for name in _BAR_COLUMNS}
    values |= {
        "session_date": _EPOCH_DAY + timedelta(days=bar.session_date),
        "volume": bar.volume_decimal,
        "turnover": bar.turnover_decimal,
    }
    return [*values.values(), pub_seq]


def _write_messages(cursor: Any, done: Sequence[Sequenced], topics: dict[str, str], epoch: int) -> None:
    rows = [
        (topics[message.topic], epoch, message.number, item.pub_seq, message.key, message.head or without_payload(message).payload)
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
        Gap.objects.filter(source_id=source_id, channel=channel, session=session, first=first, last=last, state=Gap.State.OPEN).update(
            state=Gap.State.FILLED, closed_at=timezone.now()
        )
    Gap.objects.bulk_create(
        [
            Gap(source_id=source_id, channel=channel, session=session, first=first, last=last)
            for source_id, channel, session, first, last in changes.opened
        ]
    )


# -- the loop ---------------------------------------------------------------------------------------------------------


@dataclass
class SequencerLoop:
    """Numbers and publishes while it holds the lease; waits as a standby while another does."""

    holder: str
    publisher: Publisher
    reference: Callable[[], Reference]
    topics: dict[str, str]
    grace_ns: int
    standby_after_s: float
    should_stop: Callable[[], bool]
    sleep: Callable[[float], Any] = time.sleep
    reached: Checkpoint = lambda point: None
    lease: HeldLease | None = None
    sequencer: Sequencer | None = None
    state: SequencerState | None = None
    unsent: list[Outgoing] = field(default_factory=list)
    must_resend: bool = True
    renewed_at: float = 0.0
    checkpoint_at: float = 0.0
    failures: int = 0

    def run(self) -> None:
        """Sequence until told to stop, then give the lease back."""
        while not self.should_stop():
            self.step()
        self.close()

    def step(self) -> None:
        """Do one round: take over if need be, number what is committed, publish what is numbered."""
        try:
            if self.lease is None and not self._take_over():
                self.sleep(_IDLE_S)
                return
            did_number = self._number()
            did_publish = self._publish()
            self.failures = 0
            if not (did_number or did_publish):
                self._wait()
        except FencedError as problem:
            log.warning("another sequencer took over", reason=str(problem))
            self._forget()
        except (RetriableError, DatabaseError) as problem:
            self._back_off(problem)

    def close(self) -> None:
        """Hand the lease back and give up all connections."""
        if self.lease is not None:
            with suppress(DatabaseError):
                leases.release(self.lease)
        self.publisher.close()
        self._forget()

    def _take_over(self) -> bool:
        self.lease = leases.acquire_if_stale(LEASE, self.holder, stale_after_s=self.standby_after_s)
        if self.lease is None:
            return False
        self.state = SequencerState.objects.get(pk=1)
        self.sequencer = Sequencer(epoch=self.state.epoch, load=load_bars, reference=self.reference, grace_ns=self.grace_ns)
        if self.state.checkpoint:
            self.sequencer.restore(bytes(self.state.checkpoint))
        for batch in numbered_batches(self.state.checkpoint_pub_seq):
            # What it gives was stored the first time; only the state is wanted.
            self.sequencer.fold(batch)
            self.sequencer.settle()
        self.must_resend, self.unsent = True, []
        self.renewed_at = self.checkpoint_at = time.monotonic()
        log.info("sequencing", epoch=self.lease.epoch, pub_seq=self.state.pub_seq)
        return True

    def _number(self) -> bool:
        """Fold and store the batches that wait."""
        assert self.lease is not None and self.sequencer is not None and self.state is not None
        started = time.perf_counter()
        batches = unnumbered_batches(BATCHES_PER_ROUND)
        if not batches:
            self._renew()
            return False
        self.reached("before_numbering")
        try:
            with transaction.atomic():
                done = [self.sequencer.fold(batch) for batch in batches]
                write_round(done, self.state, self.topics, self.lease, self._checkpoint())
                self.reached("before_sequencer_commit")
        except Exception:
            # The fold has moved on and the transaction has not: both must be loaded again.
            self._forget()
            raise
        self.sequencer.settle()
        self.state.pub_seq = done[-1].pub_seq
        self.unsent += [message for item in done for message in item.messages]
        self.reached("after_sequencer_commit")
        metrics.record_sequenced(
            len(done), sum(item.tick_count for item in done), sum(len(item.bars) for item in done), time.perf_counter() - started
        )
        return True

    def _checkpoint(self) -> bytes:
        assert self.sequencer is not None
        if time.monotonic() - self.checkpoint_at < CHECKPOINT_EVERY_S:
            return b""
        self.checkpoint_at = time.monotonic()
        return self.sequencer.snapshot()

    def _renew(self) -> None:
        if self.lease is not None and time.monotonic() - self.renewed_at > RENEW_EVERY_S:
            leases.renew(self.lease)
            self.renewed_at = time.monotonic()

    def _publish(self) -> bool:
        """Send what is stored and not marked: from memory when it is all there, else from the table."""
        assert self.state is not None
        from_table = self.must_resend
        messages = stored_messages(self.topics, _RESEND_ROWS) if from_table else self.unsent
        # Until these are known to be out, the table is the only list that is complete.
        self.must_resend = True
        if messages:
            self.publisher.publish(messages, self.state.epoch)
            self.reached("after_publish")
            self._mark(messages)
            self._renew()
        self.must_resend = from_table and len(messages) == _RESEND_ROWS
        self.unsent = []
        return bool(messages)

    def _mark(self, messages: Sequence[Outgoing]) -> None:
        assert self.state is not None
        highest: dict[str, int] = {}
        for message in messages:
            highest[message.topic] = max(message.number, highest.get(message.topic, 0))
        with connection.cursor() as cursor:
            for topic, number in highest.items():
                cursor.execute(
                    "UPDATE integration_outgoingmessage SET sent_at = clock_timestamp()"
                    " WHERE sent_at IS NULL AND topic = %s AND epoch = %s AND number <= %s",
                    [self.topics[topic], self.state.epoch, number],
                )
        metrics.record_published(len(messages), sum(len(message.payload) for message in messages))
        echoes = [message.payload for message in messages if message.topic == ECHO_TOPIC]
        if echoes:
            import msgspec

            mark_canary(msgspec.json.decode(echoes[-1])["ts_event"])

    def _wait(self) -> None:
        """Sleep until a consumer says that it has committed, or a moment has passed."""
        with connection.cursor() as cursor:
            cursor.execute("LISTEN mdi_batch")
        for _ in connection.connection.notifies(timeout=_IDLE_S, stop_after=1):
            return

    def _forget(self) -> None:
        self.lease = self.sequencer = self.state = None
        self.unsent, self.must_resend = [], True
        with suppress(DatabaseError):
            connection.close()

    def _back_off(self, problem: Exception) -> None:
        wait = _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.failures += 1
        log.warning("degraded", error=str(problem).strip(), retry_in_s=wait)
        if isinstance(problem, DatabaseError):
            self._forget()
        self.sleep(wait)


def stored_messages(topics: dict[str, str], limit: int) -> list[Outgoing]:
    """Give the oldest messages that are not marked as sent, with their payloads built again."""
    names = {topic: name for name, topic in topics.items()}
    waiting = OutgoingMessage.objects.filter(sent_at=None).order_by("id")[:limit]
    return [_rebuilt(row, names[row.topic]) for row in waiting]


def _rebuilt(row: OutgoingMessage, name: str) -> Outgoing:
    payload = bytes(row.payload)
    if name != "ticks":
        return Outgoing(name, row.number, row.key, payload)
    with binary_cursor() as cursor:
        cursor.execute("SELECT id, payload FROM integration_batch WHERE pub_seq = %s", [row.pub_seq])
        batch_id, stored = cursor.fetchone()
    message = tick_message(unpack_payload(stored), payload, batch_id, row.pub_seq, row.epoch)
    return Outgoing(name, row.number, row.key, message, payload)
