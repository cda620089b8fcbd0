"""One demo event, its numbering, and the options that decide all of them. Pure data."""

from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from integration.demo.catalogue import DemoInstrument

STATUS: Final = 3  # beside TRADE and QUOTE; no row of an Arrow stream has it


class Event(NamedTuple):
    """One event as it will be sent; prices and sizes in nanos, a quote's bid in `price` and `size`.

    `due` is when the schedule wants it sent, before any shift; `fault` names what is wrong with it, empty for a sound one.
    """

    due: int
    instrument: DemoInstrument
    kind: int
    ts_event: int
    price: int = 0
    size: int = 0
    ask_price: int = 0
    ask_size: int = 0
    sequence: int = 0
    trade_id: int = 0
    conditions: int = 0
    status: str = ""
    fault: str = ""


class Numbering:
    """The sources' own sequence numbers, from 1 per (source, channel) in this session."""

    def __init__(self) -> None:
        self.last: Counter[tuple[str, int]] = Counter()

    def take(self, instrument: DemoInstrument) -> int:
        """Give the next number of the instrument's channel."""
        return self.skip(instrument, 1)

    def skip(self, instrument: DemoInstrument, count: int) -> int:
        """Use up `count` numbers and give the last of them."""
        channel = (instrument.source, instrument.channel)
        self.last[channel] += count
        return self.last[channel]


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the stream: `start` in ns UTC, `rate` simulated ticks a second in all, `faults` multiplies their rate."""

    seed: int
    start: int
    rate: float = 200.0
    speed: float = 10.0
    faults: float = 1.0
