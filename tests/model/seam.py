"""Where the code under test meets the model: stand-ins for what `consumer`, `sequencing` and the publisher call outside.

Each asks a `Conversation` and turns the answer into what the real thing would return or raise. `test_contract.py` holds the
stand-ins for storage and leases against the real ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import numpy as np
import pulsar
from django.db import OperationalError

from integration import consumer, read_ahead, sequencing, storage
from integration.bars import Bar, BarKey
from integration.lease import HeldLease
from integration.market.errors import FencedError
from integration.market.identity import Identities, KnownIdentities
from integration.market.reference import Reference
from integration.market.ticks import Column, Message
from integration.models import Position
from integration.pipeline import Outcome, PartitionState, Slots, Stored, StoredTick
from integration.rows import pack_payload, unpack_payload
from integration.sequencer import CommittedBatch, Outgoing, Sequenced, tick_message, without_payload
from integration.slices import SliceMap
from integration.storage import BatchFacts, read_extras
from tests.model.world import BROKEN, FENCED, LOST, BatchRow, PositionRow, Raw, Request, Round

Ask = Callable[[Request], Any]


HISTORY: Final = "one"  # of the database; what another one forces is tried on a real failover


class Conversation:
    """Who answers at the moment; code under test is run by one actor at a time."""

    def __init__(self) -> None:
        self.answer: Ask = _nobody
        self.mutant = ""

    def ask(self, *request: Any) -> Any:
        """Ask, and raise what a lost database connection raises."""
        answer = self.answer(request)
        if answer is LOST or answer == LOST:
            raise OperationalError("the connection is gone")
        return answer


def _nobody(request: Request) -> Any:
    raise AssertionError(f"nobody is asked outside of a run, was {request}")


SAID: Final = Conversation()
ask: Final = SAID.ask
_NO_OTHERS: Final = np.zeros((0, 5), np.int64)


class Everywhere(SliceMap):
    """Slices that are always there."""

    def ensure(self, ts: Column) -> Column:
        return ts[:0]


# -- storage and leases of a consumer ---------------------------------------------------------------------------------


def acquire(name: str, holder: str) -> HeldLease:
    return HeldLease(name, ask("acquire", place(name)))


def place(name: str) -> int:
    """Give the number at the end of a partition's name: the model knows partitions by place."""
    return int(name.rpartition("-")[2])


def open_position(partition: str, subscription: Any) -> Position:
    row: PositionRow = ask("position", place(partition))
    return position_of(place(partition), row)


def position_of(at: int, row: PositionRow) -> Position:
    """Give a row as the model's; it is never saved."""
    return Position(
        id=at + 1, partition=f"partition-{at}", number=row.number, clock=row.clock, message_id=row.message_id, snapshot=row.snapshot,
        snapshot_number=row.snapshot_number, timeline=HISTORY,
    )  # fmt: skip


class Storage:
    """Stands for the module `integration.storage`."""

    SNAPSHOT_EVERY = 1_000
    reach_nothing = staticmethod(storage.reach_nothing)
    pack_snapshot = staticmethod(storage.pack_snapshot)
    open_position = staticmethod(open_position)

    def __init__(self) -> None:
        self.drawn = 0

    def load_state(self, position: Position, reference: Reference, slots: Slots) -> PartitionState:
        rows, self.drawn = ask("load", position.pk - 1, position.snapshot_number)
        state = PartitionState(KnownIdentities(), slots.new_screen_state())
        if position.snapshot:
            snapshot = msgspec.msgpack.decode(bytes(position.snapshot), type=storage._Snapshot)
            state.identities = KnownIdentities.load(snapshot.identities)
            state.screen = slots.unpack_screen_state(snapshot.screen)
        for payload, extras in rows:
            storage._replay(state, unpack_payload(payload), read_extras(extras), reference, slots)
        return state

    def next_batch_id(self) -> int:
        return self.drawn

    def find_stored(self, position_id: int, reference: Reference, wanted: Identities) -> list[Stored]:
        columns = (wanted.source_id, wanted.channel, wanted.session, wanted.sequence)
        keys = tuple(zip(*(column.tolist() for column in columns), strict=True))
        return [StoredTick(content) if content else None for content in ask("stored", keys)]

    def record(
        self,
        outcome: Outcome,
        facts: BatchFacts,
        snapshot: bytes,
        now_ns: Callable[[], int],
        reached: Callable[[str], None] = storage.reach_nothing,
        meanwhile: Callable[[], None] = storage.do_nothing,
    ) -> int:
        reached("before_copy")
        at = facts.position_id - 1
        batch = BatchRow(
            facts.batch_id, at, facts.number, facts.clock, facts.ts_received, pack_payload(outcome.ticks), storage.pack_extras(outcome)
        )  # fmt: skip
        after = PositionRow(
            facts.number, facts.clock, facts.last_message_id, snapshot, facts.number - 1 if snapshot else 0
        )
        answer = ask("finish", at, facts.lease.epoch, batch, after)
        if answer == FENCED:
            raise FencedError("the lease or the position has moved on")
        reached("before_commit")
        # The statement is on its way while the next messages are read; the answer comes after.
        try:
            ask("commit")
        except OperationalError:
            meanwhile()
            raise
        meanwhile()
        reached("after_commit")
        return int(answer)


