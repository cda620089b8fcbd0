"""Every schedule of a small case: depth first, equal states visited once, each state held against what must always be true.

    Case(...) -> explore(case) -> Result(states, edges, complete, violation)

A violation comes with its schedule. At the end every state must still be able to come to a good end without another fault.
"""

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple

from integration.market.events import decode_bar, decode_numbered_ticks
from tests.e2e.events import SECOND, TS
from tests.model.actors import EVENTS, ConsumerActor, SequencerActor
from tests.model.seam import seams
from tests.model.world import (
    AT_ONCE,
    LOST,
    BatchRow,
    Output,
    World,
    answers,
    close_connection,
    contents,
    drop_session,
    handed_to,
    new_world,
    put,
    recreated,
)

WAY_IN: Final = frozenset({"crash_consumer", "abort", "unknown", "ack_lost", "cut", "takeover", "recreate"})
WAY_OUT: Final = frozenset({"crash_sequencer", "abort", "unknown", "sequencer_takeover", "not_sent", "sent_unsaid"})


@dataclass(frozen=True)
class Case:
    """What is explored: the published events by partition, how many processes, and which faults, at most `faults` of them together."""

    name: str
    logs: tuple[tuple[str, ...], ...]
    consumers: int = 2
    sequencers: int = 0
    faults: int = 2
    kinds: frozenset[str] = WAY_IN
    mutant: str = ""
    limit: int = 3  # messages of a batch
    snapshot_every: int = 1_000
    checkpoints: bool = False
    clock_s: int = 10  # our clock, in seconds after the minute of the events
    few: int = 0  # below so many events the reader looks twice
    max_states: int = 0  # 0: all


@dataclass
class Result:
    """What was found. `violation` is empty or says what is wrong, `schedule` how it came to it."""

    case: str
    states: int = 0
    edges: int = 0
    complete: int = 0
    seconds: float = 0.0
    runs: int = 0
    is_whole: bool = True
    violation: str = ""
    schedule: list[str] = field(default_factory=list)


class State(NamedTuple):
    """A global state: where each process is (numbers of its automaton), the world, and how many faults may still come."""

    locals: tuple[int, ...]
    world: World
    left: int


class Automaton:
    """One actor, with its transitions remembered. A local state is (start of the round, answers since)."""

    def __init__(self, actor: ConsumerActor | SequencerActor) -> None:
        self.actor = actor
        self.connection = actor.connection
        self.numbers: dict[tuple[Any, tuple[Any, ...]], int] = {}
        self.keys: list[tuple[Any, tuple[Any, ...]]] = []
        self.requests: list[Any] = []
        self.steps: dict[tuple[int, Any], int] = {}
        self.runs = 0
        self.first = self.number(actor.start, ())

    def number(self, start: Any, given: tuple[Any, ...]) -> int:
        """Give the number of a local state; -1 when the process has given up. Runs the real code when the state is new."""
        key = (start, given)
        if key in self.numbers:
            return self.numbers[key]
        self.runs += 1
        what, value = self.actor.run(start, given)
        if what == "ask":
            self.numbers[key] = len(self.keys)
            self.keys.append(key)
            self.requests.append(value)
        else:
            assert what == "died" or given, "a round that asks nothing would never end"
            self.numbers[key] = self.number(value, ()) if what == "done" else -1
        return self.numbers[key]

    def feed(self, local: int, answer: Any) -> int:
        """Give the local state after an answer."""
        step = (local, answer)
        if step not in self.steps:
            start, given = self.keys[local]
            self.steps[step] = self.number(start, (*given, answer))
        return self.steps[step]


