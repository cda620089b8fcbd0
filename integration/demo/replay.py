"""The E-mini trades as an endless schedule: real order and spacing, faster by a factor, long gaps cut. Pure."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from integration.demo.history import Int64s, Trades
from integration.market.units import NANOS

LONGEST_GAP: Final = 10 * NANOS  # of the real time, before it is divided by the speed


def spacing(trades: Trades, speed: float) -> Int64s:
    """Give the ns to wait before each trade; the first one, reached again after the last, waits a full cut gap."""
    gaps = np.minimum(np.diff(trades.offset, prepend=trades.offset[0] - LONGEST_GAP), LONGEST_GAP)
    return (gaps / speed).astype(np.int64)


def replay(trades: Trades, speed: float) -> Iterator[tuple[int, int, int, int]]:
    """Give (due, price, size, trade_id) forever: due in ns since the feed's start, trade_id rising by 1 a trade.

    Begins at `trades.start`; trade_id is the row of the file from 1, and goes on rising when the file starts again.
    """
    # Python integers, made a stretch at a time: half a million rows at once would cost 60 MB for good.
    wait, count = spacing(trades, speed), len(trades)
    due, position = -int(wait[trades.start]), trades.start
    while True:
        row = position % count
        end = min(row + _STRETCH, count)
        part = slice(row, end)
        dues = due + np.cumsum(wait[part])
        prices, sizes = trades.price[part].tolist(), (trades.size[part] * NANOS).tolist()
        yield from zip(dues.tolist(), prices, sizes, range(position + 1, position + 1 + end - row), strict=True)
        due, position = int(dues[-1]), position + end - row


_STRETCH: Final = 4096
