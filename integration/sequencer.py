"""The hot path, second half, as a deterministic fold: committed batches in, numbered streams, bars, gaps and messages out.

No Django, no clock, no I/O: the time is each batch's `clock`, stored bars come through `load`, what corrections need through `records`. The same batches in the same order
give the same output bytes, so that a restart folds the batches since the last checkpoint again and goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from integration.bars import Bar, BarBuilder, BarKey, Load
from integration.corrections import Amendment, Corrections, NoRecords, Records
from integration.market.bar_events import Reason, Timeframe
from integration.market.events import BarEvent, encode_bar, encode_numbered_ticks
from integration.market.gaps import GapChanges, GapTracker
from integration.market.reference import Reference
from integration.market.sessions import SessionTable
from integration.market.ticks import Ticks

TICKS_TOPIC: Final = "ticks"
BARS_TOPIC: Final = "bars"
ECHO_TOPIC: Final = "echo"
# About 3 MB: a broker takes 5 MiB at most, and a batch may hold more than one message of input.
TICKS_PER_MESSAGE: Final = 32_768
_VERSION: Final = 1

DeliveredRow = tuple[int, int, str, int, int, int, int, int, int, int]


@dataclass(slots=True, frozen=True)
class CommittedBatch:
    """A batch as a consumer stored it."""

    id: int
    partition: int
    clock: int
    ts_received: int
    ticks: Ticks
    identities: npt.NDArray[np.int64]  # rows of source, channel, session, sequence, ts_event: events without a tick row
    delivered: Sequence[DeliveredRow] = ()
    is_canary: bool = False


@dataclass(slots=True, frozen=True)
class Outgoing:
    """A message to publish: `number` is its sequence id on the topic. `head` is what must be stored to build `payload` again."""

    topic: str
    number: int
    key: str
    payload: bytes
    head: bytes = b""


@dataclass(slots=True)
class Sequenced:
    """What one batch came to. With `amendments` the state after it must be stored with it: to fold it again needs bars as they were."""

    pub_seq: int
    batch_id: int
    tick_count: int
    bars: list[Bar]
    held: list[Bar]
    gaps: GapChanges
    messages: list[Outgoing]
    amendments: list[Amendment] = field(default_factory=list)
    clock: int = 0


@dataclass(slots=True)
class _Numbers:
    """The running numbers: batches, messages by topic, and each instrument's ticks and bars."""

    pub_seq: int = 0
    messages: dict[str, int] = field(default_factory=dict)
    ticks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bars: dict[int, int] = field(default_factory=dict)

    def next_message(self, topic: str) -> int:
        self.messages[topic] = self.messages.get(topic, 0) + 1
        return self.messages[topic]

    def next_bar(self, instrument_id: int) -> int:
        self.bars[instrument_id] = self.bars.get(instrument_id, 0) + 1
        return self.bars[instrument_id]


class _Checkpoint(msgspec.Struct):
    version: int
    pub_seq: int
    messages: dict[str, int]
    ticks: bytes
    bars: dict[int, int]
    gaps: dict[str, Any]
    builder: bytes
    waiting: list[Amendment] = []