# -- the broker -------------------------------------------------------------------------------------------------------


class RawMessage:
    """A message as the client hands it over."""

    def __init__(self, raw: Raw, data: bytes, published: int) -> None:
        self.raw, self._data, self._published = raw, data, published

    def data(self) -> bytes:
        return self._data

    def publish_timestamp(self) -> int:
        return self._published

    def message_id(self) -> "RawMessage":
        return self

    def serialize(self) -> bytes:
        return b"%d" % self.raw[1]


class FakeConsumer:
    """A consumer of the client: one request a round of `receive` calls."""

    def __init__(self, at: int, process: int, make: Callable[[Raw], RawMessage], limit: int) -> None:
        self.at, self.process, self.make, self.limit = at, process, make, limit
        self.buffer: list[RawMessage] | None = None

    def receive(self, timeout_millis: int) -> RawMessage:
        if self.buffer is None:
            raws = ask("receive", self.at, self.process, self.limit)
            if raws == BROKEN:
                raise pulsar.ConnectError(pulsar.Result.ConnectError)
            self.buffer = [self.make(raw) for raw in raws]
        if not self.buffer:
            self.buffer = None
            raise pulsar.Timeout(pulsar.Result.Timeout)
        return self.buffer.pop(0)

    def acknowledge_cumulative(self, raw: RawMessage) -> None:
        ask("acknowledge", self.at, self.process, raw.raw[1], raw.raw[2])

    def close(self) -> None:
        ask("unsubscribe", self.at, self.process)


class FakeClient:
    """A client of one process."""

    def __init__(self, process: int, make: Callable[[Raw], RawMessage], limit: int) -> None:
        self.process, self.make, self.limit = process, make, limit

    def subscribe(self, topic: str, *_: Any, **__: Any) -> FakeConsumer:
        ask("subscribe", place(topic), self.process)
        return FakeConsumer(place(topic), self.process, self.make, self.limit)

    def create_producer(self, topic: str, **_: Any) -> "FakeProducer":
        return FakeProducer(topic, ask("producer", topic))

    def close(self) -> None:
        pass


class FakeProducer:
    """A producer of the client; answers a send at once."""

    def __init__(self, topic: str, last: int) -> None:
        self.topic, self.last = topic, last

    def last_sequence_id(self) -> int:
        return self.last

    def send_async(self, payload: bytes, callback: Callable[[Any, Any], None], *, sequence_id: int, **_: Any) -> None:
        answer = ask("send", self.topic, sequence_id, payload)
        entry = SimpleNamespace(entry_id=lambda: -1 if answer == "dropped" else 0)
        callback(pulsar.Result.Timeout if answer == "error" else pulsar.Result.Ok, entry)


# -- the sequencer ----------------------------------------------------------------------------------------------------


class Leases:
    """Stands for the module `integration.lease`; `sequencer` is the place of the sequencer's lease."""

    sequencer = 0
    acquire = staticmethod(acquire)

    def acquire_if_stale(self, name: str, holder: str, *, stale_after_s: float) -> HeldLease | None:
        epoch = ask("acquire_if_stale", self.sequencer)
        return HeldLease(name, epoch) if epoch else None

    def renew(self, lease: HeldLease) -> None:
        if ask("renew", self.sequencer, lease.epoch) == FENCED:
            raise FencedError("the lease has moved on")


