"""Where slices begin and end: widths by rate, ranges that neither overlap nor leave a hole, and what no slice covers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.slices import WIDTHS_NS, SliceMap, plan, width_for

SECOND = 1_000_000_000
END_OF_TIME = 2**63 - 1


@pytest.mark.parametrize(
    ("rows_per_second", "rows_per_slice", "seconds"),
    [
        (0.0, 1, 86_400),
        (1.0, 86_400, 86_400),
        (1.001, 86_400, 21_600),  # one row too many for a day
        (100.0, 1_000_000, 3_600),
        (1_000.0, 1_000_000, 900),
        (10_000.0, 600_000, 60),
        (100_000.0, 1_000_000, 10),
        (1e9, 1, 10),  # none is narrow enough
    ],
)
def test_the_widest_slice_that_holds_no_more_than_it_should(
    rows_per_second: float, rows_per_slice: int, seconds: int
) -> None:
    assert width_for(rows_per_second, rows_per_slice) == seconds * SECOND


def test_slices_of_an_empty_table_are_aligned_to_their_width() -> None:
    assert plan(25, 10, [], []) == (20, 30)
    assert plan(20, 10, [], []) == (20, 30)
    assert plan(29, 10, [], []) == (20, 30)
    assert plan(0, 10, [], []) == (0, 10)


def test_a_slice_is_cut_where_others_begin_and_end() -> None:
    assert plan(25, 10, [10, 27], [22, 40]) == (22, 27)
    assert plan(25, 10, [10, 30], [20, 40]) == (20, 30)
    assert plan(22, 10, [10], [22]) == (22, 30)
    assert plan(5, 10, [8], [9]) == (0, 8)
    assert plan(25, 10, [0, 10], [5, 12]) == (20, 30)


def test_no_slice_reaches_beyond_the_end_of_time() -> None:
    assert plan(END_OF_TIME - 1, WIDTHS_NS[-1], [], [])[1] == END_OF_TIME


@given(st.lists(st.tuples(st.integers(0, 2_000), st.sampled_from([1, 7, 10, 60, 300])), max_size=30))
def test_planned_slices_never_overlap_and_each_holds_its_time(wanted: list[tuple[int, int]]) -> None:
    slices = SliceMap("trade")
    for ts, width in wanted:
        if not len(slices.uncovered(np.array([ts], np.int64))):
            continue
        start, end = plan(ts, width, slices.starts, slices.ends)
        assert start <= ts < end <= start + width
        ranges = sorted([*zip(slices.starts, slices.ends, strict=True), (start, end)])
        assert all(one[1] <= two[0] for one, two in pairwise(ranges))
        slices.starts, slices.ends = [first for first, _ in ranges], [last for _, last in ranges]


def test_covered_is_from_the_start_to_before_the_end() -> None:
    slices = SliceMap("quote", [10, 30], [20, 40])
    times = np.array([0, 9, 10, 19, 20, 29, 30, 39, 40, 99], np.int64)
    assert slices.uncovered(times).tolist() == [0, 9, 20, 29, 40, 99]
    assert SliceMap("quote").uncovered(times).tolist() == times.tolist()