class Sequencer:
    """The fold. One writer: after any failure outside, make a new one and `restore` it."""

    def __init__(
        self,
        *,
        epoch: int,
        load: Load,
        reference: Callable[[], Reference],
        grace_ns: int,
        records: Records | None = None,
    ) -> None:
        self.epoch = epoch
        self._reference = reference
        self._load = load
        records = records or NoRecords()
        self._corrections = Corrections(records)
        self._builder = BarBuilder(
            load=load, sessions_of=self._sessions_of, grace_ns=grace_ns, load_minutes=records.minute_bars
        )
        self._numbers = _Numbers()
        self._gaps = GapTracker()
        self._delivered: dict[BarKey, Bar] = {}

    @property
    def pub_seq(self) -> int:
        """The number of the newest batch folded."""
        return self._numbers.pub_seq

    def begin_epoch(self, epoch: int) -> None:
        """Number everything that goes out from 1 again, under a new epoch; the order of batches goes on."""
        self.epoch = epoch
        self._numbers = _Numbers(self._numbers.pub_seq)

    def fold(self, batch: CommittedBatch) -> Sequenced:
        """Number a batch and give everything that must be stored with it and published after it."""
        self._numbers.pub_seq += 1
        if batch.is_canary:
            return self._fold_canary(batch)
        messages = []
        for start in range(0, len(batch.ticks), TICKS_PER_MESSAGE):
            head = self._number_ticks(batch.ticks.instrument_id, start)
            payload = tick_message(batch.ticks, head, batch.id, self.pub_seq, self.epoch)
            messages.append(Outgoing(TICKS_TOPIC, self._numbers.next_message(TICKS_TOPIC), "", payload, head))
        # Clients get the ticks as they came, bars what corrections and cancels have made of them.
        resolved = self._corrections.resolve(batch.ticks, self.pub_seq)
        folded = self._builder.fold(resolved.ticks, batch.clock, batch.partition, resolved.amended)
        amendments = resolved.amendments
        if folded.incomplete:
            amendments = self._corrections.give_up(amendments, folded.incomplete)
        bars = folded.bars + [self._deliver(row) for row in batch.delivered]
        messages += [self._bar_message(bar, batch) for bar in bars]
        return Sequenced(
            self.pub_seq, batch.id, len(batch.ticks), bars, folded.held, self._follow_gaps(batch), messages, amendments, batch.clock
        )  # fmt: skip

    def settle(self) -> None:
        """Say that everything given so far is written, so that `load` sees it."""
        self._builder.settle()
        self._corrections.settle()
        self._delivered.clear()

    def snapshot(self) -> bytes:
        """Write the whole state; equal states give equal bytes."""
        numbers = self._numbers
        return msgspec.msgpack.encode(
            _Checkpoint(
                _VERSION, numbers.pub_seq, dict(sorted(numbers.messages.items())), numbers.ticks.tobytes(), dict(sorted(numbers.bars.items())),
                self._gaps.dump(), self._builder.snapshot(), self._corrections.waiting,
            )
        )  # fmt: skip

    def restore(self, data: bytes) -> None:
        """Read what `snapshot` wrote; ValueError when it is of another version."""
        stored = msgspec.msgpack.decode(data, type=_Checkpoint)
        if stored.version != _VERSION:
            raise ValueError(f"a checkpoint of this version cannot be read, was {stored.version}")
        self._numbers = _Numbers(
            stored.pub_seq, stored.messages, np.frombuffer(stored.ticks, np.int64).copy(), stored.bars
        )
        self._gaps = GapTracker.load(stored.gaps)
        self._builder.restore(stored.builder)
        self._corrections.restore(stored.waiting)
        self._delivered.clear()

    # -- parts of fold ------------------------------------------------------------------------------------------------

    def _sessions_of(self, instrument_id: int) -> SessionTable:
        reference = self._reference()
        facts = reference.instruments.get(instrument_id)
        table = reference.sessions.get(facts.venue) if facts is not None else None
        return table if isinstance(table, SessionTable) else SessionTable.of_unknown("none")

    def _fold_canary(self, batch: CommittedBatch) -> Sequenced:
        payload = msgspec.json.encode(
            {"batch": batch.id, "ts_event": int(batch.ticks.ts_event.max()) if len(batch.ticks) else 0}
        )
        messages = (
            [Outgoing(ECHO_TOPIC, self._numbers.next_message(ECHO_TOPIC), "", payload)] if len(batch.ticks) else []
        )
        return Sequenced(self.pub_seq, batch.id, 0, [], [], GapChanges(), messages)

    def _number_ticks(self, instrument_ids: npt.NDArray[np.int32], start: int) -> bytes:
        """Give the instruments of one message their next numbers; the answer is where it starts in the batch, and the first number of each."""
        instrument_id = instrument_ids[start : start + TICKS_PER_MESSAGE]
        counts = np.bincount(instrument_id, minlength=len(self._numbers.ticks))
        if len(counts) > len(self._numbers.ticks):
            self._numbers.ticks = np.pad(self._numbers.ticks, (0, len(counts) - len(self._numbers.ticks)))
        present = np.flatnonzero(counts)
        first = self._numbers.ticks[present] + 1
        self._numbers.ticks[: len(counts)] += counts
        return np.concatenate(([start], present, first)).astype("<i8").tobytes()

    def _follow_gaps(self, batch: CommittedBatch) -> GapChanges:
        ticks, others = batch.ticks, batch.identities
        return self._gaps.fold(
            batch.partition,
            batch.clock,
            np.r_[ticks.source_id, others[:, 0]],
            np.r_[ticks.channel, others[:, 1]],
            np.r_[ticks.session, others[:, 2]],
            np.r_[ticks.sequence, others[:, 3]],
        )

    def _deliver(self, row: DeliveredRow) -> Bar:
        """Take a bar that upstream built: the next revision of its key, in a series of its own beside the bars that we build.

        Its source id is negative, so that a source that sends both trades and bars keeps both apart.
        """
        instrument_id, source_id, timeframe, start, session_date, opened, high, low, close, volume = row
        key = BarKey(instrument_id, -source_id, timeframe, start)
        before = self._delivered.get(key) or next(iter(self._load([key])), None)
        _, ends = self._sessions_of(instrument_id).bar_starts(np.array([start], np.int64), timeframe)
        bar = Bar(
            instrument_id, -source_id, timeframe, start, int(ends[0]), session_date, opened, high, low, close, volume, 0, 0, start, start,
            before.revision + 1 if before else 1, "delivered",
        )  # fmt: skip
        self._delivered[key] = bar
        return bar

    def _bar_message(self, bar: Bar, batch: CommittedBatch) -> Outgoing:
        reference = self._reference()
        facts = reference.instruments.get(bar.instrument_id)
        # A withdrawn bar counts no trade for clients; volume without a price is told again when there is one.
        amounts = (bar.volume, bar.turnover, bar.trade_count) if bar.has_price else (0, 0, 0)
        volume, turnover, trade_count = amounts
        source = "consolidated" if bar.source_id == 0 else reference.code_of(abs(bar.source_id))
        event = BarEvent(
            instrument_id=bar.instrument_id, symbol=facts.symbol if facts else "", source_id=bar.source_id, source=source,
            timeframe=cast("Timeframe", bar.timeframe), start=bar.start, session_date=bar.session_date, open=bar.open, high=bar.high, low=bar.low,
            close=bar.close, adjusted_close=bar.close, volume=volume, turnover=turnover, trade_count=trade_count,
            revision=bar.revision, reason=cast("Reason", bar.reason), sequence=self._numbers.next_bar(bar.instrument_id), epoch=self.epoch,
            timestamp=batch.clock, is_partial=bar.is_partial, is_final=bar.is_final,
            processing_time_ms=max(0.0, (batch.ts_received - bar.last_ts) / 1e6) if bar.has_price else 0.0,
        )  # fmt: skip
        return Outgoing(BARS_TOPIC, self._numbers.next_message(BARS_TOPIC), str(bar.instrument_id), encode_bar(event))


