"""The consumer's loop over one topic partition: receive, process, record, adopt, acknowledge. What may go wrong is handled here, once.

| raised | done |
|---|---|
| `RetriableError`, the database is away | forget the state, back off, try the same messages again; nothing is acknowledged |
| `FencedError` | forget the state, give the messages back: another process owns the partition |
| anything else, from one message or release | that event is quarantined as `internal`; its neighbours flow |
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from django.conf import settings
from django.db import DataError, IntegrityError, connection
from django.db import Error as DatabaseError
from psycopg.errors import CheckViolation

from integration import lease as leases
from integration import metrics, services, storage
from integration.clock_watch import ClockWatch, mark_skew
from integration.lease import HeldLease
from integration.market import errors
from integration.market.errors import FencedError, RetriableError
from integration.market.ticks import QUOTE, TRADE, UNREADABLE, Decoded, Mask, Message, Rejection, Ticks
from integration.models import Position, QuarantinedEvent, Subscription
from integration.pipeline import Outcome, PartitionState, Request, Slots, adopt, process
from integration.poison import InFlight, find_poison
from integration.read_ahead import Chunk, ReadAhead, count_messages
from integration.reasons import NOT_RELEASABLE
from integration.recording import Recorder
from integration.reference import ReferenceCache
from integration.slices import SliceMap
from integration.sources import TickSource
from integration.storage import BatchFacts, Checkpoint, reach_nothing
from integration.timeline import current_timeline
from integration.watermark import Watermark, pause_words, watermark

log = structlog.get_logger(__name__)

SECOND_NS: Final = 1_000_000_000
# A message published this long ago has surely been delivered to a consumer that found nothing waiting.
_SETTLED_NS: Final = SECOND_NS // 2
_CLOCK_STEP_NS: Final = 60 * SECOND_NS
# Publish times are those of whichever broker owned the partition: their clocks may differ by this much.
_BROKER_CLOCKS_NS: Final = 60 * SECOND_NS
_CLOCK_RUNS_ON_NS: Final = 26 * 3_600 * SECOND_NS
_WAIT_S: Final = 0.2
_CHECK_EVERY_S: Final = 1.0
_ABANDONED_S: Final = 5.0
_RELEASE_ROWS: Final = 1_000
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Owned:
    """What is held while a partition is ours: the lease, the position as of our last commit, and what must be remembered."""

    lease: HeldLease
    position: Position
    state: PartitionState
    snapshot_number: int
    next_batch_id: int
    lanes_tried_at: int = 0


@dataclass
class PartitionWorker:
    """Consumes one topic partition until told to stop. One thread, one database connection."""

    topic: str
    partition: str
    source: TickSource
    slots: Slots
    references: ReferenceCache
    in_flight: InFlight
    holder: str
    batch_messages: int
    bar_grace_ns: int
    stop: threading.Event
    now_ns: Callable[[], int] = time.time_ns
    reached: Checkpoint = reach_nothing
    owned: Owned | None = None
    pending: list[Chunk] = field(default_factory=list)
    failures: int = 0
    slices: tuple[SliceMap, SliceMap] = field(default_factory=lambda: (SliceMap("trade"), SliceMap("quote")))
    last_tick_ns: int = 0
    checked_at: float = 0.0
    is_paused: bool = False
    disk: Watermark = field(default_factory=watermark)
    clocks: ClockWatch = field(default_factory=ClockWatch)
    record_folder: Path | None = field(
        default_factory=lambda: Path(settings.MDI.record_dir) if settings.MDI.record_dir else None
    )
    failed: bool = False
    reader: ReadAhead = field(init=False)

    def __post_init__(self) -> None:
        """Read through the worker's own source and decoder."""
        self.reader = ReadAhead(self.source, self.slots.decode, self.in_flight, self.batch_messages)

    @property
    def has_work(self) -> bool:
        """Whether messages were read that are not stored."""
        return bool(self.pending or self.reader.waiting)

    def run(self) -> None:
        """Consume until `stop` is set, then give the partition up cleanly."""
        while not self.stop.is_set():
            self.step()
        self.close()

    def step(self) -> None:
        """Do one round: what is due beside the stream, then one batch or, when idle, the clock."""
        try:
            self._round()
            self.failures = 0
        except FencedError as problem:
            log.warning("partition moved to another consumer", partition=self.partition, reason=str(problem))
            self._forget()
            self._give_back()
            self.stop.wait(_WAIT_S)
        except (RetriableError, DatabaseError) as problem:
            self._back_off(problem)

    def close(self) -> None:
        """Stop reading and hand the lease back."""
        self.reader.close()
        if self.owned is not None:
            with suppress(DatabaseError):
                leases.release(self.owned.lease)
        self._forget()

    # -- one round ----------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._check()
        if self.is_paused:
            self.stop.wait(_WAIT_S)
            return
        if not self.pending:
            self.reader.read(_WAIT_S)
            self.pending = self.reader.take()
        self.reached("after_receive")
        if self.pending:
            self._own()  # may give everything back
        if self.pending:
            self._consume(self.pending)
            done, self.pending = self.pending, []
            self.reader.acknowledge(done)
            self.reached("after_acknowledge")
        elif self.owned is not None:
            self._tick_clock()

    def _check(self) -> None:
        """Once a second: was the subscription paused, did someone release events, can a lane move on."""
        if time.monotonic() - self.checked_at < _CHECK_EVERY_S:
            return
        self.checked_at = time.monotonic()
        if self.clocks.look(self.now_ns(), time.monotonic_ns()):
            log.warning("our clock was set", partition=self.partition)
            mark_skew(
                "our clock was set: bars are closed by messages alone until one shows that it agrees with the broker's"
            )
        was_paused = self.is_paused
        # The disk first: a PostgreSQL without room may not answer.
        self.is_paused = self._is_disk_full() or Subscription.objects.filter(topic=self.topic, is_paused=True).exists()
        if self.is_paused and not was_paused:
            self._give_back()
        if self.is_paused:
            return
        if was_paused:
            self.clocks.resumed()
        if self.owned is None and (self._is_asked_to_release() or self._is_on_another_history()):
            # No message has come that would show whose partition this is: serve it unless another consumer does.
            lease = leases.acquire_if_stale(self.partition, self.holder, stale_after_s=_ABANDONED_S)
            self.owned = self._taken(lease) if lease else None
        if self.owned is not None:
            leases.renew(self.owned.lease)
            self._release_requested()
            self._release_lanes()

    def _is_disk_full(self) -> bool:
        was_low = self.disk.is_low
        short = self.disk.look()
        if short and not was_low:
            log.error(pause_words(*short[0]), partition=self.partition)
        elif was_low and not short:
            log.info("resumed: disk", partition=self.partition)
        return bool(short)

    def _watch_clocks(self, outcome: Outcome, request: Request) -> None:
        """Pause the topic, with nothing of this batch stored, when a source's clock has been set; RetriableError then."""
        future = Counter(item.rejection.source for item in outcome.refused if item.rejection.code == errors.FUTURE)
        if request.is_release or not (future or self.clocks.recent):
            return
        ids, stored = np.unique(outcome.ticks.source_id, return_counts=True)
        totals = future + Counter(
            {request.reference.code_of(pk): n for pk, n in zip(ids.tolist(), stored.tolist(), strict=True)}
        )
        source = self.clocks.stepping({code: (total, future[code]) for code, total in totals.items()})
        if source:
            words = f"paused: clock, most events of {source} are from the future; nothing is lost, resume when it is decided"
            services.pause_for(topic=self.topic, reason=words)
            self.checked_at = 0.0
            raise RetriableError(words, code="clock_step")

    def _is_on_another_history(self) -> bool:
        """Whether a quiet partition must be read again: no new message would come to say so."""
        known = Position.objects.filter(partition=self.partition).exclude(timeline="")
        timeline = known.values_list("timeline", flat=True).first()
        return timeline is not None and timeline != current_timeline()

    def _is_asked_to_release(self) -> bool:
        requested = QuarantinedEvent.State.RELEASE_REQUESTED
        return QuarantinedEvent.objects.filter(position__partition=self.partition, state=requested).exists()

    def _own(self) -> Owned:
        if self.owned is None:
            self.owned = self._taken(leases.acquire(self.partition, self.holder))
            self._release_lanes()
        return self.owned

    def _taken(self, lease: HeldLease) -> Owned:
        position = storage.open_position(self.partition, Subscription.objects.get(topic=self.topic))
        self._follow_timeline(position)
        state = storage.load_state(position, self.references.current(), self.slots)
        log.info("partition taken", partition=self.partition, epoch=lease.epoch, number=position.number)
        return Owned(lease, position, state, position.snapshot_number, storage.next_batch_id())

    def _follow_timeline(self, position: Position) -> None:
        """On another history of the database read again what it may have lost; what it has not is known by identity."""
        timeline = current_timeline()
        if position.timeline == timeline:
            return
        if position.timeline:
            log.warning(
                "the database is on another history: reading again", partition=self.partition, since=position.clock
            )
            self.pending = []
            self.reader.rewind(position.clock - _BROKER_CLOCKS_NS)
        self.reached("after_rewind")
        Position.objects.filter(pk=position.pk).update(timeline=timeline)
        position.timeline = timeline

    def _forget(self) -> None:
        """Throw away all that was remembered, and the connection whose transaction may be in any state."""
        self.owned = None
        for slices in self.slices:
            slices.starts.clear()
            slices.ends.clear()
        with suppress(DatabaseError):
            connection.close()

    def _give_back(self) -> None:
        self.pending = []
        self.reader.reopen()

    def _back_off(self, problem: Exception) -> None:
        wait = _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.failures += 1
        log.warning(
            "degraded",
            partition=self.partition,
            error=str(problem).strip(),
            retry_in_s=wait,
            waiting=count_messages(self.pending),
        )
        self._forget()
        for chunk in self.pending:
            chunk.forget()
        self.stop.wait(wait)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _consume(self, chunks: list[Chunk]) -> None:
        """Store chunks in order: what was decoded well together, the others by themselves."""
        for is_decoded, group in groupby(chunks, key=lambda chunk: chunk.decoded is not None):
            run = list(group)
            if is_decoded:
                self._consume_decoded(run)
                continue
            for chunk in run:
                if chunk.is_suspect:
                    self._consume_suspects(chunk.messages)
                else:
                    self._consume_or_split(chunk.messages, self.slots)

    def _consume_decoded(self, chunks: list[Chunk]) -> None:
        messages = [message for chunk in chunks for message in chunk.messages]
        starts = accumulate((len(chunk.messages) for chunk in chunks), initial=0)
        parts = [(start, chunk.decoded) for start, chunk in zip(starts, chunks, strict=False) if chunk.decoded]
        decoded = Decoded.join(parts)
        self._consume_or_split(messages, replace(self.slots, decode=lambda _: decoded), self.slots)

    def _consume_suspects(self, messages: list[Message]) -> None:
        """These messages ended earlier processes: find which, store the good ones, quarantine the bad ones, in order."""
        bad = set(find_poison(messages, self.slots.decode))
        self.in_flight.done()
        for run in _runs(len(messages), bad):
            part = [messages[at] for at in run]
            slots = self._rejecting(errors.POISON, "decoding it ended the process") if run[0] in bad else self.slots
            self._consume_or_split(part, slots)

    def _consume_or_split(self, messages: list[Message], slots: Slots, for_parts: Slots | None = None) -> None:
        """Process and store; when a stage of ours raises, find the message it raises for and quarantine that alone."""
        for_parts = for_parts or slots
        try:
            self._store(messages, self._request(messages), slots)
        except Exception as problem:
            if _is_not_of_the_data(problem):
                raise
            log.exception("a stage failed", partition=self.partition, messages=len(messages))
            half = len(messages) // 2
            if half == 0:
                words = f"{type(problem).__name__}: {problem}"
                self._store(messages, self._request(messages), self._rejecting(errors.INTERNAL, words))
                return
            self._consume_or_split(messages[:half], for_parts)
            self._consume_or_split(messages[half:], for_parts)

    def _request(self, messages: Sequence[Message]) -> Request:
        return Request(
            self.topic,
            messages,
            self.references.current(),
            trust_time=self._agrees(messages[-1].ts_publish),
        )

    def _agrees(self, ts_publish: int) -> bool:
        agrees = self.clocks.agrees(ts_publish, self.now_ns())
        if not agrees:
            ahead = (ts_publish - self.now_ns()) / SECOND_NS
            mark_skew(f"the broker's clock is {ahead:.0f} s ahead of ours: time rules only flag")
        return agrees

    def _store(
        self, messages: Sequence[Message], request: Request, slots: Slots, released: tuple[int, ...] = ()
    ) -> Outcome:
        owned = self._own()
        started = time.perf_counter()
        outcome = process(
            request,
            owned.state,
            slots,
            lambda wanted: storage.find_stored(owned.position.pk, request.reference, wanted),
            self._unroutable,
        )
        self._watch_clocks(outcome, request)
        processed = time.perf_counter()
        facts = BatchFacts(
            batch_id=owned.next_batch_id,
            position_id=owned.position.pk,
            number=owned.position.number + 1,
            lease=owned.lease,
            reference=request.reference,
            ts_received=messages[-1].ts_received if messages else self.now_ns(),
            clock=owned.position.clock if released else max(owned.position.clock, outcome.clock),
            last_message_id=b"" if released else next((m.message_id for m in reversed(messages) if m.message_id), b""),
            released=released,
        )
        Recorder(self.record_folder, self.partition).write(facts.number, request, owned.state.lanes, outcome)
        self._commit(outcome, facts)
        if len(outcome.ticks):
            self.last_tick_ns = self.now_ns()
        if outcome.parked:
            owned.lanes_tried_at = 0
        self._count(outcome, {"process": processed - started, "record": time.perf_counter() - processed})
        return outcome

    def _commit(self, outcome: Outcome, facts: BatchFacts) -> None:
        owned = self._own()
        snapshot = b""
        if facts.number - 1 - owned.snapshot_number >= storage.SNAPSHOT_EVERY:
            snapshot = storage.pack_snapshot(owned.state, self.slots)
        owned.next_batch_id = storage.record(
            outcome, facts, snapshot, self.now_ns, self.reached, meanwhile=self.reader.read_more
        )
        # Only now: an exception above leaves the state as it was before the batch, and it is thrown away.
        adopt(owned.state, outcome)
        owned.position.number, owned.position.clock = facts.number, facts.clock
        owned.snapshot_number = facts.number - 1 if snapshot else owned.snapshot_number

    def _unroutable(self, ticks: Ticks) -> Mask:
        """Make the slices that ticks need; true for those that got none."""
        mask = np.zeros(len(ticks), np.bool_)
        for slices, kind in zip(self.slices, (TRADE, QUOTE), strict=True):
            here = np.flatnonzero(ticks.kind == kind)
            if len(here):
                times = ticks.ts_event[here]
                mask[here] = np.isin(times, slices.ensure(times))
        return mask

    def _count(self, outcome: Outcome, seconds: dict[str, float]) -> None:
        metrics.record_batch(
            self.topic, len(outcome.ticks), len(outcome.refused), outcome.duplicate_count, len(outcome.parked), seconds
        )
        for item in outcome.refused + outcome.parked:
            metrics.record_quarantined(item.rejection.code, 1)

    def _rejecting(self, code: str, words: str) -> Slots:
        """Give slots that read nothing and reject every message for one reason."""

        def reject(messages: Sequence[Message]) -> Decoded:
            return self._all_rejected(messages, code, words)

        return replace(self.slots, decode=reject)

    def _all_rejected(self, messages: Sequence[Message], code: str, words: str) -> Decoded:
        none = np.zeros(0, np.int32)
        rejections = [
            Rejection(
                at, code, words, channel=UNREADABLE, session=UNREADABLE, sequence=self.slots.digest(bytes(message.data))
            )
            for at, message in enumerate(messages)
        ]
        return Decoded(Ticks.zeros(0), none, none, none, [], [], [], rejections=rejections)

    # -- the clock ----------------------------------------------------------------------------------------------------

    def _tick_clock(self) -> None:
        """When nothing waits: say so with an empty batch each time the clock passes a minute's end, so that bars can close."""
        if self.clocks.in_doubt:
            return
        owned = self._own()
        settled = self.now_ns() - _SETTLED_NS
        if self.last_tick_ns == 0:
            self.last_tick_ns = owned.position.clock
        if settled - self.last_tick_ns > _CLOCK_RUNS_ON_NS:
            return
        before, after = ((clock - self.bar_grace_ns) // _CLOCK_STEP_NS for clock in (owned.position.clock, settled))
        if after > before:
            empty = Request(self.topic, (), self.references.current())
            outcome = process(empty, owned.state, self._rejecting("", ""), lambda _: [])
            outcome.clock = settled
            self._commit(
                outcome,
                BatchFacts(
                    batch_id=owned.next_batch_id,
                    position_id=owned.position.pk,
                    number=owned.position.number + 1,
                    lease=owned.lease,
                    reference=empty.reference,
                    ts_received=self.now_ns(),
                    clock=settled,
                ),
            )

    # -- releases -----------------------------------------------------------------------------------------------------

    def _release_requested(self) -> None:
        """Run events that an operator released through the same flow, in order, with the reason they were refused for waived."""
        owned = self._own()
        waiting = owned.position.quarantined.filter(state=QuarantinedEvent.State.RELEASE_REQUESTED).order_by("id")
        rows = list(waiting[:_RELEASE_ROWS])
        for run in _same_code(rows):
            code = run[0].code
            if code in NOT_RELEASABLE:
                ids = [row.pk for row in run]
                QuarantinedEvent.objects.filter(pk__in=ids).update(state=QuarantinedEvent.State.QUARANTINED)
            else:
                self._release(run, frozenset({code}))

    def _release_lanes(self) -> None:
        """When reference data changed, let parked events flow whose instrument has a name now, before newer ones of that key."""
        owned = self._own()
        reference = self.references.current()
        if not owned.state.lanes or owned.lanes_tried_at == reference.version:
            return
        for source, instrument in sorted(owned.state.lanes):
            if instrument in reference.aliases:
                self._drain_lane(source, instrument)
        owned.lanes_tried_at = reference.version

    def _drain_lane(self, source: str, instrument: str) -> None:
        owned = self._own()
        lane = owned.position.quarantined.filter(
            state=QuarantinedEvent.State.PARKED, source=source, instrument=instrument
        )
        last = 0
        while rows := list(lane.filter(pk__gt=last).order_by("id")[:_RELEASE_ROWS]):
            last = rows[-1].pk
            self._release(rows, frozenset())
        # What still has no name at its time stays parked, but no longer holds up newer events that have one.
        owned.state.lanes.discard((source, instrument))

    def _release(self, rows: list[QuarantinedEvent], waived: frozenset[str]) -> None:
        """Release events; one for which a stage of ours raises goes back to the quarantine alone."""
        try:
            self._release_with(self.slots, rows, waived)
        except Exception as problem:
            if _is_not_of_the_data(problem):
                raise
            log.exception("a stage failed on a release", partition=self.partition, events=len(rows))
            half = len(rows) // 2
            if half == 0:
                self._release_with(
                    self._rejecting(errors.INTERNAL, f"{type(problem).__name__}: {problem}"), rows, waived
                )
                return
            self._release(rows[:half], waived)
            self._release(rows[half:], waived)

    def _release_with(self, slots: Slots, rows: list[QuarantinedEvent], waived: frozenset[str]) -> None:
        messages = [Message(bytes(row.raw), row.ts_publish, row.ts_received) for row in rows]
        request = Request(self.topic, messages, self.references.current(), is_release=True, waived=waived)
        outcome = self._store(messages, request, slots, tuple(row.pk for row in rows))
        log.info(
            "released", partition=self.partition, events=len(rows), stored=len(outcome.ticks), refused=len(outcome.refused),
            parked=len(outcome.parked), duplicates=outcome.duplicate_count,
        )  # fmt: skip


def _is_not_of_the_data(problem: Exception) -> bool:
    """Whether to back off and try the same again: no event is to blame. A value that PostgreSQL refuses is the event's."""
    if _is_of_a_slice(problem):
        return True
    if isinstance(problem, (DataError, IntegrityError)):
        return False
    return isinstance(problem, (RetriableError, FencedError, DatabaseError))


def _is_of_a_slice(problem: Exception) -> bool:
    """Whether a tick found no slice: an archived day's was dropped behind our map of slices, which the next try makes anew."""
    cause = problem.__cause__
    return isinstance(cause, CheckViolation) and cause.diag.table_name in ("integration_trade", "integration_quote")


def _runs(count: int, bad: set[int]) -> list[list[int]]:
    """Split 0..count-1 into runs of good positions and single bad ones, in order."""
    runs: list[list[int]] = []
    for at in range(count):
        if at in bad or not runs or runs[-1][-1] in bad:
            runs.append([at])
        else:
            runs[-1].append(at)
    return runs


def _same_code(rows: list[QuarantinedEvent]) -> list[list[QuarantinedEvent]]:
    runs: list[list[QuarantinedEvent]] = []
    for row in rows:
        if runs and runs[-1][0].code == row.code:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
