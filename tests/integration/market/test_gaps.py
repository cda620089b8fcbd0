"""Gaps: judged on the union of partitions, below their common clock, settled after a while; the same whatever the batches."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.market.gaps import SESSIONS_KEPT, SETTLE_NS, GapChanges, GapTracker

KEY = (1, 0, 7)


def fold(
    tracker: GapTracker, partition: int, clock: int, *sequences: int, channel: int = 0, session: int = 7
) -> GapChanges:
    numbers = np.array(sequences, np.int64)
    same = np.ones(len(numbers), np.int64)
    return tracker.fold(partition, clock, same, same * channel, same * session, numbers)


def test_hole_opens_once_it_has_settled_and_closes_when_it_fills() -> None:
    tracker = GapTracker()
    assert fold(tracker, 1, 10, 1, 2, 5, 6).opened == []
    assert fold(tracker, 1, 10 + SETTLE_NS - 1).opened == []
    assert fold(tracker, 1, 10 + SETTLE_NS).opened == [(*KEY, 3, 4)]
    assert fold(tracker, 1, 10 + 2 * SETTLE_NS).opened == []
    changes = fold(tracker, 1, 10 + 3 * SETTLE_NS, 4, 3)
    assert (changes.opened, changes.closed) == ([], [(*KEY, 3, 4)])


def test_part_of_a_hole_that_fills_leaves_the_rest_open() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 10)
    fold(tracker, 1, 10 + SETTLE_NS)
    changes = fold(tracker, 1, 11 + SETTLE_NS, 4, 5)
    assert changes.closed == [(*KEY, 2, 9)]
    assert changes.opened == [(*KEY, 2, 3), (*KEY, 6, 9)]


def test_hole_that_fills_in_time_is_none() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 3)
    fold(tracker, 1, 11, 2)
    assert fold(tracker, 1, 10 + 9 * SETTLE_NS).opened == []


def test_channel_over_two_partitions_is_judged_on_their_union_below_the_slower_clock() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 3, 5)
    fold(tracker, 2, 10, 2)
    # 4 may still lie on the slower partition.
    assert fold(tracker, 1, 10 + 9 * SETTLE_NS, 7).opened == []
    assert fold(tracker, 2, 11, 4).opened == []
    assert fold(tracker, 2, 20 * SETTLE_NS).opened == []
    assert fold(tracker, 1, 20 * SETTLE_NS).opened == [(*KEY, 6, 6)]


def test_first_number_seen_begins_the_channel_and_unnumbered_events_have_no_gaps() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1000, 1001)
    fold(tracker, 1, 10, 5, 99, channel=-1)
    assert fold(tracker, 1, 10 * SETTLE_NS).opened == []
    assert tracker.channels.keys() == {KEY}


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(1, 40), min_size=1), st.randoms(use_true_random=False), st.integers(1, 10))
def test_in_the_end_the_open_gaps_are_the_numbers_that_never_came(present: set[int], chance: object, size: int) -> None:
    numbers = sorted(present)
    chance.shuffle(numbers)  # type: ignore[attr-defined]
    tracker, clock = GapTracker(), 10
    still_open: set[tuple[int, int, int, int, int]] = set()
    lowest = min(numbers[:size])
    for start in [*range(0, len(numbers), size), len(numbers), len(numbers) + 1]:
        clock += SETTLE_NS // 2 if start < len(numbers) else 2 * SETTLE_NS
        changes = fold(tracker, start % 2, clock, *numbers[start : start + size])
        for other in (0, 1):
            tracker.clocks[other] = clock
        still_open = (still_open | set(changes.opened)) - set(changes.closed) | (
            set(changes.opened) & set(changes.closed)
        )
        tracker = GapTracker.load(tracker.dump())
    missing = {number for _, _, _, first, last in still_open for number in range(first, last + 1)}
    assert missing == set(range(lowest, max(present))) - present


def test_channels_of_one_batch_are_told_apart_and_their_gaps_come_in_the_order_of_their_keys() -> None:
    tracker = GapTracker()
    keys = [(2, 1, 8), (2, 1, 7), (2, 0, 7), (1, 1, 7), (1, 0, 8), (1, 0, 7)]
    events = [(*key, number) for at, key in enumerate(keys) for number in (10 * at + 3, 10 * at + 1, 10 * at + 1)]
    # Neighbours in the batch differ in one part of the key, then in several.
    columns = np.array([*events[::2], *events[1::2]], np.int64).T
    assert tracker.fold(1, 10, *columns).opened == []
    changes = fold(tracker, 1, 10 + SETTLE_NS)
    assert changes.opened == [(*key, 10 * at + 2, 10 * at + 2) for at, key in reversed(list(enumerate(keys)))]


def test_clock_of_a_partition_never_goes_back() -> None:
    tracker = GapTracker()
    fold(tracker, 3, 0)
    fold(tracker, 1, 100)
    fold(tracker, 2, 150)
    fold(tracker, 1, 50)
    assert tracker.clocks == {1: 100, 2: 150, 3: 0}


def test_later_numbers_do_not_put_off_a_hole_and_the_last_number_again_is_nothing() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 2)
    fold(tracker, 1, 11, 2)
    fold(tracker, 1, 12, 4)
    fold(tracker, 1, 12 + SETTLE_NS // 2, 5)
    fold(tracker, 1, 12 + SETTLE_NS - 1, 7)
    assert fold(tracker, 1, 12 + SETTLE_NS).opened == [(*KEY, 3, 3), (*KEY, 6, 6)]


def test_next_hole_waits_its_own_time() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 3)
    assert fold(tracker, 1, 10 + SETTLE_NS).opened == [(*KEY, 2, 2)]
    assert fold(tracker, 1, 11 + SETTLE_NS, 5).opened == []
    assert fold(tracker, 1, 10 + 2 * SETTLE_NS).opened == []
    assert fold(tracker, 1, 11 + 2 * SETTLE_NS).opened == [(*KEY, 4, 4)]


def test_hole_that_fills_leaves_its_time_to_nobody() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 3, 6)
    fold(tracker, 1, SETTLE_NS, 2)
    assert fold(tracker, 1, 10 + SETTLE_NS).opened == []
    assert fold(tracker, 1, 2 * SETTLE_NS).opened == [(*KEY, 4, 5)]


def test_repeats_in_order_and_numbers_beyond_what_a_float_holds_are_exact() -> None:
    far = 2**62
    for batch in ((far + 1, far + 2, far + 4), (far + 1, far + 1, far + 2, far + 4), (far + 4, far + 2, far + 1)):
        tracker = GapTracker()
        fold(tracker, 1, 10, *batch)
        assert fold(tracker, 1, 10 + SETTLE_NS).opened == [(*KEY, far + 3, far + 3)]
        assert tracker.channels[KEY].base == far + 4


Key = tuple[int, int, int]
Event = tuple[int, int, int, int]


@dataclass
class PlainChannel:
    base: int
    came: set[int] = field(default_factory=set)
    missing: list[tuple[int, int]] = field(default_factory=list)
    since: int = 0
    partitions: set[int] = field(default_factory=set)


class PlainTracker:
    """The rules number by number, with nothing ever forgotten: what the tracker was before it was bounded."""

    def __init__(self) -> None:
        self.channels: dict[Key, PlainChannel] = {}
        self.clocks: dict[int, int] = {}

    def fold(self, partition: int, clock: int, events: list[Event]) -> tuple[list[Any], list[Any]]:
        self.clocks[partition] = max(clock, self.clocks.get(partition, 0))
        opened: list[Any] = []
        closed: list[Any] = []
        for key in dict.fromkeys(event[:3] for event in events):
            self._arrive(key, sorted({e[3] for e in events if e[:3] == key}), partition, opened, closed)
        for key in sorted(self.channels):
            self._settle(key, opened)
        return opened, closed

    def _arrive(self, key: Key, numbers: list[int], partition: int, opened: list[Any], closed: list[Any]) -> None:
        state = self.channels.setdefault(key, PlainChannel(numbers[0] - 1))
        state.partitions.add(partition)
        left: list[tuple[int, int]] = []
        for first, last in state.missing:
            rest = [n for n in range(first, last + 1) if n not in numbers]
            if len(rest) == last - first + 1:
                left.append((first, last))
                continue
            closed.append((*key, first, last))
            starts = [n for n in rest if n - 1 not in rest]
            ends = [n for n in rest if n + 1 not in rest]
            opened += [(*key, *hole) for hole in zip(starts, ends, strict=True)]
            left += zip(starts, ends, strict=True)
        state.missing = left
        state.came |= {n for n in numbers if n > state.base}
        self._advance(state)

    @staticmethod
    def _advance(state: PlainChannel) -> None:
        while state.base + 1 in state.came:
            state.base += 1
            state.came.discard(state.base)
            state.since = 0
        if not state.came:
            state.since = 0

    def _settle(self, key: Key, opened: list[Any]) -> None:
        state = self.channels[key]
        clocks = [self.clocks[partition] for partition in state.partitions]
        while state.came:
            state.since = state.since or max(clocks)
            if min(clocks) < state.since + SETTLE_NS:
                return
            hole = (state.base + 1, min(state.came) - 1)
            state.missing.append(hole)
            opened.append((*key, *hole))
            since, state.base = state.since, hole[1]
            self._advance(state)
            state.since = since if state.came else 0


def columns_of(events: list[Event]) -> Any:
    return np.array(events, np.int64).reshape(-1, 4).T


def fold_both(
    tracker: GapTracker, plain: PlainTracker, partition: int, clock: int, events: list[Event]
) -> tuple[GapChanges, Any]:
    return tracker.fold(partition, clock, *columns_of(events)), plain.fold(partition, clock, events)


# Three channels, as many sessions each as are kept, so that none may be forgotten: then nothing at all is different.
any_event = st.tuples(st.just(1), st.integers(0, 2), st.integers(1, SESSIONS_KEPT), st.integers(1, 12))
steps = st.tuples(st.integers(1, 2), st.integers(0, SETTLE_NS), st.lists(any_event, max_size=12))


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=12))
def test_nothing_is_different_from_the_plain_rules_while_nothing_is_forgotten(
    batches: list[tuple[int, int, list[Event]]],
) -> None:
    tracker, plain, clock = GapTracker(), PlainTracker(), 10
    for partition, pause, events in batches:
        clock += pause
        changes, (opened, closed) = fold_both(tracker, plain, partition, clock, events)
        assert (changes.opened, changes.closed) == (opened, closed)
        tracker = GapTracker.load(tracker.dump())
        assert tracker.channels.keys() == plain.channels.keys()


# Sessions rise, each as holed as it comes, and what is missing of older ones may come in between.
later = st.tuples(st.integers(0, 3 * SESSIONS_KEPT), st.integers(1, 9))
rising = st.lists(
    st.tuples(st.sets(st.integers(1, 9), min_size=1), st.lists(later, max_size=3), st.integers(0, 2 * SETTLE_NS)),
    min_size=SESSIONS_KEPT,
    max_size=3 * SESSIONS_KEPT,
)


@settings(max_examples=300, deadline=None)
@given(rising)
def test_forgetting_loses_no_open_gap_and_invents_none(
    sessions: list[tuple[set[int], list[tuple[int, int]], int]],
) -> None:
    tracker, plain, clock = GapTracker(), PlainTracker(), 10
    told: set[Any] = set()
    told_plain: set[Any] = set()
    forgotten: set[int] = set()
    for session, (numbers, late, pause) in enumerate(sessions, start=1):
        clock += pause
        events = [(1, 0, session, number) for number in sorted(numbers | {9})]
        events += [(1, 0, session - back, number) for back, number in late if session - back > 0]
        known = {key[2] for key in tracker.channels}
        changes, (opened, closed) = fold_both(tracker, plain, 1, clock, events)
        kept = {key[2] for key in tracker.channels}
        # What was held at first, or comes again, is judged as ever; a session that was let go never says another word.
        forgotten |= known - kept
        spoke = {item[2] for item in (*changes.opened, *changes.closed)}
        assert not spoke & (forgotten - known)
        for seen, new, gone in ((told, changes.opened, changes.closed), (told_plain, opened, closed)):
            seen.difference_update(set(gone) - set(new))
            seen.update(set(new) - set(gone))
        # An open gap keeps its session: all that the plain rules hold open, beside what came after the forgetting.
        assert told == {gap for gap in told_plain if gap[2] not in forgotten}
        assert {gap[2] for gap in told} <= kept
        open_or_waiting = sum(bool(state.missing or len(state.pending)) for state in tracker.channels.values())
        assert len(tracker.channels) <= SESSIONS_KEPT + open_or_waiting
        tracker = GapTracker.load(tracker.dump())


def test_a_channel_holds_its_newest_sessions_and_those_with_an_open_gap() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 2, 5, session=3)
    fold(tracker, 1, 10 + SETTLE_NS)
    for session in range(4, 400):
        fold(tracker, 1, 10 + session * SETTLE_NS, 1, 2, 3, session=session)
    newest = {(1, 0, session) for session in range(400 - SESSIONS_KEPT, 400)}
    assert tracker.channels.keys() == newest | {(1, 0, 3)}
    # Filled in part it stays, filled whole it goes.
    changes = fold(tracker, 1, 500 * SETTLE_NS, 3, session=3)
    assert (changes.opened, changes.closed) == ([(1, 0, 3, 4, 4)], [(1, 0, 3, 3, 4)])
    assert (1, 0, 3) in tracker.channels
    assert fold(tracker, 1, 501 * SETTLE_NS, 4, session=3).closed == [(1, 0, 3, 4, 4)]
    assert tracker.channels.keys() == newest


def test_late_numbers_of_a_forgotten_session_open_no_gap() -> None:
    tracker = GapTracker()
    for session in range(1, 30):
        fold(tracker, 1, 10, *range(1, 100), session=session)
    # An operator releases two events of a session long gone: what lies between them did come.
    fold(tracker, 1, 11, 42, session=5)
    fold(tracker, 1, 12, 57, session=5)
    assert fold(tracker, 1, 99 * SETTLE_NS).opened == []
    assert len(tracker.channels) == SESSIONS_KEPT


def test_the_session_that_goes_on_is_kept_whatever_other_numbers_come() -> None:
    tracker = GapTracker()
    for number in range(1, 100):
        fold(tracker, 1, 10, number, session=20260105)
        fold(tracker, 1, 10, 1, session=2**62 + number)  # a sender that makes sessions up
    assert (1, 0, 20260105) in tracker.channels
    fold(tracker, 1, 20, 1, 2, 4, session=20260106)
    assert fold(tracker, 1, 20 + SETTLE_NS).opened == [(1, 0, 20260106, 3, 3)]


def test_a_repeat_does_not_make_a_session_new_again() -> None:
    tracker = GapTracker()
    for session in range(1, SESSIONS_KEPT + 1):
        fold(tracker, 1, 10, 1, 2, session=session)
    fold(tracker, 1, 10, 2, session=1)
    fold(tracker, 1, 10, 3, session=2)
    for session in (101, 102):
        fold(tracker, 1, 10, 1, session=session)
    assert {key[2] for key in tracker.channels} == {2, *range(4, SESSIONS_KEPT + 1), 101, 102}


def test_a_restart_keeps_which_session_went_on_last() -> None:
    tracker = GapTracker()
    for session in range(1, SESSIONS_KEPT + 1):
        fold(tracker, 1, 10, 1, session=session)
    fold(tracker, 1, 10, 2, session=1)
    tracker = GapTracker.load(tracker.dump())
    fold(tracker, 1, 10, 1, session=101)
    assert {key[2] for key in tracker.channels} == {1, *range(3, SESSIONS_KEPT + 1), 101}


def test_a_hole_that_fills_does_not_make_a_session_new_again() -> None:
    tracker = GapTracker()
    fold(tracker, 1, 10, 1, 3, session=1)
    for session in range(2, SESSIONS_KEPT + 1):
        fold(tracker, 1, 10, 1, session=session)
    fold(tracker, 1, 10, 2, session=1)
    fold(tracker, 1, 10, 1, session=101)
    assert {key[2] for key in tracker.channels} == {*range(2, SESSIONS_KEPT + 1), 101}


def test_a_checkpoint_without_recent_sessions_is_read_and_bounded() -> None:
    tracker = GapTracker()
    for session in range(1, SESSIONS_KEPT + 1):
        fold(tracker, 1, 10, 1, 3, session=session)
    old = tracker.dump()
    del old["recent"]
    whole: list[Any] = [(1, 0, session, 9, [], 0, [], [1]) for session in range(100, 200)]
    loaded = GapTracker.load(old | {"channels": [*old["channels"], *whole]})
    kept = {*range(1, SESSIONS_KEPT + 1), *range(200 - SESSIONS_KEPT, 200)}
    assert {key[2] for key in loaded.channels} == kept
    assert len(fold(loaded, 1, 10 + SETTLE_NS).opened) == SESSIONS_KEPT
