"""Corrections and cancels: the fold against the naive computation, over batches, rounds and restarts; then each rule by itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.bars import Bar, BarKey
from integration.corrections import APPLIED, INCOMPLETE, WAITING, Amendment, StoredTrade, TradeKey, after, meant
from integration.market.events import decode_bar, decode_numbered_ticks
from integration.market.sessions import DAY, HOUR, MINUTE, SECOND, TIMEFRAMES
from integration.market.ticks import CANCEL, CONDITION_BITS, CORRECT, FLAG_RELEASED, NEW, TRADE, Ticks
from integration.sequencer import BARS_TOPIC, TICKS_TOPIC, CommittedBatch, Sequenced, Sequencer
from tests.e2e.events import TS, reference
from tests.integration.naive_bars import Naive, Row, batch

GRACE = 2 * SECOND
ODD_LOT = CONDITION_BITS["odd_lot"]
OFFICIAL_OPEN = CONDITION_BITS["official_open"]
EXTENDED = CONDITION_BITS["extended_hours"]
CLOSING = CONDITION_BITS["closing"]
REFERENCE = reference()
TABLES: dict[int, Any] = {
    number: REFERENCE.sessions[facts.venue] for number, facts in REFERENCE.instruments.items() if number != 5
}
NEW_YORK = 6
CLOSE = TS + 6 * HOUR + 30 * MINUTE


@dataclass
class Disk:
    """What the database would hold: batches, amendments and bars, each with the number of the batch that wrote it."""

    batches: list[CommittedBatch] = field(default_factory=list)
    gone: int = 0  # batches up to this number were deleted by retention; their trades are still there
    bars: dict[BarKey, Bar] = field(default_factory=dict)
    written: dict[tuple[int, ...], Amendment] = field(default_factory=dict)
    searches: int = 0
    lost: set[int] = field(default_factory=set)  # sequences of trades that are no longer there

    def store(self, done: Sequence[Sequenced]) -> None:
        for item in done:
            for bar in (*item.bars, *item.held):
                known = self.bars.get(bar.key)
                assert bar.revision == (known.revision if known else 0) + (1 if bar.is_published else 0)
                self.bars[bar.key] = bar
            for one in item.amendments:
                self.written[one.source_id, one.channel, one.session, one.sequence] = one

    def load(self, keys: Sequence[BarKey]) -> list[Bar]:
        return [self.bars[key] for key in keys if key in self.bars]

    def minute_bars(self, instrument_id: int, source_id: int, start: int, end: int) -> list[Bar]:
        return [
            bar
            for key, bar in self.bars.items()
            if key[:3] == (instrument_id, source_id, "1m") and start <= key.start < end
        ]

    def all_trades(self, until: int) -> Iterable[StoredTrade]:
        names = StoredTrade._fields[:11]
        for number, one in enumerate(self.batches[:until], 1):
            for row in np.flatnonzero((one.ticks.kind == TRADE) & (one.ticks.action == NEW)).tolist():
                values = [int(getattr(one.ticks, name)[row]) for name in names]
                # What has no batch any more has lost its place in it too; order is all that is left.
                trade = StoredTrade._make((*values, 0 if number <= self.gone else number, number * 1000 + row))
                if trade.sequence not in self.lost:
                    yield trade

    def candidates(self, wanted: Sequence[tuple[TradeKey, int]], until: int) -> list[StoredTrade]:
        self.searches += 1
        keys = {key for key, _ in wanted}
        return [trade for trade in self.all_trades(until) if trade.key in keys]

    def trades(self, minutes: Sequence[tuple[int, int]], until: int) -> list[StoredTrade]:
        return [trade for trade in self.all_trades(until) if trade.minute in set(minutes)]

    def amendments(self, minutes: Sequence[tuple[int, int]], until: int) -> list[Amendment]:
        found = [one for one in self.written.values() if one.state == APPLIED and one.bound_seq <= until]
        return [one for one in found if one.minute in set(minutes)]


class Run:
    """A sequencer with its disk, as its loop keeps them: rounds, checkpoints, restarts."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.sequences = 0
        self.checkpoint, self.checkpoint_at = b"", 0
        self.sequencer = self.fresh()
        self.told: list[Sequenced] = []

    def fresh(self) -> Sequencer:
        return Sequencer(epoch=1, load=self.disk.load, reference=lambda: REFERENCE, grace_ns=GRACE, records=self.disk)

    def batch(self, rows: list[Row], clock: int, partition: int = 7) -> CommittedBatch:
        ticks = batch(rows)
        ticks.sequence[:] = self.sequences + 1 + np.arange(len(rows))
        self.sequences += len(rows)
        return CommittedBatch(100 + self.sequences, partition, clock, clock, ticks, np.zeros((0, 5), np.int64))

    def round(self, batches: Sequence[CommittedBatch], *, checkpoint: bool = False) -> list[Sequenced]:
        done = [self.sequencer.fold(one) for one in batches]
        self.disk.batches += batches
        self.disk.store(done)
        if checkpoint or any(item.amendments for item in done):
            self.checkpoint, self.checkpoint_at = self.sequencer.snapshot(), len(self.disk.batches)
        self.sequencer.settle()
        self.told += done
        return done

    def restart(self) -> None:
        self.sequencer = self.fresh()
        if self.checkpoint:
            self.sequencer.restore(self.checkpoint)
        for one in self.disk.batches[self.checkpoint_at :]:
            self.sequencer.fold(one)
            self.sequencer.settle()

    def fold(self, rows: list[Row], clock: int, partition: int = 7) -> list[Bar]:
        (done,) = self.round([self.batch(rows, clock, partition)])
        return done.bars

    def shown(
        self, rows: list[Row], clock: int, *, timeframe: str = "1m", source: int = 0, partition: int = 7
    ) -> list[Bar]:
        bars = self.fold(rows, clock, partition)
        return [bar for bar in bars if (bar.timeframe, bar.source_id) == (timeframe, source)]

    def bar(self, start: int = TS, timeframe: str = "1m", source: int = 0, instrument: int = 1) -> Bar:
        return self.disk.bars[BarKey(instrument, source, timeframe, start)]


