"""Readers of the real data: a few facts of each file, and what is made of files that hold closes only."""

from dataclasses import replace

import numpy as np
import pytest

from integration.demo import history
from integration.demo.catalogue import SIMULATED_INSTRUMENTS, DemoInstrument
from integration.demo.history import MissingDataError, daily_prices, days_from_closes, e_mini_trades
from integration.demo.stream import History
from integration.market.units import NANOS

BY_SYMBOL = {one.symbol: one for one in SIMULATED_INSTRUMENTS}
CENT = NANOS // 100


def test_e_mini_trades_are_all_there_in_order(history: History) -> None:
    trades = history.trades
    assert len(trades) == 500_000
    assert trades.price[0] == 1_640_250_000_000
    assert trades.size[0] == 8
    assert bool((np.diff(trades.offset) >= 0).all())
    assert bool((trades.price % (NANOS // 4) == 0).all())


def test_the_replay_starts_at_eight_in_chicago_on_the_third(history: History) -> None:
    trades = history.trades
    since = (
        (np.datetime64("2013-09-03T08:00:00") - np.datetime64("2013-09-01T17:00:00.083"))
        .astype("timedelta64[ns]")
        .astype(int)
    )
    assert trades.offset[trades.start - 1] < since <= trades.offset[trades.start]


def test_real_opens_highs_lows_and_closes(history: History) -> None:
    apple = history.days["AAPL"]
    first = [int(column[0]) for column in (apple.open, apple.high, apple.low, apple.close)]
    assert first == [11856 * CENT, 13206 * CENT, 11850 * CENT, 13031 * CENT]


def test_hours_become_days(history: History) -> None:
    euro = history.days["EURUSD"]
    assert 250 < len(euro) < 320
    assert euro.open[0] == 1_052_360_000
    assert euro.close[-1] == 1_200_750_000


def test_every_instrument_has_days_that_hold_together(history: History) -> None:
    for instrument in SIMULATED_INSTRUMENTS:
        days = history.days[instrument.symbol]
        for column in (days.open, days.close):
            assert bool((days.low <= column).all())
            assert bool((column <= days.high).all())
        assert bool((days.low > 0).all())
        assert all(
            bool((column % instrument.tick == 0).all()) for column in (days.open, days.high, days.low, days.close)
        )


def test_where_only_closes_exist_a_day_opens_where_the_last_one_closed(history: History) -> None:
    days = history.days["SPY"]
    assert bool((days.open[1:] == days.close[:-1]).all())
    assert days.close[-1] == 20992 * CENT


def test_highs_and_lows_are_those_of_a_bridge() -> None:
    """Compared with bridges that were walked: drawn extremes must have the same mean reach beyond open and close."""
    rng = np.random.default_rng(1)
    closes = 10_000 + np.cumsum(rng.normal(0, 10, 4_000))
    days = days_from_closes(BY_SYMBOL["SPY"], closes, rng)
    drawn = float(np.mean(days.high - np.maximum(days.open, days.close))) / NANOS
    drawn_below = float(np.mean(np.minimum(days.open, days.close) - days.low)) / NANOS
    steps = np.cumsum(rng.normal(0, 10 / np.sqrt(500), (4_000, 500)), axis=1)
    walked = float(np.mean(steps.max(axis=1, initial=0) - np.maximum(0, steps[:, -1])))
    assert drawn == pytest.approx(walked, rel=0.1)
    assert drawn_below == pytest.approx(walked, rel=0.1)
    mirrored = days.high + days.low == days.open + days.close
    assert mirrored.mean() < 0.1, "high and low are drawn apart"


def test_the_seed_decides_what_is_drawn() -> None:
    one, same, other = (daily_prices(BY_SYMBOL["TLT"], seed) for seed in (1, 1, 2))
    assert bool((one.high == same.high).all())
    assert not bool((one.high == other.high).all())
    assert bool((one.close == other.close).all())


def test_prices_below_a_tick_are_lifted_to_one_but_oil_may_be_negative() -> None:
    closes = np.array([1.0, 0.001, -0.5])
    for symbol, lowest in (("SPY", CENT), ("WTI", -50 * CENT)):
        assert days_from_closes(BY_SYMBOL[symbol], closes, np.random.default_rng(1)).close[-1] == lowest


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "find_spec", lambda _: None)
    with pytest.raises(MissingDataError, match=r"package mlfinpy with dataset/data/tick_data\.csv is not installed"):
        e_mini_trades()


def test_a_symbol_without_rows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    unlisted: DemoInstrument = replace(BY_SYMBOL["AAPL"], symbol="ZZZ")
    monkeypatch.setattr(history, "_STOCKS", frozenset({"ZZZ"}))
    with pytest.raises(MissingDataError, match="no daily prices of ZZZ"):
        daily_prices(unlisted, 1)
