"""The replay keeps order and spacing, cuts long gaps, and never ends."""

from itertools import islice, pairwise

import numpy as np
import pytest

from integration.demo.history import Trades
from integration.demo.replay import LONGEST_GAP, replay, spacing
from integration.demo.stream import History
from integration.market.units import NANOS


def trades_at(*seconds: float, start: int = 0) -> Trades:
    count = len(seconds)
    return Trades(
        offset=(np.array(seconds) * NANOS).astype(np.int64),
        price=np.arange(1, count + 1) * NANOS,
        size=np.arange(1, count + 1),
        start=start,
    )


def test_spacing_is_real_over_speed_with_long_gaps_cut() -> None:
    trades = trades_at(0, 0, 2, 3600)
    assert spacing(trades, 10).tolist() == [NANOS, 0, NANOS // 5, NANOS]
    assert spacing(trades, 1).tolist() == [LONGEST_GAP, 0, 2 * NANOS, LONGEST_GAP]


def test_it_starts_where_told_at_once_and_goes_round() -> None:
    made = list(islice(replay(trades_at(0, 1, 3, start=1), 1.0), 6))
    assert [due // NANOS for due, *_ in made] == [0, 2, 12, 13, 15, 25]
    assert [price // NANOS for _, price, _, _ in made] == [2, 3, 1, 2, 3, 1]
    assert [size // NANOS for _, _, size, _ in made] == [2, 3, 1, 2, 3, 1]
    assert [trade_id for *_, trade_id in made] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_real_file_goes_round_without_a_seam(history: History, rounds: int) -> None:
    trades = history.trades
    count = rounds * len(trades) - trades.start + 10
    made = list(islice(replay(trades, 10.0), count))
    assert all(later[0] >= earlier[0] for earlier, later in pairwise(made))
    assert [row[1] for row in made[-10:]] == trades.price[:10].tolist()
    assert [row[3] for row in made] == list(range(trades.start + 1, trades.start + 1 + count))