def listening() -> Run:
    """A run that has listened since long before."""
    run = Run()
    run.fold([], TS - 3 * DAY)
    return run


def correct(trade_id: int, ts: int = TS, price: int = 10, size: int = 1, **other: Any) -> Row:
    return Row(ts, price, size, trade_id=trade_id, action=CORRECT, **other)


def cancel(trade_id: int, ts: int = TS, **other: Any) -> Row:
    return Row(ts, 10, trade_id=trade_id, action=CANCEL, **other)


# --- the fold against the naive computation


Batch = tuple[list[Row], int, int]


@st.composite
def streams(draw: st.DrawFn) -> list[Batch]:
    now = draw(st.sampled_from([TS, CLOSE, CLOSE + 8 * HOUR, TS + 4 * DAY])) + draw(st.integers(-2, 2)) * MINUTE
    batches: list[Batch] = []
    for _ in range(draw(st.integers(2, 9))):
        rows = [_row(draw, now) for _ in range(draw(st.integers(0, 6)))]
        now += draw(st.sampled_from([0, SECOND, 30 * SECOND, MINUTE, MINUTE, 5 * MINUTE, HOUR, 9 * HOUR, DAY]))
        batches.append((rows, now - draw(st.sampled_from([0, 0, HOUR])), draw(st.sampled_from([7, 7, 7, 9]))))
    return batches


