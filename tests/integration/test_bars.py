"""Bars: the fold against the naive computation, then each rule by itself."""

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration import bar_kernel
from integration.bars import Bar, BarBuilder, BarKey, Folded, revise
from integration.market.sessions import DAY, HOUR, MINUTE, SECOND, TIMEFRAMES, SessionTable, session_table
from integration.market.ticks import CANCEL, CONDITION_BITS, CORRECT, FLAG_RELEASED, QUOTE, Ticks
from tests.integration.naive_bars import Naive, Row, batch

ODD_LOT = CONDITION_BITS["odd_lot"]
EXTENDED = CONDITION_BITS["extended_hours"]
OFFICIAL_OPEN = CONDITION_BITS["official_open"]
CLOSING = CONDITION_BITS["closing"]

ALWAYS = SessionTable.of_always_open()
NEW_YORK = session_table("XNYS", first_year=2024, last_year=2026)
CHICAGO = session_table("CMES", first_year=2024, last_year=2026)
TABLES = {1: ALWAYS, 2: NEW_YORK, 3: CHICAGO}


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


MONDAY = ns("2026-01-05T14:30:00")  # New York opens

# Where days begin, end, are cut short or change their length.
MOMENTS = (
    MONDAY,
    ns("2026-01-05T21:00:00"),  # New York closes
    ns("2026-01-06T05:00:00"),  # its midnight
    ns("2026-01-05T23:00:00"),  # Chicago turns to the next session
    ns("2025-11-28T18:00:00"),  # half day
    ns("2026-03-08T07:00:00"),  # clocks change, a Sunday
    ns("2026-03-09T13:30:00"),  # the first open after it
    ns("2026-01-10T00:00:00"),  # a Saturday
    ns("2027-01-01T05:00:00"),  # the last instant of the tables
)


