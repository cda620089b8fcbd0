"""The feed's loop: events that are due go to the broker, paced by a clock or as fast as it takes them, and are counted.

Never waits inside the client: while the broker is away the schedule is held up, so that a stop is answered at once.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from integration.demo.catalogue import ARROW
from integration.demo.events import STATUS, Event
from integration.demo.faults import GAP, OUTCOMES, STORED
from integration.demo.link import BrokerAwayError, Link, Outgoing
from integration.demo.stream import Stream
from integration.demo.wire import ARROW_PROPERTIES, arrow_message, json_message
from integration.market.ticks import QUOTE, TRADE
from integration.market.units import NANOS

logger = logging.getLogger(__name__)

STEP_S: Final = 0.01
HELD_UP: Final = NANOS  # behind schedule by more, the feed goes on from now instead of catching up
WINDOW: Final = 8_000  # messages in flight, well below the client's queue
FLUSH_S: Final = 5.0  # at the end; the supervisor waits ten for all its children
_CHUNK: Final = 2_000  # events of an unpaced step
_LONGEST_PAUSE_S: Final = 5.0
_KINDS: Final = {TRADE: "trade", QUOTE: "quote", STATUS: "status"}


@dataclass(slots=True)
class Tally:
    """What was sent, so that the service's books can be compared with it."""

    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    instruments: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    messages: int = 0

    @property
    def events(self) -> int:
        return self.kinds.total()

    def add(self, event: Event) -> None:
        """Count one event; sums per instrument are of what must be stored, in nanos."""
        kind = _KINDS[event.kind]
        outcome = OUTCOMES[event.fault]
        self.kinds[kind] += 1
        self.outcomes[outcome] += 1
        if event.fault:
            self.faults[event.fault] += 1
        if outcome == STORED and event.kind != STATUS:
            sums = self.instruments[event.instrument.text]
            sums[kind] += 1
            sums["price_sum"] += event.price + event.ask_price
            sums["size_sum"] += event.size + event.ask_size


class Feeder:
    """Drives a stream into a link until `stop`, `count` events or `seconds`; `is_paced` False sends without waiting."""

    def __init__(
        self,
        stream: Stream,
        link: Link,
        *,
        session: int,
        is_paced: bool = True,
        count: int | None = None,
        seconds: float | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.stream, self.link, self.session = stream, link, session
        self.tally = Tally()
        self._is_paced = is_paced
        self._count = count
        self._seconds = seconds
        self._now = now
        self._is_stopped = False
        self._rows: dict[str, list[Event]] = {}  # events of instruments sent as Arrow, since the last step
        self._events = stream.until(None)

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._is_stopped = True

    def run(self) -> None:
        """Connect, send, and leave nothing in flight if the broker allows it. Raises nothing for a broker that is away."""
        self._connect()
        end = None if self._seconds is None else time.monotonic() + self._seconds
        while not self._is_stopped and not self._is_done(end):
            if self._is_ready():
                self._send(self._due())
                self.link.resend()
            if self._is_paced:
                time.sleep(STEP_S)
        self._finish()

    def report(self) -> dict[str, Any]:
        """Give what was sent in plain types: counts by kind, by fault and by expected outcome, and sums per instrument."""
        faults = self.stream.faults
        tally, options = self.tally, self.stream.options
        return {
            "seed": options.seed,
            "session": self.session,
            "start": options.start,
            "events": tally.events,
            "messages": tally.messages,
            "unconfirmed": self.link.unconfirmed,
            "refusals": dict(self.link.refusals),
            "kinds": dict(tally.kinds),
            "outcomes": dict(tally.outcomes),
            "faults": dict(tally.faults) | ({GAP: faults.counts[GAP]} if faults.counts[GAP] else {}),
            "skipped_sequences": faults.skipped,
            "last_sequences": {
                f"{source}/{channel}": last for (source, channel), last in self.stream.numbering.last.items()
            },
            "instruments": {text: dict(sums) for text, sums in sorted(tally.instruments.items())},
        }

    def _is_done(self, end: float | None) -> bool:
        return (self._count is not None and self.tally.events >= self._count) or (
            end is not None and time.monotonic() >= end
        )

    def _connect(self) -> None:
        """Try with growing pauses until there is a connection or somebody stops the feed."""
        pause = 0.5
        while not self._is_stopped:
            try:
                self.link.open()
            except BrokerAwayError as problem:
                logger.warning("%s; next try in %.1f s", problem, pause)
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                logger.info("feed connected to %s, session %s", self.link.url, self.session)
                return

    def _is_ready(self) -> bool:
        """Say whether to send now; waits out an absence of the broker, and a short while when too much is in flight."""
        if not self.link.is_connected:
            self._wait_for_broker()
        elif self.link.in_flight >= WINDOW:
            time.sleep(STEP_S / 10)
            return False
        return not self._is_stopped

    def _wait_for_broker(self) -> None:
        since = time.monotonic()
        logger.warning(
            "broker away at %s: the feed is held up, %s messages unconfirmed", self.link.url, self.link.unconfirmed
        )
        while not self._is_stopped and not self.link.is_connected:
            self._sleep(10 * STEP_S)
        if not self._is_stopped:
            logger.info("broker back after %.1f s", time.monotonic() - since)

    def _sleep(self, seconds: float) -> None:
        """Sleep, but not through a stop: Python goes on sleeping after a signal."""
        end = time.monotonic() + seconds
        while not self._is_stopped and time.monotonic() < end:
            time.sleep(0.05)

    def _due(self) -> Iterator[Event]:
        """Give the events to send in this step, no more than are left to `count`."""
        left = None if self._count is None else self._count - self.tally.events
        if not self._is_paced:
            return islice(self._events, _CHUNK if left is None else min(left, _CHUNK))
        now = self._now()
        self.stream.hold_up(now, tolerance=HELD_UP)
        return islice(self.stream.until(now), left)

    def _send(self, events: Iterable[Event]) -> None:
        """Send JSON events one by one, and what is due of each Arrow instrument as one stream."""
        for event in events:
            self.tally.add(event)
            if event.instrument.form == ARROW and event.kind != STATUS:
                self._rows.setdefault(event.instrument.symbol, []).append(event)
            else:
                self._put(event, json_message(event, self.session))
        for rows in self._rows.values():
            self._put(rows[0], arrow_message(rows, self.session), is_arrow=True)
        self._rows.clear()

    def _put(self, event: Event, data: bytes, *, is_arrow: bool = False) -> None:
        self.tally.messages += 1
        instrument = event.instrument
        self.link.send(Outgoing(instrument.asset_class, instrument.text, data, ARROW_PROPERTIES if is_arrow else {}))

    def _finish(self) -> None:
        if self.link.is_connected:
            self._send(self.stream.closing())
            self.link.flush(FLUSH_S)
        if self.link.unconfirmed:
            logger.error("feed ends with %s messages unconfirmed", self.link.unconfirmed)
        self.link.close()