def _row(draw: st.DrawFn, now: int) -> Row:
    return Row(
        ts_event=now + draw(st.sampled_from([0, 0, 1, -1, -SECOND, -3 * SECOND, -MINUTE, -3 * MINUTE, -HOUR, -DAY])),
        price=draw(st.integers(-3, 5)),
        size=draw(st.sampled_from([1, 2, 3, 2**62])),
        instrument_id=draw(st.sampled_from([1, 1, 1, NEW_YORK, NEW_YORK, 2])),
        source_id=draw(st.sampled_from([1, 1, 1, 2, 0])),
        conditions=draw(st.sampled_from([0, 0, 0, 0, CLOSING, ODD_LOT, OFFICIAL_OPEN, EXTENDED])),
        flags=draw(st.sampled_from([0, 0, 0, FLAG_RELEASED])),
        action=draw(st.sampled_from([NEW, NEW, NEW, CORRECT, CORRECT, CANCEL])),
        trade_id=draw(st.integers(1, 4)),
        ts_publish=draw(st.sampled_from([0, now])),
    )


def numbered(batches: list[Batch]) -> list[Batch]:
    """Give the rows the sequences that the run will give them."""
    count, made = 0, []
    for rows, clock, partition in batches:
        made.append(([replace(row, sequence=count + at + 1) for at, row in enumerate(rows)], clock, partition))
        count += len(rows)
    return made


def computed(batches: list[Batch]) -> list[list[Bar]]:
    naive = Naive(TABLES, GRACE)
    told = [naive.fold(rows, clock, partition) for rows, clock, partition in numbered(batches)]
    return [[bar for bar in bars if bar.revision] + [bar for bar in bars if not bar.revision] for bars in told]


def said(run: Run) -> list[list[Bar]]:
    return [[*item.bars, *item.held] for item in run.told]


RELAXED = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@RELAXED
@given(streams())
def test_the_fold_says_what_the_naive_computation_says(batches: list[Batch]) -> None:
    run = Run()
    for rows, clock, partition in batches:
        run.fold(rows, clock, partition)
    assert said(run) == computed(batches)


@RELAXED
@given(streams(), st.data())
def test_rounds_restarts_and_retention_change_no_byte(batches: list[Batch], data: st.DataObject) -> None:
    straight, other = Run(), Run()
    for rows, clock, partition in batches:
        straight.fold(rows, clock, partition)
    waiting = [other.batch(rows, clock, partition) for rows, clock, partition in batches]
    while waiting:
        many = data.draw(st.integers(1, len(waiting)))
        other.round(waiting[:many], checkpoint=data.draw(st.booleans()))
        waiting = waiting[many:]
        if data.draw(st.booleans()):
            other.restart()
        other.disk.gone = data.draw(st.integers(other.disk.gone, max(other.disk.gone, other.checkpoint_at)))
    assert other.told == straight.told
    assert other.sequencer.snapshot() == straight.sequencer.snapshot()


@RELAXED
@given(streams())
def test_final_bars_are_those_of_the_effective_trades_alone(batches: list[Batch]) -> None:
    """An oracle without revisions: the trades that are left, put into their intervals."""
    run = Run()
    for rows, clock, partition in batches:
        run.fold(rows, clock, partition)
    for partition in (7, 9):
        run.fold([], TS + 40 * DAY, partition)
    naive = Naive(TABLES, GRACE)
    for rows, clock, partition in numbered(batches):
        naive.fold(rows, clock, partition)
    left = [trade.row for trade in naive.all_trades if trade.now]
    for key, bar in run.disk.bars.items():
        table = TABLES[key.instrument_id]
        mine = [
            row
            for row in left
            if row.instrument_id == key.instrument_id
            and key.source_id in (0, max(row.source_id, 0))
            and int(table.bar_starts(np.array([row.ts_event], np.int64), key.timeframe)[0][0]) == key.start
        ]
        prices = [row.price for row in mine if row.sets_price]
        sized = [row for row in mine if row.counts_volume]
        assert bar.has_price == bool(prices)
        assert (bar.volume, bar.trade_count) == (sum(row.size for row in sized), len(sized))
        assert bar.turnover == sum(row.price * row.size for row in sized)
        if prices:
            assert (bar.high, bar.low) == (max(prices), min(prices))


