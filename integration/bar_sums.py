"""What the trades of an interval come to, as exact integers: taken from the kernel's rows and from bars, joined, and put back. Pure."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from integration.bars import Bar


class Sums(NamedTuple):
    """Prices and volume in nanos, turnover in 1e-18, times in ns; without a price the prices and times say nothing."""

    has_price: bool = False
    open: int = 0
    high: int = 0
    low: int = 0
    close: int = 0
    first_ts: int = 0
    last_ts: int = 0
    volume: int = 0
    turnover: int = 0
    trade_count: int = 0

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Volume, turnover and count."""
        return self.volume, self.turnover, self.trade_count

    @property
    def is_empty(self) -> bool:
        """Whether there is no trade at all."""
        return not self.has_price and self.trade_count == 0

    @classmethod
    def of_bar(cls, bar: "Bar") -> Self:
        """Take the sums of a bar."""
        return cls(
            bar.has_price, bar.open, bar.high, bar.low, bar.close, bar.first_ts, bar.last_ts, bar.volume, bar.turnover, bar.trade_count
        )  # fmt: skip

    @classmethod
    def of_row(cls, row: Any, kernel: Any) -> Self:
        """Take the sums of a row of the kernel."""
        values = row.tolist()
        return cls(
            values[kernel.FIRST] != kernel.NEVER,
            values[kernel.OPEN], values[kernel.HIGH], values[kernel.LOW], values[kernel.CLOSE], values[kernel.FIRST], values[kernel.LAST],
            volume_of(values, kernel), turnover_of(values, kernel), values[kernel.COUNT],
        )  # fmt: skip

    @classmethod
    def join(cls, parts: Iterable["Sums"]) -> Self:
        """Join the sums of intervals that follow one another in time."""
        parts = list(parts)
        priced = [part for part in parts if part.has_price]
        volume, turnover, count = (sum(amounts) for amounts in zip(*(part.amounts for part in parts), strict=True))
        if not priced:
            return cls(volume=volume, turnover=turnover, trade_count=count)
        first, last = priced[0], priced[-1]
        high, low = max(part.high for part in priced), min(part.low for part in priced)
        return cls(True, first.open, high, low, last.close, first.first_ts, last.last_ts, volume, turnover, count)

    def write(self, row: Any, kernel: Any, last_price: int) -> None:
        """Put the sums into a row of the kernel; a bar without a price keeps `last_price`, at no time."""
        prices = (self.open, self.high, self.low, self.close) if self.has_price else (last_price,) * 4
        row[kernel.OPEN], row[kernel.HIGH], row[kernel.LOW], row[kernel.CLOSE] = prices
        row[kernel.FIRST] = self.first_ts if self.has_price else kernel.NEVER
        row[kernel.LAST] = self.last_ts if self.has_price else kernel.NEVER
        digit, bits = kernel.DIGIT, kernel.DIGIT_BITS
        row[kernel.VOLUME_0], row[kernel.VOLUME_1] = self.volume & digit, self.volume >> bits
        row[kernel.TURNOVER_0], row[kernel.TURNOVER_1] = self.turnover & digit, (self.turnover >> bits) & digit
        row[kernel.TURNOVER_2] = self.turnover >> 2 * bits
        row[kernel.COUNT] = self.trade_count


def volume_of(row: list[int], kernel: Any) -> int:
    """Read the volume of a kernel's row."""
    return int(row[kernel.VOLUME_0] + (row[kernel.VOLUME_1] << kernel.DIGIT_BITS))


def turnover_of(row: list[int], kernel: Any) -> int:
    """Read the turnover of a kernel's row."""
    upper = row[kernel.TURNOVER_1] + (row[kernel.TURNOVER_2] << kernel.DIGIT_BITS)
    return int(row[kernel.TURNOVER_0] + (upper << kernel.DIGIT_BITS))