def _uncompiled() -> ModuleType:
    # The same source without numba: the plain Python that the compiled code must agree with, and what coverage can see.
    spec = importlib.util.spec_from_file_location("plain_bar_kernel", bar_kernel.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch("numba.njit", return_value=lambda function: function):
        spec.loader.exec_module(module)
    return module


PLAIN = _uncompiled()


def no_bars(keys: Sequence[BarKey]) -> Iterable[Bar]:
    return []


class Store:
    """The table of bars: what was given is written, latest revision per key."""

    def __init__(self) -> None:
        self.bars: dict[BarKey, Bar] = {}
        self.asked: list[BarKey] = []

    def load(self, keys: Sequence[BarKey]) -> Iterable[Bar]:
        self.asked += keys
        return [self.bars[key] for key in keys if key in self.bars]

    def save(self, folded: Folded) -> None:
        for bar in (*folded.bars, *folded.held):
            known = self.bars.get(bar.key)
            assert bar.revision == (known.revision if known else 0) + (1 if bar.has_price else 0)
            self.bars[bar.key] = bar


class Rig:
    """A builder with its store; `fold` says what came out, and writes it."""

    def __init__(
        self,
        *,
        tables: dict[int, SessionTable] | None = None,
        kernel: ModuleType | None = None,
        grace: int = 2 * SECOND,
    ) -> None:
        self.store = Store()
        self.tables = tables or TABLES
        self.builder = BarBuilder(load=self.store.load, sessions_of=self.tables.__getitem__, grace_ns=grace)
        if kernel is not None:
            self.builder._kernel = kernel
            self.builder._clear()

    def fold(self, rows: list[Row], clock: int, partition: int = 7) -> list[Bar]:
        folded = self.builder.fold(batch(rows), clock, partition)
        assert all(bar.has_price for bar in folded.bars)
        assert not any(bar.has_price for bar in folded.held)
        self.store.save(folded)
        self.builder.settle()
        return folded.bars

    def shown(
        self, rows: list[Row], clock: int, *, timeframe: str = "1m", source: int = 0, partition: int = 7
    ) -> list[Bar]:
        """Fold, and give the bars of one timeframe and source."""
        return [
            bar for bar in self.fold(rows, clock, partition) if (bar.timeframe, bar.source_id) == (timeframe, source)
        ]


def listening(**options: Any) -> Rig:
    """A rig that has listened since long before Monday's open."""
    rig = Rig(**options)
    rig.fold([], MONDAY - 3 * DAY)
    return rig


# --- the fold against the naive computation


Batch = tuple[list[Row], int, int]

jitters = st.one_of(
    st.integers(-3, 3).map(lambda seconds: seconds * SECOND),
    st.integers(-130, 5).map(lambda seconds: seconds * SECOND),
    st.integers(-36, 1).map(lambda hours: hours * HOUR),
    st.sampled_from([-1, 1, -2 * SECOND - 1, -2 * SECOND + 1]),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Batch]:
    now = draw(st.sampled_from(MOMENTS)) + draw(st.integers(-3, 3)) * MINUTE
    batches: list[Batch] = []
    for _ in range(draw(st.integers(1, 8))):
        rows = [_row(draw, now) for _ in range(draw(st.integers(0, 7)))]
        now += draw(
            st.sampled_from([0, SECOND, 2 * SECOND, 30 * SECOND, MINUTE, 5 * MINUTE, HOUR, 5 * HOUR, DAY, 4 * DAY])
        )
        batches.append((rows, now - draw(st.sampled_from([0, 0, SECOND, HOUR])), draw(st.sampled_from([7, 7, 7, 9]))))
    return batches


def _row(draw: st.DrawFn, now: int) -> Row:
    return Row(
        ts_event=now + draw(jitters),
        price=draw(st.one_of(st.integers(-3, 5), st.sampled_from([2**63 - 1, -(2**63) + 1]))),
        size=draw(st.one_of(st.integers(1, 9), st.just(2**63 - 1))),
        instrument_id=draw(st.integers(1, 3)),
        source_id=draw(st.sampled_from([1, 1, 2, 0])),
        conditions=draw(st.sampled_from([0, 0, 0, CLOSING, ODD_LOT, OFFICIAL_OPEN, EXTENDED])),
        flags=draw(st.sampled_from([0, 0, 0, FLAG_RELEASED])),
        kind=draw(st.sampled_from([1, 1, 1, 1, QUOTE])),
        action=draw(st.sampled_from([0, 0, 0, 0, CORRECT, CANCEL])),
        ts_publish=draw(st.sampled_from([0, now])),
    )


def run(rig: Rig, batches: list[Batch]) -> list[list[Bar]]:
    told = []
    for rows, clock, partition in batches:
        folded = rig.builder.fold(batch(rows), clock, partition)
        rig.store.save(folded)
        rig.builder.settle()
        told.append([*folded.bars, *folded.held])
    return told


def computed(batches: list[Batch], grace: int = 2 * SECOND) -> list[list[Bar]]:
    naive = Naive(TABLES, grace)
    told = [naive.fold(rows, clock, partition) for rows, clock, partition in batches]
    return [[bar for bar in bars if bar.revision] + [bar for bar in bars if not bar.revision] for bars in told]


RELAXED = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@RELAXED
@given(streams(), st.sampled_from([0, 2 * SECOND, 59 * SECOND]))
def test_the_fold_says_what_the_naive_computation_says(batches: list[Batch], grace: int) -> None:
    assert run(Rig(grace=grace), batches) == computed(batches, grace)


@settings(RELAXED, max_examples=60)
@given(streams())
def test_the_uncompiled_kernel_says_the_same(batches: list[Batch]) -> None:
    assert run(Rig(kernel=PLAIN), batches) == computed(batches)


@RELAXED
@given(streams(), st.data())
def test_the_cut_into_batches_changes_no_final_number(batches: list[Batch], data: st.DataObject) -> None:
    whole, cut = Rig(), Rig()
    run(whole, batches)
    clocks: dict[int, int] = {}
    for rows, clock, partition in batches:
        # A part of a batch carries the clock that was known before it: only the whole has seen all that was published.
        at = data.draw(st.integers(0, len(rows)))
        if partition in clocks and at:
            run(cut, [(rows[:at], clocks[partition], partition), (rows[at:], clock, partition)])
        else:
            run(cut, [(rows, clock, partition)])
        clocks[partition] = max(clock, clocks.get(partition, clock))
    for rig in (whole, cut):
        run(rig, [([], 2 * max(MOMENTS), partition) for partition in clocks])

    def final(rig: Rig) -> dict[BarKey, Bar]:
        # How often a bar was told, when and why depends on the cut; what it says in the end does not.
        return {
            key: replace(bar, revision=min(bar.revision, 1), reason="", is_final=False)
            for key, bar in rig.store.bars.items()
        }

    assert final(cut) == final(whole)


@RELAXED
@given(streams(), st.data())
def test_a_restored_snapshot_continues_with_the_same_bytes(batches: list[Batch], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(batches)))
    straight, resumed = Rig(), Rig()
    told = run(straight, batches[:at])
    assert run(resumed, batches[:at]) == told
    snapshot = resumed.builder.snapshot()
    assert snapshot == straight.builder.snapshot()
    fresh = BarBuilder(load=resumed.store.load, sessions_of=TABLES.__getitem__)
    fresh.fold(batch([Row(MONDAY, 5, instrument_id=3)]), MONDAY, 99)  # what was there before is gone
    fresh.restore(snapshot)
    assert fresh.snapshot() == snapshot
    resumed.builder = fresh
    assert run(resumed, batches[at:]) == run(straight, batches[at:])
    assert fresh.snapshot() == straight.builder.snapshot()


@RELAXED
@given(streams())
def test_bars_not_yet_written_are_remembered(batches: list[Batch]) -> None:
    # The store sees nothing until the end: what the builder gave since the last `settle` must do.
    late = BarBuilder(load=no_bars, sessions_of=TABLES.__getitem__)
    told = []
    for rows, clock, partition in batches:
        folded = late.fold(batch(rows), clock, partition)
        told.append([*folded.bars, *folded.held])
    assert told == computed(batches)