# --- what a correction and a cancel do


def three(run: Run, minute: int = TS) -> None:
    """Fold three trades of a minute, ids 1 to 3: 20, then 30 (the high), then 10 (the low and last)."""
    rows = [Row(minute + at, price, 2, trade_id=at) for at, price in ((1, 20), (2, 30), (3, 10))]
    run.fold(rows, minute + 4)


@pytest.mark.parametrize(
    ("row", "expected", "reason"),
    [
        (cancel(1), (30, 30, 10, 10, 4, 80, 2), "cancel"),
        (cancel(2), (20, 20, 10, 10, 4, 60, 2), "cancel"),
        (cancel(3), (20, 30, 20, 30, 4, 100, 2), "cancel"),
        (correct(1, price=25, size=1), (25, 30, 10, 10, 5, 105, 3), "correction"),
        (correct(2, price=15, size=2), (20, 20, 10, 10, 6, 90, 3), "correction"),
        (correct(3, price=40, size=2), (20, 40, 20, 40, 6, 180, 3), "correction"),
        (correct(3, price=10, size=2, conditions=ODD_LOT), (20, 30, 20, 30, 6, 120, 3), "correction"),
        (correct(3, price=10, size=2, conditions=OFFICIAL_OPEN), (20, 30, 20, 30, 4, 100, 2), "correction"),
    ],
)
def test_every_timeframe_and_both_series_are_revised(row: Row, expected: tuple[int, ...], reason: str) -> None:
    run = listening()
    three(run)
    run.fold([], TS + 2 * DAY)
    bars = run.fold([replace(row, ts_event=TS + DAY)], TS + 2 * DAY)
    assert {(bar.source_id, bar.timeframe) for bar in bars} == {(s, tf) for s in (0, 1) for tf in TIMEFRAMES}
    assert len(bars) == 12
    for bar in bars:
        assert (bar.revision, bar.reason, bar.is_final) == (2, reason, True)
        assert expected == (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover, bar.trade_count)


def test_a_bar_that_is_not_out_yet_changes_in_silence() -> None:
    run = listening()
    three(run)
    assert run.fold([cancel(2)], TS + 5) == []
    (bar,) = run.shown([], TS + MINUTE + GRACE)
    assert (bar.revision, bar.reason, bar.high, bar.trade_count) == (1, "first", 20, 2)


def test_a_trade_and_its_cancel_in_one_batch_were_never_there() -> None:
    run = listening()
    run.fold([cancel(1, TS), Row(TS, 9, trade_id=1), Row(TS + 1, 5, trade_id=2)], TS + 1)
    (bar,) = run.shown([], TS + 2 * MINUTE)
    assert (bar.open, bar.high, bar.trade_count, bar.revision) == (5, 5, 1, 1)


def test_a_cancel_before_its_trade_waits_and_the_late_trade_does_not_count() -> None:
    run = listening()
    run.fold([Row(TS, 5)], TS + 2 * MINUTE)
    (done,) = run.round([run.batch([cancel(1)], TS + 2 * MINUTE)])
    assert [one.state for one in done.amendments] == [WAITING]
    run.restart()
    (done,) = run.round([run.batch([Row(TS, 99, trade_id=1)], TS + 2 * MINUTE)])
    assert [(one.state, one.trade_ts) for one in done.amendments] == [(APPLIED, TS)]
    assert done.bars == []
    assert run.bar().trade_count == 1
    # It has done its work: another trade of this name counts.
    assert run.shown([Row(TS, 98, trade_id=1)], TS + 2 * MINUTE)[0].trade_count == 2


def test_a_correction_before_its_trade_waits_and_the_trade_counts_as_corrected() -> None:
    run = listening()
    run.fold([correct(1, price=7, size=3)], TS)
    assert run.fold([], TS + HOUR) == []
    (bar,) = run.shown([Row(TS, 99, 1, trade_id=1)], TS + HOUR)
    assert (bar.open, bar.high, bar.volume, bar.reason) == (7, 7, 3, "late_trade")


