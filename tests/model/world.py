"""The surroundings of the protocol as one immutable value: a broker, a database, and every answer they may give to a request.

No code of ours is in here but the packing of rows; what PostgreSQL really does is held against this by `test_contract.py`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from integration.bars import Bar
from integration.pipeline import CONTENT_COLUMNS
from integration.rows import unpack_payload
from integration.sequencer import Outgoing

Request = tuple[Any, ...]
Raw = tuple[str, int, int]  # event, offset, incarnation of the topic
LOST: Final = "lost"  # the database connection is gone
FENCED: Final = "fenced"
BROKEN: Final = "broken"  # the broker connection is gone


class Session(NamedTuple):
    """A consumer at the broker. One that is not the owner still hands over what it had fetched, below `bound`."""

    next: int
    bound: int = -1


class Partition(NamedTuple):
    """An input partition: what was published, how far it is acknowledged, who is subscribed (by process) and who gets it."""

    log: tuple[str, ...]
    sessions: tuple[Session | None, ...]
    acked: int = 0
    owner: int = -1
    incarnation: int = 0


class LeaseRow(NamedTuple):
    """A lease; `backend` is the connection that took it, while that lives."""

    epoch: int = 0
    backend: int = -1


class PositionRow(NamedTuple):
    """A position row."""

    number: int = 0
    clock: int = 0
    message_id: bytes = b""
    snapshot: bytes = b""
    snapshot_number: int = 0


class BatchRow(NamedTuple):
    """A batch row with its payload and extras as stored."""

    id: int
    partition: int
    number: int
    clock: int
    ts_received: int
    payload: bytes
    extras: bytes


class Round(NamedTuple):
    """What a sequencer's transaction writes."""

    numbers: tuple[tuple[int, int], ...]  # batch id, pub_seq
    bars: tuple[Bar, ...]
    messages: tuple[tuple[Outgoing, int], ...]
    before: int
    after: int
    checkpoint: bytes


class Counter(NamedTuple):
    """The sequencer's row."""

    pub_seq: int = 0
    checkpoint: bytes = b""
    checkpoint_pub_seq: int = 0


class Output(NamedTuple):
    """A topic that we publish to: what it holds, the highest sequence id of our producer name, and whose producer is connected."""

    log: tuple[tuple[int, bytes], ...] = ()
    last: int = 0
    owner: int = -1


class World(NamedTuple):
    """Everything outside of our processes. Connections are numbered: one a worker, one a sequencer."""

    partitions: tuple[Partition, ...]
    leases: tuple[LeaseRow, ...]
    positions: tuple[PositionRow, ...]
    open: tuple[Any, ...]  # by connection: what its transaction has written and not committed
    dead: tuple[bool, ...]  # by connection: ended by the server, and not yet noticed
    epochs: tuple[int, ...]  # by connection: the epoch it was given and has not given up
    ids: tuple[int, ...]  # by connection: the batch id it has drawn and not used
    batches: tuple[BatchRow, ...] = ()
    pub_seqs: tuple[tuple[int, int], ...] = ()  # batch id, number: in order of numbers
    counter: Counter = Counter()
    bars: tuple[Bar, ...] = ()
    messages: tuple[tuple[Outgoing, int, bool], ...] = ()
    outputs: tuple[Output, ...] = (Output(), Output())
    counts_ids: bool = (
        True  # only a sequencer looks at the ids of batches; without one they would only multiply the states
    )


Answer = tuple[Any, World, str]  # what is answered, the world after it, and the name of the fault that this was (or "")
OUTPUTS: Final = ("ticks", "bars")


def new_world(logs: tuple[tuple[str, ...], ...], processes: int, sequencers: int) -> World:
    """Give a world in which everything was published and nothing read."""
    connections = processes * len(logs) + sequencers
    return World(
        tuple(Partition(log, (None,) * processes) for log in logs),
        (LeaseRow(),) * (len(logs) + 1),
        (PositionRow(),) * len(logs),
        (None,) * connections,
        (False,) * connections,
        (0,) * connections,
        (0,) * connections,
        counts_ids=sequencers > 0,
    )