def digest(seed: int, folds: int, kernel: ModuleType | None = None) -> str:
    """Fold a seeded stream, restoring in between, and hash all that comes out; run by a child process too."""
    source = random.Random(seed)
    rig, now, told = Rig(kernel=kernel), MONDAY - 10 * MINUTE, hashlib.sha256()
    for _ in range(folds):
        rig.builder.restore(rig.builder.snapshot())
        rows = [
            Row(
                ts_event=now + source.choice([0, 1, -5 * SECOND, -2 * MINUTE, -3 * HOUR, SECOND]),
                price=source.randint(-5, 10**12),
                size=source.randint(1, 10**15),
                instrument_id=source.randint(1, 3),
                source_id=source.randint(1, 40),
                conditions=source.choice([0, ODD_LOT, CLOSING]),
            )
            for _ in range(30)
        ]
        now += source.choice([SECOND, 20 * SECOND, 7 * MINUTE])
        told.update(repr(rig.fold(rows, now)).encode())
    told.update(rig.builder.snapshot())
    return told.hexdigest()


@pytest.mark.parametrize("variable", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_it_does_the_same_uncompiled_and_with_checked_bounds(variable: str, tmp_path: Path) -> None:
    # A cache of its own: compiled code from the ordinary one would come without the checks.
    program = "from tests.integration.test_bars import digest; print(digest(1, 20))"
    environment = {**os.environ, variable: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == digest(1, 20)


def test_many_keys_uncompiled() -> None:
    assert digest(2, 20, PLAIN) == digest(2, 20)


# --- arithmetic


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_products_are_exact(a: int, b: int) -> None:
    for kernel in (bar_kernel, PLAIN):
        low, middle, high = (int(digit) for digit in kernel.multiply(np.int64(a), np.int64(b)))
        assert low + (middle << 62) + (high << 124) == a * b
        assert 0 <= low < 2**62
        assert 0 <= middle < 2**62


def test_a_day_of_huge_trades_is_summed_exactly() -> None:
    rig = listening()
    biggest = 2**63 - 1
    rows = [Row(MONDAY + i, biggest if i % 3 else -biggest, biggest) for i in range(2000)]
    (bar,) = rig.shown(rows, MONDAY + 2 * MINUTE)
    assert bar.volume == 2000 * biggest
    assert bar.turnover == sum(row.price * row.size for row in rows)
    assert bar.volume_decimal == Decimal(2000 * biggest).scaleb(-9)


def test_amounts_as_decimals_are_exact_and_short() -> None:
    bar = made(volume=1200 * 10**9, turnover=224_550_500_000_000_000_000_000)
    assert str(bar.volume_decimal) == "1200"
    assert str(bar.turnover_decimal) == "224550.5"
    huge = made(volume=10**40 + 1, turnover=-(10**45) - 1)
    assert str(huge.volume_decimal) == "10000000000000000000000000000000.000000001"
    assert str(huge.turnover_decimal) == "-1000000000000000000000000000.000000000000000001"
    assert str(made(volume=0, turnover=0).volume_decimal) == "0"


# --- the record


def made(**changes: Any) -> Bar:
    bar = Bar(1, 0, "1m", MONDAY, MONDAY + MINUTE, 20_458, 5, 9, 2, 7, 10, 50, 3, MONDAY + 1, MONDAY + 9, 1, "first")
    return replace(bar, **changes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 6}, {"low": 8}, {"high": 6}, {"high": 4}, {"open": 1}, {"close": 1}, {"open": 10}, {"close": 10},
        {"end": MONDAY}, {"first_ts": MONDAY + 10}, {"revision": -1}, {"trade_count": -1},
    ],
)  # fmt: skip
def test_an_impossible_bar_cannot_be_made(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must hold, was Bar"):
        made(**wrong)


def test_edges_of_the_invariants_are_possible() -> None:
    made(open=2, close=9)
    made(first_ts=MONDAY + 9)
    made(open=5, high=5, low=5, close=5)
    made(revision=0, trade_count=0)


# --- which trades count, and for what


def test_open_high_low_close_volume_turnover_and_count() -> None:
    rig = listening()
    rows = [Row(MONDAY + 1, 50, 2), Row(MONDAY + 2, 70, 1), Row(MONDAY + 3, 40, 3), Row(MONDAY + 4, 60, 4)]
    (bar,) = rig.shown(rows, MONDAY + MINUTE + 2 * SECOND)
    assert bar == Bar(
        1,
        0,
        "1m",
        MONDAY,
        MONDAY + MINUTE,
        20_458,
        50,
        70,
        40,
        60,
        10,
        100 + 70 + 120 + 240,
        4,
        MONDAY + 1,
        MONDAY + 4,
        1,
        "first",
    )


def test_time_decides_open_and_close_and_arrival_decides_ties() -> None:
    rig = listening()
    rows = [
        Row(MONDAY + 5, 1),
        Row(MONDAY + 2, 2),
        Row(MONDAY + 2, 3),
        Row(MONDAY + 9, 4),
        Row(MONDAY + 9, 5),
        Row(MONDAY + 4, 6),
    ]
    (bar,) = rig.shown(rows, MONDAY + 2 * MINUTE)
    assert (bar.open, bar.close, bar.first_ts, bar.last_ts) == (2, 5, MONDAY + 2, MONDAY + 9)


def test_ties_across_sources_go_by_arrival() -> None:
    rig = listening()
    rows = [Row(MONDAY + 5, 8, source_id=2), Row(MONDAY + 5, 9, source_id=1), Row(MONDAY + 5, 7, source_id=2)]
    bars = {bar.source_id: bar for bar in rig.fold(rows, MONDAY + 2 * MINUTE) if bar.timeframe == "1m"}
    assert {source: (bar.open, bar.close, bar.trade_count) for source, bar in bars.items()} == {
        0: (8, 7, 3),
        1: (9, 9, 1),
        2: (8, 7, 2),
    }


@pytest.mark.parametrize("word", list(CONDITION_BITS))
def test_conditions(word: str) -> None:
    rig = listening()
    rows = [Row(MONDAY + 5, 10, 2), Row(MONDAY + 6, 99, 3, conditions=CONDITION_BITS[word])]
    (bar,) = rig.shown(rows, MONDAY + 2 * MINUTE)
    sets_price = word in {"opening", "closing", "intermarket_sweep"}
    counts = word not in {"official_open", "official_close"}
    assert (bar.high, bar.close) == ((99, 99) if sets_price else (10, 10))
    assert (bar.volume, bar.turnover, bar.trade_count) == ((5, 20 + 297, 2) if counts else (2, 20, 1))
    assert bar.last_ts == MONDAY + (6 if sets_price else 5)


@pytest.mark.parametrize(
    "other", [{"kind": QUOTE}, {"action": CORRECT}, {"action": CANCEL}, {"conditions": OFFICIAL_OPEN}]
)
def test_quotes_corrections_and_cancels_touch_nothing(other: dict[str, int]) -> None:
    rig = listening()
    assert rig.fold([Row(MONDAY + 5, 10, **other)], MONDAY + 5 * DAY) == []
    untouched = listening()
    untouched.fold([], MONDAY + 5 * DAY)
    assert rig.builder.snapshot() == untouched.builder.snapshot()


def test_a_tick_without_a_source_counts_once() -> None:
    rig = listening()
    bars = rig.fold([Row(MONDAY, 10, 3, source_id=0), Row(MONDAY, 10, 3, source_id=-4)], MONDAY + 2 * MINUTE)
    assert [(bar.source_id, bar.volume) for bar in bars if bar.timeframe == "1m"] == [(0, 6)]


# --- closing


@pytest.mark.parametrize(("clock", "closed"), [(MINUTE + 2 * SECOND - 1, False), (MINUTE + 2 * SECOND, True)])
def test_a_bar_closes_when_the_clock_has_passed_its_end_and_the_grace(clock: int, closed: bool) -> None:
    rig = listening()
    assert rig.fold([Row(MONDAY + 5, 10)], MONDAY + 6) == []
    assert bool(rig.shown([], MONDAY + clock)) is closed


@pytest.mark.parametrize(("ts", "closed"), [(MINUTE + 2 * SECOND - 1, False), (MINUTE + 2 * SECOND, True)])
def test_a_later_trade_closes_a_bar_though_the_clock_stands(ts: int, closed: bool) -> None:
    rig = listening()
    rig.fold([Row(MONDAY + 5, 10)], MONDAY + 6)
    assert bool(rig.shown([Row(MONDAY + ts, 11)], MONDAY + 6)) is closed


def test_each_timeframe_closes_once_and_in_order() -> None:
    rig = listening(tables={1: NEW_YORK})
    rows = [Row(MONDAY + minute * MINUTE, 100 + minute) for minute in range(241)]
    bars = [bar for bar in rig.fold(rows, MONDAY + 241 * MINUTE + 2 * SECOND) if bar.source_id == 0]
    counts = {timeframe: sum(bar.timeframe == timeframe for bar in bars) for timeframe in TIMEFRAMES}
    assert counts == {"1m": 241, "5m": 48, "15m": 16, "1h": 4, "4h": 1, "1d": 0}
    assert [bar.end for bar in bars] == sorted(bar.end for bar in bars)
    longest = next(bar for bar in bars if bar.timeframe == "4h")
    assert (longest.open, longest.close, longest.volume, longest.trade_count) == (100, 339, 240, 240)


def test_a_batch_that_spans_many_minutes_closes_them_all() -> None:
    rig = listening()
    rows = [Row(MONDAY + second * SECOND, second + 1) for second in range(0, 600, 7)]
    assert [bar.trade_count for bar in rig.shown(rows, MONDAY)] == [9, 9, 8, 9, 8, 9, 8, 9, 9]
    assert [bar.trade_count for bar in rig.shown([], MONDAY + HOUR)] == [8]


def test_the_third_open_bar_closes_the_oldest_and_not_the_one_in_its_grace() -> None:
    rig = listening()
    for minute in (0, 3, 6):  # each bar's place was another one's before
        rows = [Row(MONDAY + (minute + i) * MINUTE + (i == 2), minute + i + 1) for i in range(3)]
        told = rig.shown(rows, MONDAY)
        assert [bar.open for bar in told] == [minute - 1, minute, minute + 1][0 if minute else 2 :]


def test_rows_of_one_batch_are_never_late_among_themselves() -> None:
    rig = listening()
    assert rig.shown([Row(MONDAY + 10 * MINUTE, 5), Row(MONDAY, 6)], MONDAY)[0].reason == "first"


def test_an_instrument_of_two_partitions_waits_for_the_slower() -> None:
    rig = listening()
    rig.fold([], MONDAY - DAY, partition=9)
    rig.fold([Row(MONDAY, 10)], MONDAY + 1, partition=7)
    rig.fold([Row(MONDAY + 1, 11, source_id=2)], MONDAY + 2, partition=9)
    assert rig.shown([], MONDAY + HOUR, partition=7) == []
    (bar,) = rig.shown([], MONDAY + MINUTE + 2 * SECOND, partition=9)
    assert (bar.open, bar.close, bar.trade_count, bar.is_partial) == (10, 11, 2, False)


def test_an_instrument_of_another_partition_does_not_wait() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + 1, partition=7)
    assert rig.fold([], MONDAY + HOUR, partition=9) == []
    assert len(rig.shown([], MONDAY + HOUR, partition=7)) == 1