def test_a_correction_of_a_correction_takes_its_place() -> None:
    run = listening()
    three(run)
    run.fold([], TS + HOUR)
    assert run.shown([correct(2, price=50, size=2)], TS + HOUR)[0].high == 50
    (bar,) = run.shown([correct(2, price=35, size=2)], TS + HOUR)
    assert (bar.high, bar.revision, bar.turnover) == (35, 3, 40 + 70 + 20)


def test_a_cancel_of_a_corrected_trade_is_final() -> None:
    run = listening()
    three(run)
    run.fold([correct(2, price=50)], TS + HOUR)
    (bar,) = run.shown([cancel(2)], TS + HOUR)
    assert (bar.high, bar.trade_count, bar.reason) == (20, 2, "cancel")
    assert run.fold([cancel(2)], TS + HOUR) == []
    assert run.fold([correct(2, price=60)], TS + HOUR) == []
    assert {one.state for one in run.disk.written.values()} == {APPLIED}


def test_a_correction_that_changes_nothing_revises_nothing() -> None:
    run = listening()
    three(run)
    run.fold([], TS + HOUR)
    assert run.fold([correct(2, price=30, size=2, conditions=CLOSING)], TS + HOUR) == []


def test_one_batch_of_many_amendments_is_one_revision_and_one_search() -> None:
    run = listening()
    three(run)
    run.fold([], TS + HOUR)
    run.disk.searches = 0
    rows = [correct(1, price=8), cancel(2), correct(3, price=9), correct(1, price=12)]
    (bar,) = run.shown(rows, TS + HOUR)
    assert (bar.revision, bar.reason, bar.open, bar.close, bar.trade_count) == (2, "cancel", 12, 9, 2)
    assert run.disk.searches == 1


def test_a_correction_keeps_the_time_and_the_place_of_its_trade() -> None:
    run = listening()
    run.fold([Row(TS, 1, trade_id=1), Row(TS, 2, trade_id=2), Row(TS, 3, trade_id=3)], TS + HOUR)
    (bar,) = run.shown([correct(1, TS + HOUR, price=4), correct(2, TS + HOUR, price=5)], TS + HOUR)
    assert (bar.open, bar.close, bar.first_ts, bar.last_ts) == (4, 3, TS, TS)


def test_a_trade_that_did_not_count_arrives_with_its_correction() -> None:
    run = listening()
    run.fold([Row(TS, 1, trade_id=1, conditions=OFFICIAL_OPEN), Row(TS, 2, trade_id=2)], TS + HOUR)
    (bar,) = run.shown([correct(1, price=3)], TS + HOUR)
    assert (bar.reason, bar.trade_count, bar.open, bar.close) == ("late_trade", 2, 2, 3)
    # Rebuilt for another reason, it stands where it was counted.
    (bar,) = run.shown([correct(2, price=4)], TS + HOUR)
    assert (bar.reason, bar.open, bar.close) == ("correction", 4, 3)


def test_late_trade_and_correction_of_one_batch_are_two_revisions() -> None:
    run = listening()
    three(run)
    run.fold([], TS + HOUR)
    bars = run.shown([Row(TS + 9, 99), cancel(1)], TS + HOUR)
    assert [(bar.revision, bar.reason, bar.open, bar.close) for bar in bars] == [
        (2, "cancel", 30, 10), (3, "late_trade", 30, 99),
    ]  # fmt: skip


def test_a_cancel_touches_only_its_own_source_and_the_whole() -> None:
    run = listening()
    run.fold([Row(TS, 5, trade_id=1), Row(TS, 6, source_id=2, trade_id=1)], TS + HOUR)
    bars = run.fold([cancel(1, source_id=2)], TS + HOUR)
    assert {(bar.source_id, bar.trade_count) for bar in bars if bar.timeframe == "1m"} == {(0, 1), (2, 0)}
    assert run.bar(source=1).revision == 1