def tick_message(ticks: Ticks, head: bytes, batch_id: int, pub_seq: int, epoch: int) -> bytes:
    """Build an `integrated/ticks` message of a batch from its stored ticks, where it starts in them, and each instrument's first number."""
    numbers = np.frombuffer(head, "<i8")
    start, (present, first) = int(numbers[0]), numbers[1:].reshape(2, -1)
    if len(ticks) > TICKS_PER_MESSAGE:
        ticks = ticks.take(np.arange(start, min(start + TICKS_PER_MESSAGE, len(ticks))))
    order = np.argsort(ticks.instrument_id, kind="stable")
    ids = ticks.instrument_id[order]
    starts = np.searchsorted(ids, present)
    sequences = np.empty(len(ticks), np.int64)
    sequences[order] = np.arange(len(ticks)) + np.repeat(first - starts, np.diff(np.r_[starts, len(ticks)]))
    epochs = np.full(len(ticks), epoch, np.int32)
    return encode_numbered_ticks(
        ticks, epochs=epochs, sequences=sequences, batch=batch_id, pub_seq=pub_seq, epoch=epoch
    )


def without_payload(message: Outgoing) -> Outgoing:
    """Give the message as it is stored: a tick message keeps its head, the batch row has the rest."""
    return replace(message, payload=b"") if message.head else message