def test_a_clock_that_runs_backwards_changes_nothing() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + MINUTE)
    rig.fold([], MONDAY - DAY)
    (late,) = rig.shown([Row(MONDAY - 5 * MINUTE, 9)], MONDAY - DAY)
    assert late.reason == "late_trade"
    assert len(rig.shown([], MONDAY + MINUTE + 2 * SECOND)) == 1


def test_a_new_instrument_is_judged_by_the_highest_clock_of_its_partition() -> None:
    rig = listening()
    rig.fold([], MONDAY + HOUR)
    rig.fold([], MONDAY - DAY)
    assert rig.shown([Row(MONDAY, 5)], MONDAY)[0].reason == "late_trade"


def test_no_trade_no_bar() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + 1)
    told = [bar for hour in range(1, 100) for bar in rig.fold([], MONDAY + hour * HOUR)]
    assert sorted((bar.source_id, bar.timeframe) for bar in told) == sorted(
        (source, tf) for source in (0, 1) for tf in TIMEFRAMES
    )


# --- late trades


def test_a_late_trade_within_the_grace_is_silent() -> None:
    rig = listening()
    rig.fold([Row(MONDAY + 30 * SECOND, 10)], MONDAY + MINUTE + SECOND)
    (bar,) = rig.shown([Row(MONDAY + 59 * SECOND, 12)], MONDAY + MINUTE + 2 * SECOND)
    assert (bar.close, bar.revision, bar.reason) == (12, 1, "first")