# --- a bar whose last price is gone


def test_a_bar_whose_last_trade_was_cancelled_is_withdrawn() -> None:
    run = listening()
    run.fold([Row(TS, 20, 4, trade_id=1)], TS + HOUR)
    (done,) = run.round([run.batch([cancel(1)], TS + HOUR)])
    bar = next(bar for bar in done.bars if (bar.timeframe, bar.source_id) == ("1m", 0))
    assert (bar.revision, bar.reason, bar.has_price, bar.is_published) == (2, "cancel", False, True)
    events = [decode_bar(message.payload) for message in done.messages if message.topic == BARS_TOPIC]
    assert {(event.open, event.high, event.low, event.close) for event in events} == {(20, 20, 20, 20)}
    assert {(event.volume, event.turnover, event.trade_count) for event in events} == {(0, 0, 0)}
    # A trade that comes after all makes it a bar again.
    (bar,) = run.shown([Row(TS, 7, 2)], TS + HOUR)
    assert (bar.revision, bar.open, bar.low, bar.trade_count, bar.has_price) == (3, 7, 7, 1, True)


def test_a_withdrawn_bar_tells_its_volume_when_it_has_a_price_again() -> None:
    run = listening()
    run.fold([Row(TS, 20, 4, trade_id=1), Row(TS + 1, 20, 8, conditions=ODD_LOT)], TS + HOUR)
    (done,) = run.round([run.batch([cancel(1), Row(TS, 9, 16, conditions=ODD_LOT)], TS + HOUR)])
    events = [decode_bar(message.payload) for message in done.messages if message.topic == BARS_TOPIC]
    mine = [event for event in events if (event.timeframe, event.source_id) == ("1m", 0)]
    assert [(event.revision, event.volume, event.trade_count, event.close) for event in mine] == [
        (2, 0, 0, 20), (3, 0, 0, 20),
    ]  # fmt: skip
    assert (run.bar().volume, run.bar().trade_count) == (24, 2)
    (bar,) = run.shown([Row(TS, 7, 1)], TS + HOUR)
    assert (bar.revision, bar.volume, bar.trade_count, bar.low) == (4, 25, 3, 7)


def test_a_day_that_is_out_and_loses_its_price_is_withdrawn_and_comes_back() -> None:
    run = listening()
    run.fold([Row(TS, 20, trade_id=1, instrument_id=NEW_YORK)], CLOSE + GRACE)
    (bar,) = run.shown([cancel(1, instrument_id=NEW_YORK)], CLOSE + GRACE, timeframe="1d")
    assert (bar.revision, bar.has_price, bar.close, bar.is_final) == (2, False, 20, False)
    (last,) = run.shown([], CLOSE + DAY, timeframe="1d")
    assert last == replace(bar, revision=3, is_final=True)
    assert run.shown([Row(TS, 8, instrument_id=NEW_YORK)], CLOSE + DAY, timeframe="1d")[0].open == 8


def test_an_open_bar_whose_last_trade_was_cancelled_never_was() -> None:
    run = listening()
    run.fold([Row(TS, 20, trade_id=1)], TS + 1)
    assert run.fold([cancel(1)], TS + 2) == []
    assert run.fold([], TS + 5 * DAY) == []
    assert run.disk.bars == {}


def test_a_day_that_is_out_is_corrected_at_once() -> None:
    run = listening()
    run.fold([Row(TS, 20, trade_id=1, instrument_id=NEW_YORK)], CLOSE + GRACE)
    (bar,) = run.shown([correct(1, price=21, instrument_id=NEW_YORK)], CLOSE + GRACE, timeframe="1d")
    assert (bar.revision, bar.reason, bar.close, bar.is_final) == (2, "correction", 21, False)
    (last,) = run.shown([], CLOSE + DAY, timeframe="1d")
    assert last == replace(bar, revision=3, is_final=True)


