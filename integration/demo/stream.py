"""The demo's events in the order in which they are sent: replay and simulation merged, numbered, stamped, with faults. No I/O.

Deterministic for (seed, start) while nothing holds the feed up: `shift` moves all later times after an outage.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from integration.demo.catalogue import E_MINI, INSTRUMENTS, SIMULATED_INSTRUMENTS, DemoInstrument
from integration.demo.events import STATUS, Event, Numbering, Options
from integration.demo.faults import Faults
from integration.demo.history import Days, Trades, daily_prices, e_mini_trades
from integration.demo.paths import DAY_NS, day_phase, simulate_day
from integration.demo.replay import replay
from integration.market.ticks import TRADE


class _Planned(NamedTuple):
    """A sound tick before it has a number and a time."""

    due: int
    instrument: DemoInstrument
    kind: int
    price: int
    size: int
    ask_price: int
    ask_size: int
    trade_id: int


@dataclass(frozen=True, slots=True)
class History:
    """The real data that the stream is made of."""

    trades: Trades
    days: Mapping[str, Days]

    @classmethod
    def load(cls, seed: int) -> "History":
        """Read it out of the installed wheels; raises MissingDataError."""
        return cls(e_mini_trades(), {one.symbol: daily_prices(one, seed) for one in SIMULATED_INSTRUMENTS})


class Stream:
    """All that the demo sends; `ceiling`, when given, bounds event times from above (an unpaced feed is ahead of its schedule)."""

    def __init__(self, options: Options, history: History, *, ceiling: Callable[[], int] | None = None) -> None:
        self.options = options
        self.history = history
        self.shift = 0
        self.numbering = Numbering()
        self.faults = Faults(options, self.numbering, self.stamp)
        self._ceiling = ceiling
        self._ticks = heapq.merge(*self._sources(), key=_due)
        self._head = next(self._ticks)
        self._is_open = False

    def stamp(self, due: int) -> int:
        """Give the event time (ns UTC) of what is sent at `due`."""
        ts_event = due + self.shift
        return ts_event if self._ceiling is None else min(ts_event, self._ceiling())

    def until(self, now: int | None) -> Iterator[Event]:
        """Give every event that is due by `now` (ns UTC) and was not given yet; None: without end."""
        if not self._is_open:
            self._is_open = True
            yield from self._opening()
        while now is None or self._head.due + self.shift <= now:
            tick, self._head = self._head, next(self._ticks)
            yield from self._at(tick)

    def hold_up(self, now: int, *, tolerance: int) -> None:
        """When the stream is behind by more than `tolerance` ns, go on from `now`: no burst of old times after an outage."""
        if now - self._head.due - self.shift > tolerance:
            self.shift = now - self._head.due

    def closing(self) -> Iterator[Event]:
        """End what is open, so that no instrument stays halted when the feed stops."""
        return self.faults.resume_all(self._head.due)

    def _at(self, tick: _Planned) -> Iterator[Event]:
        yield from self.faults.until(tick.due)
        if tick.instrument.symbol not in self.faults.halted:
            event = self._event(tick)
            self.faults.saw(event)
            yield event

    def _opening(self) -> Iterator[Event]:
        """Say of every instrument that it is open: a feed that was killed may have left it halted."""
        for instrument in INSTRUMENTS:
            due = self.options.start
            yield Event(
                due, instrument, STATUS, self.stamp(due), sequence=self.numbering.take(instrument), status="open"
            )

    def _event(self, tick: _Planned) -> Event:
        sequence = self.numbering.take(tick.instrument)
        trade_id = (tick.trade_id or sequence) if tick.kind == TRADE else 0
        return Event(
            tick.due, tick.instrument, tick.kind, self.stamp(tick.due),
            tick.price, tick.size, tick.ask_price, tick.ask_size, sequence, trade_id,
        )  # fmt: skip

    def _sources(self) -> Iterator[Iterator[_Planned]]:
        yield self._replayed()
        if self.options.rate > 0:
            per_share = self.options.rate / sum(one.share for one in SIMULATED_INSTRUMENTS)
            for instrument in SIMULATED_INSTRUMENTS:
                yield self._simulated(instrument, per_share * instrument.share)

    def _replayed(self) -> Iterator[_Planned]:
        start = self.options.start
        for due, price, size, trade_id in replay(self.history.trades, self.options.speed):
            yield _Planned(start + due, E_MINI, TRADE, price, size, 0, 0, trade_id)

    def _simulated(self, instrument: DemoInstrument, rate: float) -> Iterator[_Planned]:
        days, start, phase = self.history.days[instrument.symbol], self.options.start, day_phase(instrument)
        number = (start + phase) // DAY_NS
        while True:
            begin = number * DAY_NS - phase
            day = simulate_day(instrument, days, number, rate=rate, seed=self.options.seed)
            for offset, kind, price, size, ask_price, ask_size in day.rows():
                if begin + offset >= start:
                    yield _Planned(begin + offset, instrument, kind, price, size, ask_price, ask_size, 0)
            number += 1


def _due(tick: _Planned) -> int:
    return tick.due