@pytest.mark.parametrize(
    ("at", "price", "expected"),
    [
        (29 * SECOND, 50, (50, 50, 10, 11)),  # before the first: opens
        (30 * SECOND, 50, (10, 50, 10, 11)),  # with the first: it came later
        (35 * SECOND, 5, (10, 11, 5, 11)),
        (40 * SECOND, 5, (10, 11, 5, 5)),  # with the last: it came later, closes
        (41 * SECOND, 50, (10, 50, 10, 50)),
    ],
)
def test_a_late_trade_revises_the_stored_bar(at: int, price: int, expected: tuple[int, ...]) -> None:
    rig = listening()
    rig.fold([Row(MONDAY + 30 * SECOND, 10), Row(MONDAY + 40 * SECOND, 11)], MONDAY + 2 * MINUTE)
    bars = rig.fold([Row(MONDAY + at, price, 4)], MONDAY + 2 * MINUTE)
    assert [(bar.source_id, bar.timeframe) for bar in bars] == [(0, "1m"), (1, "1m")]
    bar = bars[0]
    assert (bar.open, bar.high, bar.low, bar.close) == expected
    assert (bar.revision, bar.reason, bar.volume, bar.trade_count) == (2, "late_trade", 6, 3)
    assert rig.shown([Row(MONDAY + at, price, 4)], MONDAY + 2 * MINUTE)[0].revision == 3


def test_a_batch_of_late_trades_is_one_revision_and_one_question() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + HOUR)
    rig.store.asked.clear()
    bars = rig.fold([Row(MONDAY + minute * MINUTE, 11) for minute in range(4) for _ in range(5)], MONDAY + HOUR)
    assert len({bar.key for bar in bars}) == len(bars) == len(rig.store.asked)
    five = next(bar for bar in bars if (bar.timeframe, bar.source_id) == ("5m", 0))
    assert (five.revision, five.trade_count) == (2, 21)


def test_a_bar_that_only_late_trades_made() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + 10 * MINUTE)
    (bar,) = rig.shown([Row(MONDAY + 2 * MINUTE, 9)], MONDAY + 10 * MINUTE)
    assert (bar.revision, bar.reason, bar.open) == (1, "late_trade", 9)


@pytest.mark.parametrize(
    ("flags", "reason"), [((0, 0), "late_trade"), ((FLAG_RELEASED, 0), "release"), ((256 + 1, 256), "release")]
)
def test_a_released_trade_gives_the_reason(flags: tuple[int, int], reason: str) -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 10)], MONDAY + 10 * MINUTE)
    (bar,) = rig.shown([Row(MONDAY, 9, flags=flags[0]), Row(MONDAY, 9, flags=flags[1])], MONDAY + 10 * MINUTE)
    assert (bar.revision, bar.reason) == (2, reason)


def test_a_released_trade_in_time_is_nothing_special() -> None:
    rig = listening()
    (bar,) = rig.shown([Row(MONDAY, 10, flags=FLAG_RELEASED)], MONDAY + 10 * MINUTE)
    assert (bar.revision, bar.reason) == (1, "first")