@pytest.mark.parametrize(("ts", "conditions"), [(TS, ODD_LOT), (CLOSE + 1, EXTENDED)])
def test_a_day_that_gets_its_first_price_by_a_correction_comes_out_at_once(ts: int, conditions: int) -> None:
    run = listening()
    run.fold([Row(ts, 20, trade_id=1, instrument_id=NEW_YORK, conditions=conditions)], CLOSE + HOUR)
    (bar,) = run.shown([correct(1, ts, price=21, instrument_id=NEW_YORK)], CLOSE + HOUR, timeframe="1d")
    assert (bar.revision, bar.reason, bar.close) == (1, "first", 21)


def test_a_correction_of_the_day_tells_its_volume_after_hours_too() -> None:
    run = listening()
    run.fold([Row(TS, 20, trade_id=1, instrument_id=NEW_YORK)], CLOSE + GRACE)
    run.fold([Row(CLOSE + 1, 20, 4, instrument_id=NEW_YORK, conditions=EXTENDED)], CLOSE + HOUR)
    (bar,) = run.shown([correct(1, price=21, instrument_id=NEW_YORK)], CLOSE + HOUR, timeframe="1d")
    assert (bar.reason, bar.volume) == ("correction", 5)
    (last,) = run.shown([], CLOSE + DAY, timeframe="1d")
    assert last == replace(bar, revision=3, is_final=True)


def test_a_longer_bar_with_a_cancel_in_any_minute_says_cancel() -> None:
    run = listening()
    run.fold([Row(TS + at * MINUTE, 5, trade_id=at + 1) for at in range(3)], TS + HOUR)
    (five,) = run.shown([cancel(1), correct(2, price=6), correct(3, price=7)], TS + HOUR, timeframe="5m")
    assert (five.reason, five.open, five.trade_count) == ("cancel", 6, 2)
    assert {run.bar(TS + at * MINUTE).reason for at in (1, 2)} == {"correction"}


def test_an_amendment_does_not_make_a_bar_partial() -> None:
    run = listening()
    run.fold([], TS + 30 * SECOND, partition=9)
    run.fold([Row(TS, 5, trade_id=1), Row(TS + 1, 5)], TS + HOUR)
    run.fold([Row(TS + 2 * HOUR, 5)], TS + 2 * HOUR, partition=9)  # which we joined in the middle of that minute
    assert [bar.is_partial for bar in run.shown([cancel(1)], TS + 2 * HOUR, partition=7)] == [False]


# --- which trade is meant


def trade(ts: int, sequence: int = 1, pub_seq: int = 1, **other: Any) -> StoredTrade:
    return StoredTrade(1, 1, 0, 0, sequence, 5, ts, 10, 1, other.get("conditions", 0), 0, pub_seq)


def test_the_last_trade_dated_before_the_amendment_is_meant_else_the_first_after() -> None:
    days = [trade(TS), trade(TS + DAY, 2), trade(TS + 2 * DAY, 3)]
    assert meant(days, TS + DAY + 1) == days[1]
    assert meant(days, TS + DAY) == days[1]
    assert meant(days, TS - 1) == days[0]
    assert meant([], TS) is None
    assert meant([trade(TS, 2, 1), trade(TS, 1, 2)], TS) == trade(TS, 1, 2)


def test_a_venue_that_begins_its_ids_again_each_day() -> None:
    run = listening()
    run.fold([Row(TS, 5, trade_id=1)], TS + HOUR)
    run.fold([Row(TS + DAY, 6, trade_id=1)], TS + DAY + HOUR)
    # With the trade's own time it is yesterday's; with the time of the cancel, the newest.
    assert [bar.start for bar in run.shown([cancel(1, TS)], TS + DAY + HOUR)] == [TS]
    assert [bar.start for bar in run.shown([cancel(1, TS + DAY + HOUR)], TS + DAY + HOUR)] == [TS + DAY]


