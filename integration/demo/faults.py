"""Seeded faults of the simulated source, so that every page has something to show. The replayed trades stay as they were. No I/O.

Each fault is an event beside the sound ones, made of the last sound one of some instrument; none replaces a sound event.
What the service must answer to each is in `OUTCOMES`.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

import numpy as np

from integration.demo.catalogue import ARROW, DISTRIBUTED, PROVIDER, SIMULATED_INSTRUMENTS, UNKNOWN, DemoInstrument
from integration.demo.events import STATUS, Event, Numbering, Options
from integration.market import errors
from integration.market.ticks import CONDITION_BITS, QUOTE, TRADE
from integration.market.units import NANOS

MEAN_INTERVAL: Final = 4 * NANOS  # between faults, at `--faults 1`
_FUTURE: Final = 86_400 * NANOS

WRONG_PRICE: Final = "wrong_price"
CROSSED: Final = "crossed"
LATE: Final = "late"
REPEAT: Final = "repeat"
CONFLICT: Final = "conflict"
GAP: Final = "gap"
HALT: Final = "halt"
HALTED_TRADE: Final = "halted_trade"
RESUMPTION: Final = "resumption"
UNKNOWN_INSTRUMENT: Final = "unknown_instrument"
MALFORMED: Final = "malformed"
FUTURE: Final = "future"

STORED: Final = "stored"
DUPLICATE: Final = "duplicate"
PARKED: Final = "parked"

# What becomes of each event: stored (as a tick or a status), dropped as a duplicate, parked, or rejected with a reason code.
OUTCOMES: Final = {
    "": STORED,
    WRONG_PRICE: errors.PRICE_SIGN,
    CROSSED: errors.CROSSED,
    LATE: STORED,
    REPEAT: DUPLICATE,
    CONFLICT: errors.CONFLICT,
    HALT: STORED,
    HALTED_TRADE: STORED,
    RESUMPTION: STORED,
    UNKNOWN_INSTRUMENT: PARKED,
    MALFORMED: errors.MALFORMED,
    FUTURE: errors.FUTURE,
}

# How often each is drawn. A halt brings a trade inside it and a resumption along.
_WEIGHTS: Final = {
    WRONG_PRICE: 4, CROSSED: 3, LATE: 5, REPEAT: 5, CONFLICT: 1, GAP: 1, HALT: 2, UNKNOWN_INSTRUMENT: 2, MALFORMED: 2, FUTURE: 1,
}  # fmt: skip


class Faults:
    """Draws faults on the schedule of the stream; `counts` has how many of each kind were made."""

    def __init__(self, options: Options, numbering: Numbering, stamp: Callable[[int], int]) -> None:
        self.counts: Counter[str] = Counter()
        self.skipped = 0  # sequence numbers left out by gaps
        self.halted: set[str] = set()
        self._numbering = numbering
        self._stamp = stamp
        self._rng = np.random.default_rng([options.seed, options.start])
        self._interval = MEAN_INTERVAL / options.faults if options.faults > 0 else 0.0
        self._next = self._draw_time(options.start)
        self._order = count()
        self._planned: list[tuple[int, int, str, DemoInstrument]] = []  # a heap: due, tie-break, kind, instrument
        self._last: dict[tuple[str, int], Event] = {}
        self._makers: dict[str, Callable[[int, DemoInstrument], Event | None]] = {
            WRONG_PRICE: self._wrong_price, CROSSED: self._crossed, LATE: self._late, REPEAT: self._repeat, CONFLICT: self._conflict,
            GAP: self._gap, HALT: self._halt, HALTED_TRADE: self._halted_trade, RESUMPTION: self._resumption,
            UNKNOWN_INSTRUMENT: self._unknown_instrument, MALFORMED: self._malformed, FUTURE: self._future,
        }  # fmt: skip

    def saw(self, event: Event) -> None:
        """Remember a sound event as what the next fault may be made of."""
        self._last[event.instrument.symbol, event.kind] = event

    def until(self, due: int) -> Iterator[Event]:
        """Give the faults that are due by then, in order of time."""
        while self._interval and min(self._next, self._planned[0][0] if self._planned else self._next) <= due:
            if self._planned and self._planned[0][0] <= self._next:
                at, _, kind, instrument = heapq.heappop(self._planned)
            else:
                at, kind = self._next, str(self._rng.choice(list(_WEIGHTS), p=_PROBABILITIES))
                instrument = self._choose(kind)
                self._next = self._draw_time(at)
            yield from self._make(at, kind, instrument)

    def resume_all(self, due: int) -> Iterator[Event]:
        """End every halt now."""
        self._planned.clear()
        for instrument in SIMULATED_INSTRUMENTS:
            if instrument.symbol in self.halted:
                yield from self._make(due, RESUMPTION, instrument)

    def _make(self, due: int, kind: str, instrument: DemoInstrument) -> Iterator[Event]:
        """Make one fault; nothing when the instrument has sent nothing yet that it could be made of."""
        event = self._makers[kind](due, instrument)
        if event is not None:
            self.counts[kind] += 1
            yield event._replace(due=due, fault=kind)

    def _draw_time(self, after: int) -> int:
        return after + int(self._rng.exponential(self._interval)) if self._interval else after

    def _choose(self, kind: str) -> DemoInstrument:
        fits = [one for one in _FITS.get(kind, SIMULATED_INSTRUMENTS) if one.symbol not in self.halted]
        return fits[int(self._rng.integers(len(fits)))]

    def _fresh(self, due: int, last: Event) -> Event:
        """Give the last event a new number and the time of now."""
        sequence = self._numbering.take(last.instrument)
        return last._replace(ts_event=self._stamp(due), sequence=sequence, trade_id=sequence if last.trade_id else 0)

    def _trade(self, instrument: DemoInstrument) -> Event | None:
        return self._last.get((instrument.symbol, TRADE))

    def _wrong_price(self, due: int, instrument: DemoInstrument) -> Event | None:
        if (last := self._trade(instrument)) is None:
            return None
        return self._fresh(due, last)._replace(price=0 if self._rng.random() < 0.5 else -last.price)

    def _crossed(self, due: int, instrument: DemoInstrument) -> Event | None:
        if (last := self._last.get((instrument.symbol, QUOTE))) is None:
            return None
        percent = last.ask_price // 100 // instrument.tick * instrument.tick
        return self._fresh(due, last)._replace(price=last.ask_price + max(percent, 2 * instrument.tick))

    def _late(self, due: int, instrument: DemoInstrument) -> Event | None:
        """Report a trade 2 to 20 s after it happened; where the form has conditions, half of them say so."""
        if (last := self._trade(instrument)) is None:
            return None
        says_so = instrument.form not in (DISTRIBUTED, PROVIDER) and self._rng.random() < 0.5
        late = last.ts_event - int(self._rng.uniform(2, 20) * NANOS)
        return self._fresh(due, last)._replace(
            ts_event=late, conditions=CONDITION_BITS["out_of_sequence"] if says_so else 0
        )

    def _repeat(self, due: int, instrument: DemoInstrument) -> Event | None:
        return self._trade(instrument)

    def _conflict(self, due: int, instrument: DemoInstrument) -> Event | None:
        last = self._trade(instrument)
        return None if last is None else last._replace(price=last.price + instrument.tick)

    def _gap(self, due: int, instrument: DemoInstrument) -> Event | None:
        """Lose up to five numbers; there is nothing to send."""
        lost = int(self._rng.integers(1, 6))
        self._numbering.skip(instrument, lost)
        self.skipped += lost
        self.counts[GAP] += 1
        return None

    def _halt(self, due: int, instrument: DemoInstrument) -> Event | None:
        self.halted.add(instrument.symbol)
        length = self._rng.uniform(5, 15) * NANOS
        for part, kind in ((self._rng.uniform(0.3, 0.7), HALTED_TRADE), (1.0, RESUMPTION)):
            heapq.heappush(self._planned, (due + int(part * length), next(self._order), kind, instrument))
        return self._status(due, instrument, "halted")

    def _halted_trade(self, due: int, instrument: DemoInstrument) -> Event | None:
        last = self._trade(instrument)
        return None if last is None else self._fresh(due, last)

    def _resumption(self, due: int, instrument: DemoInstrument) -> Event | None:
        self.halted.discard(instrument.symbol)
        return self._status(due, instrument, "open")

    def _status(self, due: int, instrument: DemoInstrument, status: str) -> Event:
        return Event(
            due, instrument, STATUS, self._stamp(due), sequence=self._numbering.take(instrument), status=status
        )

    def _unknown_instrument(self, due: int, instrument: DemoInstrument) -> Event | None:
        sequence = self._numbering.take(UNKNOWN)
        price = 25 * NANOS + int(self._rng.integers(-50, 51)) * UNKNOWN.tick
        size = int(self._rng.integers(1, 500)) * NANOS
        return Event(due, UNKNOWN, TRADE, self._stamp(due), price, size, sequence=sequence, trade_id=sequence)

    def _malformed(self, due: int, instrument: DemoInstrument) -> Event | None:
        """Cut a message off; it takes no number, since nobody can read one in it. Its time keeps its bytes unlike any other's."""
        last = self._trade(instrument)
        return None if last is None else last._replace(ts_event=self._stamp(due))

    def _future(self, due: int, instrument: DemoInstrument) -> Event | None:
        if (last := self._trade(instrument)) is None:
            return None
        fresh = self._fresh(due, last)
        return fresh._replace(ts_event=fresh.ts_event + _FUTURE)


_JSON_INSTRUMENTS: Final = tuple(one for one in SIMULATED_INSTRUMENTS if one.form != ARROW)
# Negative prices are wrong for certain only in equities; a halt and a broken text need an instrument that is sent as JSON.
_FITS: Final = {
    WRONG_PRICE: tuple(one for one in SIMULATED_INSTRUMENTS if one.asset_class == "equities"),
    HALT: _JSON_INSTRUMENTS,
    MALFORMED: _JSON_INSTRUMENTS,
}
_PROBABILITIES: Final = np.array(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())