# --- bars without a price


def test_off_market_volume_is_held_until_a_price_arrives() -> None:
    rig = listening()
    assert rig.shown([Row(MONDAY, 77, 5, conditions=ODD_LOT)], MONDAY + 2 * MINUTE) == []
    held = rig.store.bars[BarKey(1, 0, "1m", MONDAY)]
    assert (held.revision, held.volume, held.open, held.first_ts, held.has_price) == (0, 5, 0, 0, False)
    assert rig.shown([Row(MONDAY + 1, 77, 6, conditions=ODD_LOT)], MONDAY + 2 * MINUTE) == []
    (bar,) = rig.shown([Row(MONDAY + 2, 10, 1)], MONDAY + 2 * MINUTE)
    assert (bar.revision, bar.reason, bar.open, bar.low, bar.volume, bar.trade_count) == (
        1,
        "late_trade",
        10,
        10,
        12,
        3,
    )


def test_off_market_volume_joins_a_price_of_its_own_interval() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 77, 5, conditions=ODD_LOT)], MONDAY + 1)
    (bar,) = rig.shown([Row(MONDAY + 5, 10, 1)], MONDAY + 2 * MINUTE)
    assert (bar.high, bar.volume, bar.first_ts) == (10, 6, MONDAY + 5)


def test_late_off_market_volume_revises_amounts_alone() -> None:
    rig = listening()
    rig.fold([Row(MONDAY + 5, 10, 1)], MONDAY + 2 * MINUTE)
    (bar,) = rig.shown([Row(MONDAY, 77, 5, conditions=ODD_LOT)], MONDAY + 2 * MINUTE)
    assert (bar.open, bar.high, bar.first_ts, bar.last_ts, bar.volume, bar.revision) == (
        10,
        10,
        MONDAY + 5,
        MONDAY + 5,
        6,
        2,
    )


# --- partial and final


