"""Gaps: judged on the union of partitions, below their common clock, settled after a while; the same whatever the batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.market.gaps import SETTLE_NS, GapChanges, GapTracker

KEY = (1, 0, 7)


def fold(tracker: GapTracker, partition: int, clock: int, *sequences: int, channel: int = 0) -> GapChanges:
    numbers = np.array(sequences, np.int64)
    same = np.ones(len(numbers), np.int64)
    return tracker.fold(partition, clock, same, same * channel, same * 7, numbers)


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
