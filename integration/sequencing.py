"""The sequencer's loop: takes committed batches, stores what the fold gives in one transaction, then publishes and marks.

Order of safety: a number is stored before it is sent, and sent before it is marked. What was sent and not marked is sent again
with the same sequence id, which the broker drops.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog
from django.db import Error as DatabaseError
from django.db import connection, transaction

from integration import lease as leases
from integration import metrics, outbox
from integration.canary import mark_canary
from integration.corrections import INCOMPLETE, Records
from integration.lease import HeldLease
from integration.market.errors import FencedError, RetriableError
from integration.market.reference import Reference
from integration.models import SequencerState
from integration.records import StoredRecords, lake_trades
from integration.sequencer import ECHO_TOPIC, Outgoing, Sequenced, Sequencer
from integration.storage import Checkpoint, reach_nothing
from integration.timeline import current_timeline

log = structlog.get_logger(__name__)

LEASE: Final = "sequencer"
BATCHES_PER_ROUND: Final = 64
CHECKPOINT_EVERY_S: Final = 5.0
RENEW_EVERY_S: Final = 1.0
RESEND_ROWS: Final = 200
_IDLE_S: Final = 0.25
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Publisher(Protocol):
    """Sends messages in order and returns when the broker has stored every one of them."""

    def publish(self, messages: Sequence[Outgoing], epoch: int) -> None:
        """Send; RetriableError when it is not certain that all were stored, FatalError when they cannot be."""
        ...

    def close(self) -> None:
        """Give up all connections."""
        ...


@dataclass(slots=True)
class Active:
    """What is held while we are the sequencer. `unsent` is complete unless `must_resend`: then the table is."""

    lease: HeldLease
    sequencer: Sequencer
    state: SequencerState
    unsent: list[Outgoing] = field(default_factory=list)
    must_resend: bool = True
    renewed_at: float = field(default_factory=time.monotonic)
    checkpoint_at: float = field(default_factory=time.monotonic)


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
    reached: Checkpoint = reach_nothing
    records: Records = field(default_factory=lambda: StoredRecords(lake_trades))
    active: Active | None = None
    failures: int = 0

    def run(self) -> None:
        """Sequence until told to stop, then give the lease back."""
        while not self.should_stop():
            self.step()
        self.close()

    def step(self) -> None:
        """Do one round: take over if need be, number what is committed, publish what is numbered."""
        try:
            active = self.active or self._take_over()
            if active is None:
                self.sleep(_IDLE_S)
                return
            did_number = self._number(active)
            did_publish = self._publish(active)
            self.failures = 0
            if not (did_number or did_publish):
                _wait_for_batches()
        except FencedError as problem:
            log.warning("another sequencer took over", reason=str(problem))
            self._forget()
        except (RetriableError, DatabaseError) as problem:
            self._back_off(problem)

    def close(self) -> None:
        """Hand the lease back and give up all connections."""
        if self.active is not None:
            with suppress(DatabaseError):
                leases.release(self.active.lease)
        self.publisher.close()
        self._forget()

    def _take_over(self) -> Active | None:
        lease = leases.acquire_if_stale(LEASE, self.holder, stale_after_s=self.standby_after_s)
        if lease is None:
            return None
        state, _ = SequencerState.objects.get_or_create(pk=1)
        sequencer = Sequencer(
            epoch=state.epoch, load=outbox.load_bars, reference=self.reference, grace_ns=self.grace_ns, records=self.records
        )  # fmt: skip
        if state.checkpoint:
            sequencer.restore(bytes(state.checkpoint))
        for batch in outbox.numbered_batches(state.checkpoint_pub_seq):
            # What it gives was stored the first time; only the state is wanted.
            sequencer.fold(batch)
            sequencer.settle()
        if (timeline := current_timeline()) != state.timeline:
            _begin_history(state, sequencer, timeline)
        self.active = Active(lease, sequencer, state)
        log.info("sequencing", epoch=lease.epoch, pub_seq=state.pub_seq)
        return self.active

    def _number(self, active: Active) -> bool:
        """Fold and store the batches that wait."""
        started = time.perf_counter()
        batches = outbox.unnumbered_batches(BATCHES_PER_ROUND)
        if not batches:
            _renew(active)
            return False
        self.reached("before_numbering")
        checkpoint_due = time.monotonic() - active.checkpoint_at > CHECKPOINT_EVERY_S
        try:
            with transaction.atomic():
                done = [active.sequencer.fold(batch) for batch in batches]
                # Amended bars are made from stored ones, which will be others by the next start: it must find the state behind them.
                checkpoint_due |= any(item.amendments for item in done)
                checkpoint = active.sequencer.snapshot() if checkpoint_due else b""
                outbox.write_round(done, active.state, self.topics, active.lease, checkpoint)
                self.reached("before_sequencer_commit")
        except Exception:
            # The fold has moved on and the transaction has not: both must be loaded again.
            self._forget()
            raise
        active.sequencer.settle()
        active.state.pub_seq = done[-1].pub_seq
        active.checkpoint_at = time.monotonic() if checkpoint_due else active.checkpoint_at
        active.unsent += [message for item in done for message in item.messages]
        self.reached("after_sequencer_commit")
        ticks, bars = sum(item.tick_count for item in done), sum(len(item.bars) for item in done)
        _tell_amendments(done)
        metrics.record_sequenced(len(done), ticks, bars, time.perf_counter() - started)
        return True

    def _publish(self, active: Active) -> bool:
        """Send what is stored and not marked: from memory when it is all there, else from the table."""
        from_table = active.must_resend
        epoch, messages = active.state.epoch, active.unsent
        if from_table:
            epoch, messages = outbox.stored_messages(self.topics, RESEND_ROWS) or (epoch, [])
        # Until these are known to be out, the table is the only list that is complete.
        active.must_resend = True
        if messages:
            self.publisher.publish(messages, epoch)
            self.reached("after_publish")
            outbox.mark_sent(messages, self.topics, epoch)
            _count_published(messages)
            _renew(active)
        active.must_resend = from_table and bool(messages)
        active.unsent = []
        return bool(messages)

    def _forget(self) -> None:
        self.active = None
        with suppress(DatabaseError):
            connection.close()

    def _back_off(self, problem: Exception) -> None:
        wait = _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.failures += 1
        log.warning("degraded", error=str(problem).strip(), retry_in_s=wait)
        if isinstance(problem, DatabaseError):
            self._forget()
        self.sleep(wait)


def _begin_history(state: SequencerState, sequencer: Sequencer, timeline: str) -> None:
    """Follow the database to another history: what was sent on the one before may have used numbers that this one does not know.

    Messages that wait keep their old epoch: their rows are older than where the histories part, so that a repeat is a repeat.
    """
    if state.timeline:
        log.warning("the database is on another history: a new epoch begins", epoch=state.epoch + 1)
        state.epoch += 1
        sequencer.begin_epoch(state.epoch)
    state.timeline, state.checkpoint, state.checkpoint_pub_seq = timeline, sequencer.snapshot(), state.pub_seq
    state.save(update_fields=["epoch", "timeline", "checkpoint", "checkpoint_pub_seq"])


def _renew(active: Active) -> None:
    if time.monotonic() - active.renewed_at > RENEW_EVERY_S:
        leases.renew(active.lease)
        active.renewed_at = time.monotonic()


def _tell_amendments(done: Sequence[Sequenced]) -> None:
    for one in (one for item in done for one in item.amendments if one.state == INCOMPLETE):
        log.error(
            "a correction could not be applied: not all trades of its minute are at hand",
            instrument_id=one.instrument_id, trade_id=one.trade_id, trade_ts=one.trade_ts,
        )  # fmt: skip


def _wait_for_batches() -> None:
    """Sleep until a consumer says that it has committed, or a moment has passed."""
    with connection.cursor() as cursor:
        cursor.execute("LISTEN mdi_batch")
    # The connection's own method: what it raises must be made Django's, or a lost connection ends the process.
    with connection.wrap_database_errors:
        for _ in connection.connection.notifies(timeout=_IDLE_S, stop_after=1):
            return


def _count_published(messages: Sequence[Outgoing]) -> None:
    metrics.record_published(len(messages), sum(len(message.payload) for message in messages))
    echoes = [message.payload for message in messages if message.topic == ECHO_TOPIC]
    if echoes:
        mark_canary(msgspec.json.decode(echoes[-1])["ts_event"])
