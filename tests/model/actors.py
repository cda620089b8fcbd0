"""Our processes as automata: the real loop is run from a known start of a round, with the answers it has had, up to its next request.

So a loop's whole state is (start of the round, answers since): equal states are equal values, and every transition of the real
code is run once, however many schedules contain it.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple, cast

from config.pipeline import build
from distribution.publishers import PulsarPublisher
from integration import consumer as consumer_module
from integration import pipeline
from integration import sequencing as sequencing_module
from integration.consumer import Owned, PartitionWorker
from integration.lease import HeldLease
from integration.market.errors import FatalError
from integration.market.identity import KnownIdentities
from integration.market.reference import Reference
from integration.market.ticks import Message
from integration.models import SequencerState
from integration.pipeline import PartitionState
from integration.poison import InFlight
from integration.read_ahead import Chunk
from integration.reference import ReferenceCache
from integration.sequencer import Outgoing, Sequencer
from integration.sequencing import Active, SequencerLoop
from integration.slices import SliceMap
from integration.sources import PulsarSource
from integration.watermark import Watermark
from tests.e2e.events import SECOND, TOPIC, TS, reference, trade
from tests.model.seam import SAID, Everywhere, FakeClient, FakeProducer, InMemoryInFlight, RawMessage, position_of
from tests.model.world import OUTPUTS, PositionRow, Raw, Request

consumer: Any = consumer_module  # by what the seams have put into it
sequencing: Any = sequencing_module
MINUTE: Final = 60 * SECOND
GRACE_NS: Final = 2 * SECOND
# What is published: name -> (sequence, instrument, second of the minute). A name with a mark is the same event sent again.
EVENTS: Final = {"a": (1, "AAA.SIMX", 1), "b": (2, "AAA.SIMX", 2), "c": (3, "BBB.SIMX", 3), "d": (4, "AAA.SIMX", 4)}


@cache
def event_bytes(name: str) -> bytes:
    """Write an event; with a mark ' it is the same, sent again."""
    sequence, instrument, second = EVENTS[name.rstrip("'")]
    return trade(sequence, price=10 + sequence, instrument=instrument, ts=TS + second * SECOND)


@lru_cache(maxsize=1)
def facts() -> Reference:
    """Compile the reference data once."""
    return reference()


class References:
    """Stands for the cache: one version for ever."""

    def current(self) -> Reference:
        return facts()


class _NextRequest(BaseException):
    """Ends a run at the first request that has no answer yet; no rule of the loops may catch it."""


def _run(act: Callable[[], None], answers: Sequence[Any]) -> tuple[str, Any]:
    """Run until the next request, to the end, or until the process gives up: ("ask", request), ("done", None), ("died", why)."""
    left = list(answers)
    asked: list[Request] = []

    def answer(request: Request) -> Any:
        if asked:
            raise _NextRequest  # what is cleaned up on the way out asks nobody
        if not left:
            asked.append(request)
            raise _NextRequest
        return left.pop(0)

    SAID.answer = answer
    try:
        act()
    except _NextRequest:
        return "ask", asked[0]
    except FatalError as problem:
        return ("ask", asked[0]) if asked else ("died", str(problem))
    return ("ask", asked[0]) if asked else ("done", None)


class ChunkKey(NamedTuple):
    """A chunk: its messages, which entry of the source's list its last message is (-1: none), whether it is decoded."""

    raws: tuple[Raw, ...]
    received: int
    is_decoded: bool


class ConsumerKey(NamedTuple):
    """A worker between two rounds."""

    is_subscribed: bool = False
    received: tuple[Raw, ...] = ()
    pending: tuple[ChunkKey, ...] = ()
    waiting: tuple[ChunkKey, ...] = ()
    owned: tuple[Any, ...] = ()  # epoch, position row, identities, screen, snapshot number, next batch id


FIRST_ROUND: Final = ConsumerKey()


