"""Seeded intraday paths between real daily prices: where a simulated instrument trades and is quoted inside one day.

Pure: a day is a function of (seed, instrument, day number), so that a feed that starts again goes on where prices were.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from integration.demo.catalogue import DemoInstrument
from integration.demo.history import Days, Floats, Int64s
from integration.market.ticks import QUOTE, TRADE
from integration.market.units import NANOS

DAY_NS: Final = 3600 * NANOS  # one real day is shown in one hour
_QUOTE_SHARE: Final = 0.6
_VOLATILITY: Final = 0.5  # of the day's range, for the noise around its corner points
_RUSH: Final = 0.4  # how much busier open and close are than noon
_SIZE_SIGMA: Final = 0.9
_STRETCH: Final = 512  # rows turned into Python integers at a time; whole days of all instruments would be 150 MB


@dataclass(frozen=True, slots=True)
class Day:
    """One simulated day: columns of equal length in order of time; offsets in ns from its start, prices and sizes in nanos.

    A trade has price and size and zeros for the ask; a quote has its bid there.
    """

    offset: Int64s
    kind: Int64s
    price: Int64s
    size: Int64s
    ask_price: Int64s
    ask_size: Int64s

    def __len__(self) -> int:
        return len(self.offset)

    def rows(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Give (offset, kind, price, size, ask_price, ask_size) in order."""
        columns = (self.offset, self.kind, self.price, self.size, self.ask_price, self.ask_size)
        for at in range(0, len(self), _STRETCH):
            yield from zip(*(column[at : at + _STRETCH].tolist() for column in columns), strict=True)


def simulate_day(instrument: DemoInstrument, days: Days, number: int, *, rate: float, seed: int) -> Day:
    """Make the day `number` (any integer; the real days repeat) at `rate` ticks a second on average.

    Trades start at the real open, touch the real high and low, end at the real close and never leave [low, high].
    """
    rng = np.random.default_rng([seed, number % 2**32, *instrument.symbol.encode()])
    count = max(8, int(rng.poisson(rate * DAY_NS / NANOS)))
    kind = np.where(rng.random(count) < _QUOTE_SHARE, QUOTE, TRADE)
    kind[[0, -1]] = TRADE
    while np.count_nonzero(kind == TRADE) < 4:  # open, high, low and close need a trade each
        kind[rng.integers(count)] = TRADE
    traded = _path(days, number % len(days), int(np.count_nonzero(kind == TRADE)), instrument.tick, rng)
    last = traded[np.cumsum(kind == TRADE) - 1]
    below, above = _spread(instrument, count, rng)
    quotes = kind == QUOTE
    return Day(
        offset=_times(count, rng),
        kind=kind.astype(np.int64),
        price=np.where(quotes, last - below, last),
        size=_sizes(instrument, count, rng) * NANOS,
        ask_price=np.where(quotes, last + above, 0),
        ask_size=np.where(quotes, _sizes(instrument, count, rng) * NANOS, 0),
    )


def day_phase(instrument: DemoInstrument) -> int:
    """Shift an instrument's day by a share of the hour (ns), so that the days of all do not turn at one moment."""
    return sum(instrument.symbol.encode()) % 60 * (DAY_NS // 60)


def _times(count: int, rng: np.random.Generator) -> Int64s:
    """Draw sorted times in [0, DAY_NS), denser at both ends as a trading day is."""
    uniform = np.sort(rng.random(count))
    warped = uniform - _RUSH * np.sin(2 * np.pi * uniform) / (2 * np.pi)
    return np.minimum((warped * DAY_NS).astype(np.int64), DAY_NS - 1)


def _path(days: Days, index: int, count: int, tick: int, rng: np.random.Generator) -> Int64s:
    """Join open, high and low in random order, and close by Brownian bridges, folded into [low, high], on ticks."""
    high, low = int(days.high[index]), int(days.low[index])
    corners = [high, low] if rng.random() < 0.5 else [low, high]
    waypoints = np.array([days.open[index], *corners, days.close[index]])
    inner = np.sort(rng.choice(np.arange(1, count - 1), size=2, replace=False))
    at = np.array([0, *inner, count - 1])
    walk = np.cumsum(rng.normal(0, _VOLATILITY * (high - low) / np.sqrt(count), count))
    steps = np.arange(count)
    bridge = np.interp(steps, at, waypoints) + walk - np.interp(steps, at, walk[at])
    return np.rint(_fold(bridge, low, high) / tick).astype(np.int64) * tick


def _fold(values: Floats, low: int, high: int) -> Floats:
    """Reflect at both borders until everything lies between them."""
    if high == low:
        return np.full_like(values, low)
    width = high - low
    return low + width - np.abs((values - low) % (2 * width) - width)


def _spread(instrument: DemoInstrument, count: int, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
    """Draw how far bid and ask lie from the last trade: none to two ticks each, and at least one tick between them."""
    below, above = rng.integers(0, 3, count), rng.integers(0, 3, count)
    above[(below + above) == 0] = 1
    return below * instrument.tick, above * instrument.tick


def _sizes(instrument: DemoInstrument, count: int, rng: np.random.Generator) -> Int64s:
    """Draw log-normal sizes in whole lots, at least one."""
    lots = rng.lognormal(np.log(instrument.typical_size / instrument.lot), _SIZE_SIGMA, count)
    return np.maximum(1, np.rint(lots)).astype(np.int64) * instrument.lot