def put(row: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    """Give the tuple with one place replaced."""
    return (*row[:at], value, *row[at + 1 :])


# -- the broker, way in -----------------------------------------------------------------------------------------------


def _with(world: World, at: int, partition: Partition) -> World:
    return world._replace(partitions=put(world.partitions, at, partition))


def handed_to(partition: Partition, process: int) -> Partition:
    """Hand the partition over: the old owner keeps what it has fetched, the new one begins at the first that is not acknowledged."""
    sessions = partition.sessions
    old = partition.owner
    before = sessions[old] if old >= 0 else None
    if before is not None and old != process:
        sessions = put(sessions, old, before._replace(bound=len(partition.log)))
    return partition._replace(sessions=put(sessions, process, Session(partition.acked)), owner=process)


def drop_session(partition: Partition, process: int) -> Partition:
    """End a consumer; another one that is subscribed becomes the owner."""
    partition = partition._replace(sessions=put(partition.sessions, process, None))
    if partition.owner != process:
        return partition
    partition = partition._replace(owner=-1)
    for other, session in enumerate(partition.sessions):
        if session is not None:
            return handed_to(partition, other)
    return partition


def recreated(partition: Partition) -> Partition:
    """Give the topic made anew: ids begin again, upstream sends what was not acknowledged, every consumer is cut off."""
    log = partition.log[partition.acked :]
    return Partition(log, (None,) * len(partition.sessions), incarnation=partition.incarnation + 1)


def subscribe(world: World, who: int, at: int, process: int) -> Iterator[Answer]:
    partition = world.partitions[at]
    if partition.owner < 0:
        yield "ok", _with(world, at, handed_to(partition, process)), ""
        return
    waiting = put(partition.sessions, process, Session(partition.acked, partition.acked))
    yield "ok", _with(world, at, partition._replace(sessions=waiting)), ""


def receive(world: World, who: int, at: int, process: int, limit: int) -> Iterator[Answer]:
    partition = world.partitions[at]
    session = partition.sessions[process]
    if session is None:
        yield BROKEN, world, ""
        return
    end = len(partition.log) if session.bound < 0 else session.bound
    for count in range(min(limit, end - session.next) + 1):
        raws = tuple((partition.log[o], o, partition.incarnation) for o in range(session.next, session.next + count))
        after = partition._replace(
            sessions=put(partition.sessions, process, session._replace(next=session.next + count))
        )
        yield raws, _with(world, at, after) if count else world, ""
    yield BROKEN, _with(world, at, drop_session(partition, process)), "cut"


def acknowledge(world: World, who: int, at: int, process: int, offset: int, incarnation: int) -> Iterator[Answer]:
    partition = world.partitions[at]
    if partition.sessions[process] is None or partition.incarnation != incarnation:
        yield "ok", world, ""
        return
    yield "ok", _with(world, at, partition._replace(acked=max(partition.acked, offset + 1))), ""
    yield "ok", world, "ack_lost"


def unsubscribe(world: World, who: int, at: int, process: int) -> Iterator[Answer]:
    yield "ok", _with(world, at, drop_session(world.partitions[at], process)), ""


# -- the database, way in ---------------------------------------------------------------------------------------------


def close_connection(world: World, who: int) -> World:
    """End a connection: its transaction is rolled back, and there is nothing left to terminate. What it held is forgotten with it."""
    world = world._replace(epochs=put(world.epochs, who, 0), ids=put(world.ids, who, 0))
    leases = tuple(lease._replace(backend=-1) if lease.backend == who else lease for lease in world.leases)
    return world._replace(open=put(world.open, who, None), dead=put(world.dead, who, False), leases=leases)


def close(world: World, who: int) -> Iterator[Answer]:
    yield "ok", close_connection(world, who), ""


def _taken(world: World, who: int, at: int) -> World:
    lease = world.leases[at]
    old = lease.backend
    if old >= 0 and old != who:
        world = world._replace(open=put(world.open, old, None), dead=put(world.dead, old, True))
    # Only whether epochs are equal matters, so that one which nobody remembers may come again: else duels would never repeat a state.
    epoch = next(one for one in range(1, 99) if one != lease.epoch and one not in world.epochs)
    return world._replace(
        leases=put(world.leases, at, LeaseRow(epoch, who)),
        epochs=put(world.epochs, who, epoch),
        ids=put(world.ids, who, 0),
    )


def acquire(world: World, who: int, at: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
    else:
        after = _taken(world, who, at)
        yield after.leases[at].epoch, after, ""


def _free(world: World, who: int, above: int) -> int:
    if not world.counts_ids:
        return 0
    taken = {one.id for one in world.batches} | set(put(world.ids, who, 0))
    taken |= {other[1].id for other in world.open if other is not None and not isinstance(other, Round)}
    return next(one for one in range(above + 1, above + 99) if one not in taken)


def _drawn(world: World, who: int) -> tuple[int, World]:
    """Draw a batch id: above all that were used, and not one that somebody holds."""
    highest = max((batch.id for batch in world.batches), default=0)
    drawn = _free(world, who, highest)
    return drawn, world._replace(ids=put(world.ids, who, drawn))


def position(world: World, who: int, at: int) -> Iterator[Answer]:
    yield (LOST if world.dead[who] else world.positions[at]), world, ""


def load(world: World, who: int, at: int, after: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    rows = tuple((b.payload, b.extras) for b in world.batches if b.partition == at and b.number > after)
    drawn, after_draw = _drawn(world, who)
    yield (rows, drawn), after_draw, ""
    yield LOST, _lose(world, who), "abort"


def _lose(world: World, who: int) -> World:
    return world._replace(open=put(world.open, who, None), dead=put(world.dead, who, True))


def stored(world: World, who: int, keys: tuple[tuple[int, int, int, int], ...]) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    found = {key: content for batch in world.batches for key, content in contents(batch.payload)}
    yield tuple(found.get(key) for key in keys), world, ""


@cache
def contents(payload: bytes) -> tuple[tuple[tuple[int, int, int, int], tuple[int, ...]], ...]:
    """Give (identity, content) of the ticks of a payload, in order."""
    ticks = unpack_payload(payload)
    return tuple(
        (
            (int(ticks.source_id[at]), int(ticks.channel[at]), int(ticks.session[at]), int(ticks.sequence[at])),
            tuple(int(getattr(ticks, name)[at]) for name in CONTENT_COLUMNS),
        )
        for at in range(len(ticks))
    )


def finish(world: World, who: int, at: int, epoch: int, batch: BatchRow, after: PositionRow) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    if any(isinstance(other, tuple) and other[0] == at for one, other in enumerate(world.open) if one != who):
        return  # waits for the row locks of another
    if world.leases[at].epoch != epoch or world.positions[at].number != batch.number - 1:
        yield FENCED, world, ""
        return
    # The id of this batch is used, be it that it is never committed: the next one is above it.
    written = world._replace(open=put(world.open, who, (at, batch, after)))
    drawn = _free(written, who, batch.id)
    yield drawn, written._replace(ids=put(world.ids, who, drawn)), ""
    yield LOST, _lose(world, who), "abort"


def commit(world: World, who: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    at, batch, after = world.open[who]
    done = world._replace(
        open=put(world.open, who, None),
        positions=put(world.positions, at, after),
        batches=(*world.batches, batch),
    )
    yield "ok", done, ""
    yield LOST, _lose(world, who), "abort"
    yield LOST, _lose(done, who), "unknown"


# -- the sequencer's side ---------------------------------------------------------------------------------------------


def acquire_if_stale(world: World, who: int, at: int) -> Iterator[Answer]:
    lease = world.leases[at]
    if world.dead[who]:
        yield LOST, world, ""
        return
    after = _taken(world, who, at)
    if lease.backend < 0:
        yield after.leases[at].epoch, after, ""
    else:
        yield None, world, ""
        yield after.leases[at].epoch, after, "sequencer_takeover"


def renew(world: World, who: int, at: int, epoch: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
    else:
        yield ("ok" if world.leases[at].epoch == epoch else FENCED), world, ""


def counter(world: World, who: int) -> Iterator[Answer]:
    yield (LOST if world.dead[who] else world.counter), world, ""


def numbered(world: World, who: int, after: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    rows = {batch.id: batch for batch in world.batches}
    yield tuple(rows[id_] for id_, number in world.pub_seqs if number > after), world, ""


def unnumbered(world: World, who: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    known = {id_ for id_, _ in world.pub_seqs}
    highest = max(known, default=0)
    yield (tuple(sorted(b for b in world.batches if b.id not in known)), highest), world, ""


def stored_bars(world: World, who: int, keys: tuple[Any, ...]) -> Iterator[Answer]:
    newest = {bar.key: bar for bar in sorted(world.bars, key=lambda bar: bar.revision)}
    yield (LOST if world.dead[who] else tuple(newest[key] for key in keys if key in newest)), world, ""


def write(world: World, who: int, at: int, epoch: int, what: Round) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    if any(isinstance(other, Round) for one, other in enumerate(world.open) if one != who):
        return
    known = {id_ for id_, _ in world.pub_seqs}
    is_ours = world.leases[at].epoch == epoch and world.counter.pub_seq == what.before
    if not is_ours or any(id_ in known for id_, _ in what.numbers):
        yield FENCED, world, ""
        return
    yield "ok", world._replace(open=put(world.open, who, what)), ""


def commit_round(world: World, who: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    what = world.open[who]
    kept = (what.checkpoint, what.after) if what.checkpoint else world.counter[1:]
    done = world._replace(
        open=put(world.open, who, None),
        pub_seqs=world.pub_seqs + what.numbers,
        counter=Counter(what.after, *kept),
        bars=world.bars + what.bars,
        messages=world.messages + tuple((message, seq, False) for message, seq in what.messages),
    )
    yield "ok", done, ""
    yield LOST, _lose(world, who), "abort"
    yield LOST, _lose(done, who), "unknown"


def unsent(world: World, who: int, limit: int) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    rows = {batch.id: batch for batch in world.batches}
    ids = {number: id_ for id_, number in world.pub_seqs}
    waiting = [(message, seq, rows[ids[seq]]) for message, seq, is_sent in world.messages if not is_sent]
    yield tuple(waiting[:limit]), world, ""


def mark(world: World, who: int, highest: tuple[tuple[str, int], ...]) -> Iterator[Answer]:
    if world.dead[who]:
        yield LOST, world, ""
        return
    upto = dict(highest)
    marked = tuple(
        (message, seq, is_sent or message.number <= upto.get(message.topic, 0))
        for message, seq, is_sent in world.messages
    )
    yield "ok", world._replace(messages=marked), ""


def producer(world: World, who: int, topic: str) -> Iterator[Answer]:
    at = OUTPUTS.index(topic)
    output = world.outputs[at]
    yield output.last, world._replace(outputs=put(world.outputs, at, output._replace(owner=who))), ""


def send(world: World, who: int, topic: str, number: int, payload: bytes) -> Iterator[Answer]:
    at = OUTPUTS.index(topic)
    output = world.outputs[at]
    if output.owner != who:
        yield "error", world, ""
        return
    if number <= output.last:
        yield "dropped", world, ""
        return
    taken = Output((*output.log, (number, payload)), number, who)
    after = world._replace(outputs=put(world.outputs, at, taken))
    yield "stored", after, ""
    # The client gives up all that a producer has under way together, so that none is stored after one that was not.
    gone = output._replace(owner=-1)
    yield "error", world._replace(outputs=put(world.outputs, at, gone)), "not_sent"
    yield "error", world._replace(outputs=put(world.outputs, at, taken._replace(owner=-1))), "sent_unsaid"


ANSWERS: Final[dict[str, Callable[..., Iterator[Answer]]]] = {
    "subscribe": subscribe, "receive": receive, "acknowledge": acknowledge, "unsubscribe": unsubscribe, "close": close, "acquire": acquire,
    "position": position, "load": load, "stored": stored, "finish": finish, "commit": commit, "acquire_if_stale": acquire_if_stale,
    "renew": renew, "counter": counter, "numbered": numbered, "unnumbered": unnumbered, "stored_bars": stored_bars, "write": write,
    "commit_round": commit_round, "unsent": unsent, "mark": mark, "producer": producer, "send": send,
}  # fmt: skip
# Nobody else can tell when these happen: they follow at once.
AT_ONCE: Final = frozenset({"close", "unsubscribe"})


def answers(world: World, who: int, request: Request) -> Iterator[Answer]:
    """Give every answer that this world may give to a request of a connection; none while it must wait for a lock."""
    return ANSWERS[request[0]](world, who, *request[1:])
