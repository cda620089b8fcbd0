"""What the kill tests send: a seeded stream of trades in all forms, with repeats, and the account of what must be stored."""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from integration.market.events import CONTENT_TYPE, encode_ticks_stream
from tests.e2e.events import distributed, normalized, trade

INSTRUMENTS = ("AAA.SIMX", "BBB.SIMX", "CCC.SIMX")
NANO = 1_000_000_000
LATE_NS = 90 * NANO
Row = tuple[str, int, int]  # instrument, price and size in nanos


@dataclass
class Stream:
    """Writes messages; `sent` is what a correct service stores, by (channel, sequence)."""

    seed: int = 1
    sent: dict[tuple[int, int], Row] = field(default_factory=dict)
    last: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.next: defaultdict[int, int] = defaultdict(int)
        self.ts = 0

    def messages(self, events: int) -> list[tuple[str, bytes, dict[str, str]]]:
        """Give (key, bytes, properties) for about `events` new events; about 3 % of the messages are repeats of earlier ones."""
        made: list[tuple[str, bytes, dict[str, str]]] = []
        end = len(self.sent) + events
        while len(self.sent) < end:
            made.append(self._arrow(min(40, end - len(self.sent))) if self.random.random() < 0.3 else self._json())
            if self.random.random() < 0.03:
                made.append(self.random.choice((self.last + made)[-200:]))
        self.last = (self.last + made)[-200:]
        return made

    def _time(self) -> int:
        """Give a time that no other event has; one in fifty is late by more than a minute."""
        self.ts = max(self.ts + 1, time.time_ns())
        return self.ts - (LATE_NS if self.random.random() < 0.02 else 0)

    def _price(self) -> int:
        return 10 * NANO + self.random.randrange(NANO)

    def _number(self, channel: int, row: Row) -> int:
        self.next[channel] += 1
        self.sent[channel, self.next[channel]] = row
        return self.next[channel]

    def _arrow(self, rows: int) -> tuple[str, bytes, dict[str, str]]:
        at = self.random.randrange(len(INSTRUMENTS))
        instrument, channel = INSTRUMENTS[at], 10 + at
        columns: dict[str, list[int]] = {"sequence": [], "kind": [1] * rows, "ts_event": [], "price": [], "size": []}
        for _ in range(rows):
            price, size = self._price(), self.random.randrange(1, 500) * NANO
            for name, value in (
                ("sequence", self._number(channel, (instrument, price, size))),
                ("ts_event", self._time()),
                ("price", price),
                ("size", size),
            ):
                columns[name].append(value)
        data = encode_ticks_stream(columns, [instrument] * rows, source="alpha", channel=channel, session=20260105)
        return instrument, data, {"content-type": CONTENT_TYPE}

    def _json(self) -> tuple[str, bytes, dict[str, str]]:
        at = self.random.randrange(len(INSTRUMENTS))
        instrument, channel = INSTRUMENTS[at], at
        price, size = self._price(), self.random.randrange(1, 500) * NANO
        number = self._number(channel, (instrument, price, size))
        values: dict[str, Any] = {"price": f"{price / NANO:.9f}", "ts": self._time()}
        whole = size // NANO
        form = self.random.randrange(3)
        if form == 0 or channel:
            return instrument, trade(number, size=whole, instrument=instrument, channel=channel, **values), {}
        if form == 1:
            return instrument, distributed(number, volume=whole, **values), {}
        return instrument, normalized(number, "trade", volume=whole, **values), {}
