"""A simulated day keeps to the real day it is made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.demo.catalogue import SIMULATED_INSTRUMENTS, DemoInstrument
from integration.demo.history import Days
from integration.demo.paths import DAY_NS, Day, day_phase, simulate_day
from integration.demo.stream import History
from integration.market.ticks import QUOTE, TRADE
from integration.market.units import NANOS

OIL = next(one for one in SIMULATED_INSTRUMENTS if one.symbol == "WTI")


def check_day(day: Day, days: Days, index: int, tick: int) -> None:
    trades = day.price[day.kind == TRADE]
    assert (trades[0], trades[-1]) == (days.open[index], days.close[index])
    assert (trades.max(), trades.min()) == (days.high[index], days.low[index])
    assert bool((trades % tick == 0).all())
    assert bool((np.diff(day.offset) >= 0).all())
    assert 0 <= day.offset[0] <= day.offset[-1] < DAY_NS


@pytest.mark.parametrize("instrument", SIMULATED_INSTRUMENTS, ids=[one.symbol for one in SIMULATED_INSTRUMENTS])
def test_trades_go_from_open_to_close_through_high_and_low(instrument: DemoInstrument, history: History) -> None:
    days = history.days[instrument.symbol]
    for number in (0, 17, 497_000):
        day = simulate_day(instrument, days, number, rate=2.0, seed=1)
        check_day(day, days, number % len(days), instrument.tick)


@given(
    corners=st.lists(st.integers(-200, 200), min_size=4, max_size=4).map(sorted),
    flip=st.booleans(),
    rate=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_any_day_even_flat_or_below_zero_is_kept(corners: list[int], flip: bool, rate: float, seed: int) -> None:
    low, first, last, high = (np.array([corner * OIL.tick]) for corner in corners)
    days = Days(*((last, high, low, first) if flip else (first, high, low, last)))
    check_day(simulate_day(OIL, days, 3, rate=rate, seed=seed), days, 0, OIL.tick)


def test_quotes_stand_around_the_last_trade(history: History) -> None:
    instrument = SIMULATED_INSTRUMENTS[0]
    day = simulate_day(instrument, history.days[instrument.symbol], 5, rate=5.0, seed=1)
    last = day.price[day.kind == TRADE][np.cumsum(day.kind == TRADE) - 1]
    quotes = day.kind == QUOTE
    assert 0.5 < quotes.mean() < 0.7
    assert bool((day.price[quotes] <= last[quotes]).all())
    assert bool((last[quotes] <= day.ask_price[quotes]).all())
    assert bool((day.price[quotes] < day.ask_price[quotes]).all())
    assert bool((day.ask_price[~quotes] == 0).all())
    assert bool((day.ask_size[~quotes] == 0).all())


def test_sizes_are_whole_lots_around_the_typical_one(history: History) -> None:
    for instrument in SIMULATED_INSTRUMENTS:
        day = simulate_day(instrument, history.days[instrument.symbol], 5, rate=5.0, seed=1)
        sizes = np.concatenate([day.size, day.ask_size[day.kind == QUOTE]])
        assert sizes.min() >= instrument.lot * NANOS
        assert bool((sizes % (instrument.lot * NANOS) == 0).all())
        assert np.median(sizes) == pytest.approx(instrument.typical_size * NANOS, rel=0.1)


def test_the_rate_is_kept_and_both_ends_are_busier(history: History) -> None:
    day = simulate_day(OIL, history.days["WTI"], 5, rate=10.0, seed=1)
    assert len(day) == pytest.approx(36_000, rel=0.03)
    tenth = np.histogram(day.offset, bins=10, range=(0, DAY_NS))[0]
    assert min(tenth[0], tenth[-1]) > 1.5 * tenth[4]


def test_a_day_is_a_function_of_its_number_and_the_seed(history: History) -> None:
    days = history.days["WTI"]
    one, same, next_day, other = (
        simulate_day(OIL, days, number, rate=1.0, seed=seed)
        for number, seed in ((4, 1), (4, 1), (4 + len(days), 1), (4, 2))
    )
    assert list(one.rows()) == list(same.rows())
    assert list(one.rows()) != list(next_day.rows()), "the same real day has another path when it comes round again"
    assert list(one.rows()) != list(other.rows())


def test_days_do_not_all_turn_at_one_moment() -> None:
    assert len({day_phase(one) for one in SIMULATED_INSTRUMENTS}) > 15
    assert all(0 <= day_phase(one) < DAY_NS for one in SIMULATED_INSTRUMENTS)