@pytest.mark.parametrize("other", [{"instrument_id": 2}, {"source_id": 2}, {"trade_id": 2}])
def test_a_trade_of_another_name_is_not_meant(other: dict[str, int]) -> None:
    run = listening()
    run.fold([Row(TS, 5, trade_id=1)], TS + HOUR)
    (done,) = run.round([run.batch([replace(cancel(1), **other)], TS + HOUR)])
    assert (done.bars, [one.state for one in done.amendments]) == ([], [WAITING])


def test_an_amendment_of_another_batch_of_the_round_is_seen() -> None:
    run = listening()
    batches = [
        run.batch([Row(TS, 5, trade_id=1), Row(TS, 6, trade_id=2)], TS + HOUR),
        run.batch([correct(1, price=7)], TS + HOUR),
        run.batch([cancel(1)], TS + HOUR),
        run.batch([correct(2, price=9)], TS + HOUR),
    ]
    done = run.round(batches)
    mine = [bar for item in done for bar in item.bars if (bar.timeframe, bar.source_id) == ("1m", 0)]
    assert [(bar.revision, bar.open, bar.trade_count) for bar in mine] == [(1, 5, 2), (2, 7, 2), (3, 6, 1), (4, 9, 1)]


def amendment(action: int, pub_seq: int, **values: Any) -> Amendment:
    return Amendment(1, 1, 5, 0, 0, 9, action, values.get("price", 1), 1, values.get("conditions", 0), TS, pub_seq, 0)


def test_what_counts_of_a_trade() -> None:
    off = trade(TS, conditions=OFFICIAL_OPEN)
    assert after(off, []) is None
    assert after(trade(TS), [amendment(CANCEL, 2), amendment(CORRECT, 3)]) is None
    counted = after(off, [amendment(CORRECT, 4)])
    assert counted is not None
    assert counted.pub_seq == 4
    same_batch = after(off, [amendment(CORRECT, 1)])
    assert same_batch is not None
    assert (same_batch.pub_seq, same_batch.row) == (1, 0)


# --- what must not happen


def test_a_minute_whose_trades_are_not_all_at_hand_stays_as_it_is() -> None:
    run = listening()
    three(run)
    run.fold([], TS + HOUR)
    run.disk.lost.add(2)
    (done,) = run.round([run.batch([cancel(3)], TS + HOUR)])
    assert (done.bars, [one.state for one in done.amendments]) == ([], [INCOMPLETE])
    run.disk.lost.clear()
    # It was not applied, and another amendment does not apply it by the way.
    (bar,) = run.shown([cancel(1)], TS + HOUR)
    assert (bar.trade_count, bar.close) == (2, 10)


def test_clients_get_the_ticks_as_they_came() -> None:
    run = listening()
    (done,) = run.round([run.batch([Row(TS, 5, trade_id=1), cancel(1)], TS)])
    columns = decode_numbered_ticks(
        next(message.payload for message in done.messages if message.topic == TICKS_TOPIC)
    ).columns
    assert columns["action"].tolist() == [NEW, CANCEL]
    assert columns["price"].tolist() == [5, 10]


def test_a_stream_without_amendments_asks_for_nothing() -> None:
    run = listening()
    for minute in range(3):
        three(run, TS + minute * MINUTE)
    assert run.disk.searches == 0
    assert not any(item.amendments for item in run.told)


def test_a_checkpoint_from_before_there_were_corrections_is_read() -> None:
    import msgspec

    run = listening()
    stored = msgspec.msgpack.decode(run.sequencer.snapshot())
    del stored["waiting"]
    run.sequencer.restore(msgspec.msgpack.encode(stored))
    assert run.fold([Row(TS, 5, trade_id=1)], TS) == []


def test_empty_batches_of_amendments_are_no_trouble() -> None:
    run = Run()
    assert run.fold([cancel(1)], TS) == []
    assert isinstance(run.batch([], TS).ticks, Ticks)