class Outbox:
    """Stands for the module `integration.outbox`."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases

    @staticmethod
    def load_bars(keys: Sequence[BarKey]) -> list[Bar]:
        return list(ask("stored_bars", tuple(keys))) if keys else []

    @staticmethod
    def unnumbered_batches(limit: int) -> list[CommittedBatch]:
        rows, highest = ask("unnumbered")
        if SAID.mutant == "read_above_last_id":
            rows = tuple(row for row in rows if row.id > highest)
        return [committed(row) for row in rows[:limit]]

    @staticmethod
    def numbered_batches(after: int) -> list[CommittedBatch]:
        return [] if SAID.mutant == "number_without_marking" else [committed(row) for row in ask("numbered", after)]

    def write_round(
        self, done: Sequence[Sequenced], state: Any, topics: dict[str, str], lease: HeldLease, checkpoint: bytes
    ) -> None:
        what = Round(
            tuple((item.batch_id, item.pub_seq) for item in done),
            tuple(bar for item in done for bar in (*item.bars, *item.held)),
            tuple((without_payload(message), item.pub_seq) for item in done for message in item.messages),
            done[0].pub_seq - 1,
            done[-1].pub_seq,
            checkpoint,
        )
        if ask("write", self.leases.sequencer, lease.epoch, what) == FENCED:
            raise FencedError("another sequencer has moved the counter")

    def stored_messages(self, topics: dict[str, str], limit: int) -> tuple[int, list[Outgoing]] | None:
        made = []
        for message, seq, batch in ask("unsent", limit):
            payload = message.payload
            if message.head:
                payload = tick_message(unpack_payload(batch.payload), message.head, batch.id, seq, 1)
            made.append(Outgoing(message.topic, message.number, message.key, payload, message.head))
        return (1, made) if made else None

    def mark_sent(self, messages: Sequence[Outgoing], topics: dict[str, str], epoch: int) -> None:
        highest: dict[str, int] = {}
        for message in messages:
            highest[message.topic] = max(message.number, highest.get(message.topic, 0))
        ask("mark", tuple(sorted(highest.items())))


def committed(row: BatchRow) -> CommittedBatch:
    """Give a stored batch as the sequencer reads it."""
    others = np.array(read_extras(row.extras).identities, np.int64).reshape(-1, 5) if row.extras else _NO_OTHERS
    return CommittedBatch(row.id, row.partition + 1, row.clock, row.ts_received, unpack_payload(row.payload), others)


@contextmanager
def atomic() -> Iterator[None]:
    """Stand for `transaction.atomic` of a round."""
    yield
    ask("commit_round")


class Rows:
    """Stands for a model's manager: one row, whatever is asked."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.objects = self
        self.give = give

    def get(self, **_: Any) -> Any:
        return self.give()

    def get_or_create(self, **_: Any) -> tuple[Any, bool]:
        return self.give(), False


def sequencer_row() -> SimpleNamespace:
    """Give the sequencer's row."""
    row = ask("counter")
    return SimpleNamespace(
        epoch=1,
        pub_seq=row.pub_seq,
        checkpoint=row.checkpoint,
        checkpoint_pub_seq=row.checkpoint_pub_seq,
        timeline=HISTORY,
    )


class Silent:
    """Takes log lines and measurements, and says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _ignore


def _ignore(*_: Any, **__: Any) -> None:
    return


class InMemoryInFlight:
    """No poison in this model."""

    def begin(self, messages: Sequence[Message]) -> bool:
        return False

    def done(self) -> None:
        return

    def close(self) -> None:
        return


@contextmanager
def seams(few: int = 0) -> Iterator[Leases]:
    """Put the stand-ins in place of what the loops call outside, for the length of a block.

    Below `few` events the reader looks a second time; without that a round has one place less where others may come between.
    """
    leases = Leases()
    database = SimpleNamespace(close=lambda: ask("close"))
    clock = SimpleNamespace(sleep=_ignore, monotonic=lambda: 0.0, perf_counter=lambda: 0.0, time_ns=lambda: 0)
    wanted: list[tuple[Any, dict[str, Any]]] = [
        (
            consumer,
            {"storage": Storage(), "leases": leases, "Subscription": Rows(lambda: None), "connection": database, "log": Silent(), "metrics": Silent(), "current_timeline": lambda: HISTORY},
        ),
        (read_ahead, {"time": clock, "log": Silent(), "_FEW": few}),
        (
            sequencing,
            {
                "outbox": Outbox(leases), "leases": leases, "SequencerState": Rows(sequencer_row), "connection": database, "log": Silent(),
                "metrics": Silent(), "transaction": SimpleNamespace(atomic=atomic), "_wait_for_batches": _ignore, "time": clock,
                "current_timeline": lambda: HISTORY,
            },
        ),
    ]  # fmt: skip
    before = [(module, name, getattr(module, name)) for module, names in wanted for name in names]
    for module, names in wanted:
        for name, value in names.items():
            setattr(module, name, value)
    try:
        yield leases
    finally:
        for module, name, value in before:
            setattr(module, name, value)