@pytest.mark.parametrize(("first", "partial"), [(MONDAY, False), (MONDAY + 1, True)])
@pytest.mark.parametrize("by_publish_time", [False, True])
def test_partial_means_that_we_joined_inside_the_interval(first: int, partial: bool, by_publish_time: bool) -> None:
    rig = Rig()
    if by_publish_time:
        rig.fold([Row(first + 9, 1, ts_publish=first + 9), Row(first, 1, ts_publish=first)], first + 30 * SECOND)
    else:
        rig.fold([Row(first + 9, 1)], first)
    told = rig.fold([Row(MONDAY + MINUTE, 2)], MONDAY + 5 * DAY)
    partials = {(bar.timeframe, bar.start): bar.is_partial for bar in told}
    assert partials["1m", MONDAY] is partial
    assert partials["1m", MONDAY + MINUTE] is False
    assert partials["5m", MONDAY] is partial
    assert partials["1d", MONDAY // DAY * DAY] is True


def test_a_new_instrument_on_a_partition_we_know_is_complete() -> None:
    rig = listening()
    assert not any(bar.is_partial for bar in rig.fold([Row(MONDAY + 31 * SECOND, 5)], MONDAY + 5 * DAY))


def test_a_late_trade_from_before_we_joined_is_partial_and_stays_so() -> None:
    rig = Rig()
    rig.fold([], MONDAY)
    assert rig.shown([Row(MONDAY - 5 * MINUTE, 5)], MONDAY)[0].is_partial
    assert rig.shown([Row(MONDAY - 5 * MINUTE, 5)], MONDAY)[0].is_partial


@pytest.mark.parametrize(("joined", "partial"), [("2026-01-05T05:00:00", False), ("2026-01-05T05:00:01", True)])
def test_the_day_is_complete_when_we_heard_it_since_local_midnight(joined: str, partial: bool) -> None:
    rig = Rig(tables={1: NEW_YORK})
    rig.fold([], ns(joined))
    (bar,) = rig.shown([Row(MONDAY, 5)], MONDAY + 7 * HOUR, timeframe="1d")
    assert bar.is_partial is partial


@pytest.mark.parametrize(("joined", "partial"), [("2026-01-04T23:00:00", False), ("2026-01-04T23:00:01", True)])
def test_an_overnight_day_is_complete_when_we_heard_it_since_the_open(joined: str, partial: bool) -> None:
    rig = Rig(tables={1: CHICAGO})
    rig.fold([], ns(joined))
    (bar,) = rig.shown([Row(MONDAY, 5)], MONDAY + DAY, timeframe="1d")
    assert (bar.is_partial, bar.is_final, bar.session_date) == (partial, True, 20_458)


def test_an_instrument_is_as_complete_as_the_partition_we_joined_last() -> None:
    rig = listening()
    rig.fold([Row(MONDAY + 90 * SECOND, 5)], MONDAY + 90 * SECOND, partition=9)
    told = rig.fold([Row(MONDAY, 5)], MONDAY + HOUR, partition=7) + rig.fold([], MONDAY + HOUR, partition=9)
    partials = {bar.start: bar.is_partial for bar in told if (bar.timeframe, bar.source_id) == ("1m", 0)}
    assert partials == {MONDAY: True, MONDAY + MINUTE: True}


def test_a_bar_turns_partial_when_its_instrument_turns_up_on_a_partition_we_joined_later() -> None:
    rig = listening()
    rig.fold([], MONDAY + 30 * SECOND, partition=9)
    assert not rig.shown([Row(MONDAY, 5)], MONDAY + HOUR, partition=7)[0].is_partial
    assert rig.shown([Row(MONDAY + 1, 6)], MONDAY + HOUR, partition=9)[0].is_partial


def test_a_partial_day_stays_partial_when_it_is_told_again() -> None:
    rig = Rig(tables={1: NEW_YORK})
    rig.fold([Row(MONDAY + HOUR, 5)], MONDAY + HOUR)
    assert rig.shown([], CLOSE + 2 * SECOND, timeframe="1d")[0].is_partial
    assert rig.shown([], MIDNIGHT + 2 * SECOND, timeframe="1d")[0].is_partial


CLOSE = ns("2026-01-05T21:00:00")
MIDNIGHT = ns("2026-01-06T05:00:00")


def day_rig() -> Rig:
    rig = listening(tables={1: NEW_YORK})
    rig.fold([Row(MONDAY + 5, 10, 3)], MONDAY + 6)
    return rig


def test_the_day_comes_out_at_the_close_and_again_when_it_is_over() -> None:
    rig = day_rig()
    assert rig.shown([], CLOSE + 2 * SECOND - 1, timeframe="1d") == []
    (first,) = rig.shown([], CLOSE + 2 * SECOND, timeframe="1d")
    assert (first.start, first.end, first.revision, first.reason, first.is_final) == (MONDAY, CLOSE, 1, "first", False)
    assert rig.shown([], MIDNIGHT + 2 * SECOND - 1, timeframe="1d") == []
    (last,) = rig.shown([], MIDNIGHT + 2 * SECOND, timeframe="1d")
    assert last == replace(first, revision=2, is_final=True)


@pytest.mark.parametrize("ts", [CLOSE, CLOSE + HOUR, MIDNIGHT - 1])
def test_volume_after_hours_waits_for_the_end_of_the_day(ts: int) -> None:
    rig = day_rig()
    rig.fold([], CLOSE + 2 * SECOND)
    assert rig.shown([Row(ts, 12, 4, conditions=EXTENDED)], ts, timeframe="1d") == []
    (last,) = rig.shown([], MIDNIGHT + 2 * SECOND, timeframe="1d")
    assert (last.revision, last.reason, last.volume, last.close, last.is_final) == (2, "late_trade", 7, 10, True)


def test_the_closing_auction_revises_the_day_at_once() -> None:
    rig = day_rig()
    rig.fold([], CLOSE + 2 * SECOND)
    (bar,) = rig.shown([Row(CLOSE + 5 * SECOND, 12, 4, conditions=CLOSING)], CLOSE + 6 * SECOND, timeframe="1d")
    assert (bar.revision, bar.reason, bar.close, bar.is_final) == (2, "late_trade", 12, False)
    (last,) = rig.shown([], MIDNIGHT + DAY, timeframe="1d")
    assert last == replace(bar, revision=3, is_final=True)


@pytest.mark.parametrize("flags", [0, FLAG_RELEASED])
def test_a_late_trade_of_the_session_revises_the_day_at_once(flags: int) -> None:
    rig = day_rig()
    rig.fold([Row(CLOSE + 1, 12, 4, conditions=EXTENDED)], CLOSE + 2 * SECOND)
    rows = [Row(CLOSE - 1, 12, 4, conditions=ODD_LOT, flags=flags)]
    (bar,) = rig.shown(rows, CLOSE + 3 * SECOND, timeframe="1d")
    assert (bar.revision, bar.volume, bar.reason) == (2, 11, "release" if flags else "late_trade")


def test_a_day_of_after_hours_volume_alone_is_held_when_it_is_over() -> None:
    rig = listening(tables={1: NEW_YORK})
    rig.fold([Row(CLOSE + HOUR, 12, 4, conditions=EXTENDED)], CLOSE + HOUR)
    assert rig.shown([], MIDNIGHT + 2 * SECOND, timeframe="1d") == []
    assert rig.store.bars[BarKey(1, 0, "1d", MONDAY)].volume == 4


def test_a_day_that_is_over_at_once_comes_out_once_and_final() -> None:
    (bar,) = day_rig().shown([], MIDNIGHT + 2 * SECOND, timeframe="1d")
    assert (bar.revision, bar.reason, bar.is_final) == (1, "first", True)


def test_short_bars_become_final_with_their_session() -> None:
    rig = day_rig()
    assert not rig.shown([], CLOSE)[0].is_final
    assert not rig.shown([Row(MONDAY, 9)], MIDNIGHT + 2 * SECOND - 1)[0].is_final
    assert rig.shown([Row(MONDAY, 9)], MIDNIGHT + 2 * SECOND)[0].is_final


# --- many keys


def test_keys_beyond_every_first_room() -> None:
    rig = listening(tables=dict.fromkeys(range(2_000_000_000 - 400, 2_000_000_000 + 1), ALWAYS))
    rows = [
        Row(
            MONDAY + minute * MINUTE, instrument, instrument_id=2_000_000_000 - instrument, source_id=2**31 - 1 - minute
        )
        for minute in range(3)
        for instrument in range(1, 400)
    ]
    bars = rig.shown(rows, MONDAY + 5 * MINUTE)
    assert len(bars) == 3 * 399
    assert all(bar.open == 2_000_000_000 - bar.instrument_id for bar in bars)


def test_calendars_are_asked_for_once_per_instrument() -> None:
    asked: list[int] = []

    def sessions_of(instrument_id: int) -> SessionTable:
        asked.append(instrument_id)
        return ALWAYS

    builder = BarBuilder(load=no_bars, sessions_of=sessions_of)
    for _ in range(3):
        builder.fold(
            batch(
                [
                    Row(MONDAY, 1, source_id=source, instrument_id=instrument)
                    for source in (1, 2)
                    for instrument in (5, 6)
                ]
            ),
            MONDAY,
            1,
        )
    assert asked == [5, 6]


# --- failures


@pytest.mark.parametrize("grace", [-1, MINUTE])
def test_a_grace_as_long_as_a_bar_is_refused(grace: int) -> None:
    with pytest.raises(ValueError, match="grace"):
        BarBuilder(load=no_bars, sessions_of=TABLES.__getitem__, grace_ns=grace)


def test_after_a_failure_only_a_restore_helps() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 1)], MONDAY + HOUR)
    snapshot = rig.builder.snapshot()

    def fails(keys: Sequence[BarKey]) -> Iterable[Bar]:
        raise ConnectionError

    rig.builder._load = fails
    with pytest.raises(ConnectionError):
        rig.fold([Row(MONDAY, 1)], MONDAY + HOUR)
    rig.builder._load = rig.store.load
    with pytest.raises(RuntimeError, match="restore"):
        rig.fold([], MONDAY + HOUR)
    rig.builder.restore(snapshot)
    assert rig.shown([Row(MONDAY, 1)], MONDAY + HOUR)[0].trade_count == 2