@dataclass
class ConsumerActor:
    """One partition's worker in one process. `mutant` builds a mistake in."""

    process: int
    at: int
    connection: int
    now_ns: int = TS + 10 * SECOND
    mutant: str = ""
    snapshot_every: int = 1_000
    limit: int = 3
    start: Any = FIRST_ROUND
    slots: pipeline.Slots = field(default_factory=build)

    def run(self, key: ConsumerKey, answers: tuple[Any, ...]) -> tuple[str, Any]:
        """Run a round from its start with the answers given so far."""
        SAID.mutant = self.mutant
        made: dict[int, Raw] = {}
        worker = self._worker(key, made)
        consumer.storage.SNAPSHOT_EVERY = self.snapshot_every
        with ExitStack() as stack:
            if self.mutant in MUTATIONS:
                MUTATIONS[self.mutant](worker, stack, made)
            what, request = _run(worker.step, answers)
        return (what, self._key(worker, made)) if what == "done" else (what, request)

    def _worker(self, key: ConsumerKey, made: dict[int, Raw]) -> PartitionWorker:
        partition = f"partition-{self.at}"
        client = FakeClient(self.process, self._raw, self.limit)
        source = _NotingSource(client, partition, "integration", "model")
        source.made = made
        worker = PartitionWorker(
            topic=TOPIC,
            partition=partition,
            source=source,
            slots=self.slots,
            references=cast("ReferenceCache", References()),
            in_flight=cast("InFlight", InMemoryInFlight()),
            holder=str(self.process),
            batch_messages=self.limit,
            bar_grace_ns=GRACE_NS,
            stop=cast("threading.Event", _NeverStops()),
            now_ns=lambda: self.now_ns,
            slices=(cast("SliceMap", Everywhere("trade")), cast("SliceMap", Everywhere("quote"))),
            checked_at=float("inf"),
            disk=Watermark((), 0),
        )
        if key.is_subscribed:
            source._consumer = client_consumer(client, self.at)
        lasts: list[Message] = []
        for raw in key.received:
            message = self._message(raw)
            made[id(message)] = raw
            source.kept.append(message)
            lasts.append(message)
            source._received.append((message, self._raw(raw)))
        worker.pending = [self._chunk(chunk, lasts, source, worker) for chunk in key.pending]
        worker.reader.waiting = [self._chunk(chunk, lasts, source, worker) for chunk in key.waiting]
        worker.reader._messages = sum(len(chunk.messages) for chunk in worker.reader.waiting)
        worker.owned = self._owned(key.owned)
        return worker

    def _owned(self, key: tuple[Any, ...]) -> Owned | None:
        if not key:
            return None
        epoch, row, identities, screen, snapshot_number, next_id = key
        state = PartitionState(KnownIdentities.load(identities), self.slots.unpack_screen_state(screen))
        return Owned(
            HeldLease(f"partition-{self.at}", epoch), position_of(self.at, row), state, snapshot_number, next_id
        )

    def _raw(self, raw: Raw) -> RawMessage:
        return RawMessage(raw, event_bytes(raw[0]), TS // 1_000_000 + 5_000)

    def _message(self, raw: Raw) -> Message:
        made = self._raw(raw)
        return Message(made.data(), made.publish_timestamp() * 1_000_000, TS, made.serialize())

    def _chunk(self, key: ChunkKey, lasts: list[Message], source: "_NotingSource", worker: PartitionWorker) -> Chunk:
        messages = [self._message(raw) for raw in key.raws]
        if key.received >= 0:
            messages[-1] = lasts[key.received]
        for message, raw in zip(messages, key.raws, strict=True):
            source.made[id(message)] = raw
            source.kept.append(message)
        return Chunk(messages, worker.slots.decode(messages) if key.is_decoded else None)

    def _key(self, worker: PartitionWorker, made: dict[int, Raw]) -> ConsumerKey:
        source = cast("_NotingSource", worker.source)
        received = [message for message, _ in source._received]

        def chunks(these: Sequence[Chunk]) -> tuple[ChunkKey, ...]:
            keys = []
            for chunk in these:
                entry = next((at for at, last in enumerate(received) if last is chunk.messages[-1]), -1)
                raws = tuple(made[id(message)] for message in chunk.messages)
                # What has been through the flow carries marks of it, and must be decoded anew.
                assert chunk.decoded is None or not chunk.decoded.ticks.source_id.any(), "a used chunk is kept"
                keys.append(ChunkKey(raws, entry, chunk.decoded is not None))
            return tuple(keys)

        return ConsumerKey(
            source._consumer is not None,
            tuple(raw.raw for _, raw in source._received),
            chunks(worker.pending),
            chunks(worker.reader.waiting),
            self._owned_key(worker.owned),
        )

    def _owned_key(self, owned: Owned | None) -> tuple[Any, ...]:
        if owned is None:
            return ()
        position = owned.position
        assert not owned.state.lanes
        assert not owned.state.statuses
        row = PositionRow(position.number, position.clock, bytes(position.message_id), b"", 0)
        screen = self.slots.pack_screen_state(owned.state.screen)
        identities = owned.state.identities.dump()
        return owned.lease.epoch, row, identities, screen, owned.snapshot_number, owned.next_batch_id


class _NotingSource(PulsarSource):
    """The real source; notes which message is which, by the object."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made: dict[int, Raw] = {}
        self.kept: list[Message] = []  # ids of objects are only good while these live

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        consumer_ = self._open()
        served: list[RawMessage] = []
        take = consumer_.receive

        def noting(timeout_millis: int) -> RawMessage:
            served.append(take(timeout_millis))
            return served[-1]

        consumer_.receive = noting
        consumer_.limit = min(limit, consumer_.limit)
        try:
            messages = super().receive(limit, wait_s)
        finally:
            consumer_.receive = take
        self.kept += messages
        self.made.update(zip(map(id, messages), (raw.raw for raw in served), strict=True))
        return messages


class _NeverStops:
    """An event that is never set, and waits for nothing."""

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        return False


def client_consumer(client: FakeClient, at: int) -> Any:
    """Give the client's consumer as it was after an earlier subscribe."""
    from tests.model.seam import FakeConsumer

    return FakeConsumer(at, client.process, client.make, client.limit)


# -- mistakes, built in from outside ----------------------------------------------------------------------------------


def _acknowledge_first(worker: PartitionWorker, stack: ExitStack, made: dict[int, Raw]) -> None:
    consume = worker._consume

    def mutant(chunks: list[Chunk]) -> None:
        worker.reader.acknowledge(chunks)
        consume(chunks)

    worker._consume = mutant  # type: ignore[method-assign]


def _skip_by_message_id(worker: PartitionWorker, stack: ExitStack, made: dict[int, Raw]) -> None:
    consume = worker._consume

    def mutant(chunks: list[Chunk]) -> None:
        last = int(bytes(worker._own().position.message_id) or b"-1")
        kept = [Chunk([m for m in chunk.messages if made[id(m)][1] > last]) for chunk in chunks]
        consume([chunk for chunk in kept if chunk.messages])

    worker._consume = mutant  # type: ignore[method-assign]


def _adopt_before_commit(worker: PartitionWorker, stack: ExitStack, made: dict[int, Raw]) -> None:
    record = consumer.storage.record

    def mutant(outcome: Any, *rest: Any, **options: Any) -> int:
        assert worker.owned is not None
        pipeline.adopt(worker.owned.state, outcome)
        return int(record(outcome, *rest, **options))

    consumer.storage.record = mutant
    stack.callback(setattr, consumer.storage, "record", record)
    worker._forget = lambda: SAID.ask("close")  # type: ignore[method-assign]


def _acknowledge_newest(worker: PartitionWorker, stack: ExitStack, made: dict[int, Raw]) -> None:
    """Acknowledge all that was received, what was read ahead too."""
    source = cast("_NotingSource", worker.source)
    acknowledge = source.acknowledge

    def mutant(last: Message) -> None:
        if source._received:
            acknowledge(source._received[-1][0])

    source.acknowledge = mutant  # type: ignore[method-assign]


MUTATIONS: Final[dict[str, Callable[[PartitionWorker, ExitStack, dict[int, Raw]], None]]] = {
    "acknowledge_first": _acknowledge_first,
    "skip_by_message_id": _skip_by_message_id,
    "adopt_before_commit": _adopt_before_commit,
    "acknowledge_newest": _acknowledge_newest,
}


# -- the sequencer ----------------------------------------------------------------------------------------------------


class SequencerKey(NamedTuple):
    """A sequencer between two rounds."""

    active: tuple[Any, ...] = ()  # lease epoch, snapshot, number, unsent, must resend
    producers: tuple[tuple[str, int], ...] = ()  # topic, known number
    has_client: bool = False


FIRST_STANDBY: Final = SequencerKey()


@dataclass
class SequencerActor:
    """One sequencer and its publisher."""

    process: int
    connection: int
    checkpoints: bool = False
    mutant: str = ""
    start: Any = FIRST_STANDBY

    def run(self, key: SequencerKey, answers: tuple[Any, ...]) -> tuple[str, Any]:
        """Run a round from its start with the answers given so far."""
        SAID.mutant = self.mutant
        loop = self._loop(key)
        if self.mutant == "mark_first":
            _mark_first(loop)
        what, request = _run(loop.step, answers)
        return (what, self._key(loop)) if what == "done" else (what, request)

    def _loop(self, key: SequencerKey) -> SequencerLoop:
        client = FakeClient(self.process, lambda raw: RawMessage(raw, b"", 0), 0)
        publisher = PulsarPublisher(lambda: client, dict(zip(OUTPUTS, OUTPUTS, strict=True)))
        publisher._client = client if key.has_client else None
        publisher._producers = {(topic, 1): (FakeProducer(topic, known), known) for topic, known in key.producers}
        loop = SequencerLoop(
            str(self.process), publisher, facts, dict(zip(OUTPUTS, OUTPUTS, strict=True)), GRACE_NS, 1.0, lambda: False, lambda _: None,
        )  # fmt: skip
        if key.active:
            epoch, snapshot, number, unsent, must_resend = key.active
            sequencer = Sequencer(epoch=1, load=_load_bars, reference=facts, grace_ns=GRACE_NS)
            sequencer.restore(snapshot)
            state = cast("SequencerState", _Counter(number))
            due = float("-inf") if self.checkpoints else float("inf")
            loop.active = Active(
                HeldLease("sequencer", epoch), sequencer, state, list(unsent), must_resend, float("-inf"), due
            )
        return loop

    def _key(self, loop: SequencerLoop) -> SequencerKey:
        publisher = cast("PulsarPublisher", loop.publisher)
        producers = tuple(sorted((topic, known) for (topic, _), (_, known) in publisher._producers.items()))
        active = loop.active
        if active is None:
            return SequencerKey((), producers, publisher._client is not None)
        unsent: tuple[Outgoing, ...] = tuple(active.unsent)
        held = (active.lease.epoch, active.sequencer.snapshot(), active.state.pub_seq, unsent, active.must_resend)
        return SequencerKey(held, producers, publisher._client is not None)


@dataclass
class _Counter:
    pub_seq: int
    epoch: int = 1


def _load_bars(keys: Any) -> Any:
    return sequencing.outbox.load_bars(keys)


def _mark_first(loop: SequencerLoop) -> None:
    """Build in: messages are marked as sent before they are."""
    publish = loop.publisher.publish

    def mutant(messages: Sequence[Outgoing], epoch: int) -> None:
        sequencing.outbox.mark_sent(messages, {}, epoch)
        publish(messages, epoch)

    loop.publisher.publish = mutant  # type: ignore[method-assign]