class Explorer:
    """The search over one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.partitions = len(case.logs)
        now = TS + case.clock_s * SECOND
        made: list[ConsumerActor | SequencerActor] = [
            ConsumerActor(
                process, at, process * self.partitions + at, now, case.mutant, case.snapshot_every, case.limit
            )
            for process in range(case.consumers)
            for at in range(self.partitions)
        ]
        made += [
            SequencerActor(case.consumers + one, len(made) + one, case.checkpoints, case.mutant)
            for one in range(case.sequencers)
        ]
        self.automata = [Automaton(actor) for actor in made]
        self.sent = frozenset(name.rstrip("'") for log in case.logs for name in log)

    def start(self) -> State:
        """Give the first state."""
        world = new_world(self.case.logs, self.case.consumers, self.case.sequencers)
        return State(tuple(one.first for one in self.automata), world, self.case.faults)

    # -- what can happen next ------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[tuple[str, str, State]]:
        """Give (what happened, which fault it was or "", state after)."""
        for at, automaton in enumerate(self.automata):
            request = automaton.requests[state.locals[at]]
            for answer, world, fault in answers(state.world, automaton.connection, request):
                if fault and not (state.left and fault in self.case.kinds):
                    continue
                yield (
                    f"{at}:{request[0]}{'!' + fault if fault else ''}",
                    fault,
                    self._advance(State(state.locals, world, state.left - bool(fault)), at, answer),
                )
        if state.left:
            yield from self._faults(state)

    def _advance(self, state: State, at: int, answer: Any) -> State:
        """Let a process go on with an answer, and with those that come at once."""
        automaton = self.automata[at]
        local, world = automaton.feed(state.locals[at], answer), state.world
        while local >= 0 and automaton.requests[local][0] in AT_ONCE:
            answer, world, _ = next(answers(world, automaton.connection, automaton.requests[local]))
            local = automaton.feed(local, answer)
        after = State(put(state.locals, at, local), world, state.left)
        return after if local >= 0 else self._crashed(after, automaton.actor.process)

    def _crashed(self, state: State, process: int) -> State:
        """End a process with all its connections; it begins anew."""
        locals_, world = state.locals, state.world
        for at, automaton in enumerate(self.automata):
            if automaton.actor.process == process:
                locals_ = put(locals_, at, automaton.first)
                world = close_connection(world, automaton.connection)
        if process < self.case.consumers:
            world = world._replace(partitions=tuple(drop_session(one, process) for one in world.partitions))
        return State(locals_, world, state.left)

    def _faults(self, state: State) -> Iterator[tuple[str, str, State]]:
        kinds, left = self.case.kinds, state.left - 1
        for process in range(self.case.consumers + self.case.sequencers):
            kind = "crash_consumer" if process < self.case.consumers else "crash_sequencer"
            if kind in kinds:
                yield f"kill {process}", kind, self._crashed(state._replace(left=left), process)
        for at, partition in enumerate(state.world.partitions):
            if "takeover" in kinds:
                for process, session in enumerate(partition.sessions):
                    if session is not None and process != partition.owner:
                        world = state.world._replace(
                            partitions=put(state.world.partitions, at, handed_to(partition, process))
                        )
                        yield f"partition {at} to {process}", "takeover", State(state.locals, world, left)
            if "recreate" in kinds and partition.incarnation == 0 and partition.acked < len(partition.log):
                world = state.world._replace(partitions=put(state.world.partitions, at, recreated(partition)))
                yield f"topic {at} made anew", "recreate", State(state.locals, world, left)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def violation(self, world: World) -> str:
        """Say what is wrong in a world; empty when nothing is."""
        found = _wrong_batches(world.batches, self.partitions)
        if not found:
            there = _stored_events(world.batches)
            for at, partition in enumerate(world.partitions):
                lost = [name for name in partition.log[: partition.acked] if name.rstrip("'") not in there]
                if lost:
                    found = f"partition {at} is acknowledged past {lost[0]}, which is not stored"
        found = found or _wrong_numbers(world.pub_seqs)
        for output in world.outputs:
            found = found or _wrong_output(output)
        return found

    def is_complete(self, world: World) -> bool:
        """Whether all that was sent has come to its end."""
        if _stored_events(world.batches) != self.sent:
            return False
        if not self.case.sequencers:
            return True
        is_out = len(world.pub_seqs) == len(world.batches) and all(is_sent for _, _, is_sent in world.messages)
        return is_out and _published_events(world.outputs[0]) == len(self.sent) and _all_arrived(world)


_NAMES: Final = {sequence: name for name, (sequence, _, _) in EVENTS.items()}


@cache
def _stored_events(batches: tuple[BatchRow, ...]) -> frozenset[str]:
    return frozenset(_NAMES[identity[3]] for batch in batches for identity, _ in contents(batch.payload))


@cache
def _wrong_batches(batches: tuple[BatchRow, ...], partitions: int) -> str:
    seen: set[tuple[int, int, int, int]] = set()
    last: dict[int, int] = {}
    for batch in batches:
        for identity, content in contents(batch.payload):
            if identity in seen:
                return f"{_NAMES[identity[3]]} is stored twice"
            seen.add(identity)
            instrument_id = content[CONTENT_INSTRUMENT]
            if last.get(instrument_id, 0) > identity[3]:
                return f"{_NAMES[identity[3]]} is stored out of the order of its key"
            last[instrument_id] = identity[3]
    for at in range(partitions):
        mine = [batch for batch in batches if batch.partition == at]
        if [batch.number for batch in mine] != list(range(1, len(mine) + 1)):
            return f"batches of partition {at} are not numbered 1 to {len(mine)} in order"
        ids = [batch.id for batch in mine]
        if any(ids) and ids != sorted(set(ids)):
            return f"batch ids of partition {at} do not rise"
    return ""


CONTENT_INSTRUMENT: Final = 2


@cache
def _wrong_numbers(pub_seqs: tuple[tuple[int, int], ...]) -> str:
    if [number for _, number in pub_seqs] != list(range(1, len(pub_seqs) + 1)):
        return "numbers of batches have a hole or a repeat"
    return "" if len({id_ for id_, _ in pub_seqs}) == len(pub_seqs) else "a batch has two numbers"


@cache
def _wrong_output(output: Output) -> str:
    numbers = [number for number, _ in output.log]
    if numbers != list(range(1, len(numbers) + 1)):
        return f"published messages are numbered {numbers}"
    last: dict[tuple[str, int], int] = {}
    for _, payload in output.log:
        for instrument_id, sequence in _numbered(payload):
            if sequence != last.get(instrument_id, 0) + 1:
                return f"{instrument_id} goes from {last.get(instrument_id, 0)} to {sequence} in what is published"
            last[instrument_id] = sequence
    return ""


@cache
def _numbered(payload: bytes) -> tuple[tuple[tuple[str, int], int], ...]:
    if payload.startswith(b"{"):
        bar = decode_bar(payload)
        return ((("bar", bar.instrument_id), bar.sequence),)
    columns = decode_numbered_ticks(payload).columns
    pairs = zip(columns["instrument_id"].tolist(), columns["sequence"].tolist(), strict=True)
    return tuple((("tick", instrument_id), sequence) for instrument_id, sequence in pairs)


@cache
def _published_events(output: Output) -> int:
    return sum(len(_numbered(payload)) for _, payload in output.log)


def _all_arrived(world: World) -> bool:
    newest = {message.topic: message.number for message, _, _ in world.messages}
    lasts = (newest.get("ticks", 0), newest.get("bars", 0))
    return lasts == tuple(len(output.log) for output in world.outputs)


# -- the search -------------------------------------------------------------------------------------------------------


def explore(case: Case) -> Result:
    """Visit every state of a case; stop at the first violation."""
    _forget_caches()
    with seams(case.few) as leases:
        leases.sequencer = len(case.logs)
        return _Search(case).run()


def _forget_caches() -> None:
    for cached in (_stored_events, _wrong_batches, _wrong_numbers, _wrong_output):
        cached.cache_clear()


class _Search:
    def __init__(self, case: Case) -> None:
        self.explorer = Explorer(case)
        self.result = Result(case.name)
        self.numbers: dict[State, int] = {}
        self.parents = array("l")
        self.actions: list[str] = []
        self.sources, self.targets = array("l"), array("l")  # of edges that are no fault
        self.good = array("l")

    def run(self) -> Result:
        began = time.perf_counter()
        first = self.explorer.start()
        stack = [first]
        self._add(first, -1, "")
        while stack and not self.result.violation:
            if self.explorer.case.max_states and len(self.numbers) >= self.explorer.case.max_states:
                self.result.is_whole = False
                break
            self._visit(stack.pop(), stack)
        if self.result.is_whole and not self.result.violation:
            self._all_can_end_well()
        result = self.result
        result.states, result.complete, result.seconds = len(self.numbers), len(self.good), time.perf_counter() - began
        result.runs = sum(automaton.runs for automaton in self.explorer.automata)
        return result

    def _visit(self, state: State, stack: list[State]) -> None:
        here = self.numbers[state]
        for action, fault, after in self.explorer.successors(state):
            self.result.edges += 1
            there = self.numbers.get(after, -1)
            if there < 0:
                there = self._add(after, here, action)
                stack.append(after)
                if self.result.violation:
                    return
            if not fault:
                self.sources.append(here)
                self.targets.append(there)

    def _add(self, state: State, parent: int, action: str) -> int:
        number = self.numbers[state] = len(self.numbers)
        self.parents.append(parent)
        self.actions.append(action)
        wrong = self.explorer.violation(state.world)
        if wrong:
            self._report(number, wrong)
        elif self.explorer.is_complete(state.world):
            self.good.append(number)
        return number

    def _report(self, number: int, wrong: str) -> None:
        self.result.violation = wrong
        while number > 0:
            self.result.schedule.append(self.actions[number])
            number = self.parents[number]
        self.result.schedule.reverse()

    def _all_can_end_well(self) -> None:
        """Go back from the good ends over everything that is no fault: what is not met on the way is stuck for ever."""
        count = len(self.numbers)
        starts = array("l", bytes(array("l").itemsize * (count + 1)))
        for target in self.targets:
            starts[target + 1] += 1
        for at in range(count):
            starts[at + 1] += starts[at]
        places, before = array("l", starts), array("l", bytes(array("l").itemsize * len(self.targets)))
        for source, target in zip(self.sources, self.targets, strict=True):
            before[places[target]] = source
            places[target] += 1
        is_well = bytearray(count)
        waiting = list(self.good)
        for at in waiting:
            is_well[at] = 1
        while waiting:
            at = waiting.pop()
            for source in before[starts[at] : starts[at + 1]]:
                if not is_well[source]:
                    is_well[source] = 1
                    waiting.append(source)
        if not all(is_well):
            self._report(is_well.index(0), "from here no schedule without a fault brings everything to its end")


__all__ = ["LOST", "WAY_IN", "WAY_OUT", "Case", "Result", "explore"]