def test_bytes_that_are_no_snapshot_are_refused_and_change_nothing() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 1)], MONDAY)
    good = rig.builder.snapshot()
    flipped = bytearray(good)
    flipped[60] ^= 1
    for bad in (b"", b"MDIBARS\x02" + good[8:], good[:-1], good + b"\0", bytes(flipped), b"x" * 100):
        with pytest.raises(ValueError, match="snapshot"):
            rig.builder.restore(bad)
        assert rig.builder.snapshot() == good


def test_an_empty_state_has_a_snapshot() -> None:
    rig = Rig()
    empty = rig.builder.snapshot()
    rig.builder.restore(empty)
    assert rig.builder.snapshot() == empty
    assert rig.shown([Row(MONDAY, 1)], MONDAY + HOUR)[0].trade_count == 1


def test_another_grace_after_a_restart_holds_from_then_on() -> None:
    rig = listening()
    rig.fold([Row(MONDAY, 1)], MONDAY + 1)
    patient = Rig(grace=30 * SECOND)
    patient.builder.restore(rig.builder.snapshot())
    assert patient.shown([], MONDAY + MINUTE + 29 * SECOND) == []
    assert len(patient.shown([], MONDAY + MINUTE + 30 * SECOND)) == 1


def test_revise_keeps_what_it_is_not_told() -> None:
    late = made(open=1, high=1, low=1, close=1, first_ts=MONDAY, last_ts=MONDAY, is_partial=False, reason="late_trade")
    stored = made(is_partial=True, revision=4)
    assert revise(stored, late) == replace(
        stored, open=1, low=1, first_ts=MONDAY, volume=20, turnover=100, trade_count=6, revision=5, reason="late_trade"
    )
    assert revise(None, late) == late


def test_empty_columns_are_a_batch() -> None:
    assert listening().builder.fold(Ticks.zeros(0), MONDAY, 7) == Folded()


def test_a_calendar_is_kept_once_for_all_instruments_that_share_it() -> None:
    rig = listening(tables={1: NEW_YORK, 2: CHICAGO, 3: NEW_YORK, 4: CHICAGO})
    rows = [Row(MONDAY + number, 5, instrument_id=number) for number in (1, 2, 3, 4)]
    bars = rig.shown(rows, MONDAY + 2 * MINUTE)
    assert [bar.session_date for bar in bars] == [bars[0].session_date] * 4
    first, second = rig.builder._calendar_bounds
    assert (first[0], first[1], second[1]) == (0, second[0], len(rig.builder._calendar_rows))


def test_first_session_of_a_calendar_begins_where_that_calendar_does() -> None:
    # New York's first midnight here; its 4h bars before the open would begin at 02:30.
    first = ns("2024-01-02T05:00:00")
    rig = Rig(tables={1: CHICAGO, 2: NEW_YORK})
    rig.fold([], first - DAY)
    rows = [Row(first - 5, 7, instrument_id=1), Row(first, 8, instrument_id=2)]
    bars = {bar.instrument_id: bar for bar in rig.shown(rows, first + HOUR * 5, timeframe="4h")}
    assert (bars[2].start, bars[2].end) == (first, ns("2024-01-02T06:30:00"))
