"""Plays the technical-indicator service: follows the published streams, and judges them as a client that trusts nothing.

Drops what it has seen, by (epoch, sequence) or event_id; what is missing or out of order it says.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pulsar

from integration.market.events import decode_bar, decode_numbered_ticks


@dataclass
class Indicator:
    """A subscriber of ticks and bars; `poll` takes what has come. All of `faults` is what the service did wrong."""

    client: pulsar.Client
    ticks_topic: str
    bars_topic: str
    name: str = "indicator"
    ticks: Counter[int] = field(default_factory=Counter)
    bars: dict[tuple[int, int, str, int], Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    repeats: int = 0
    last: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.consumers = {
            topic: self.client.subscribe(topic, self.name, initial_position=pulsar.InitialPosition.Earliest)
            for topic in (self.ticks_topic, self.bars_topic)
        }

    def poll(self) -> None:
        """Take everything that has come."""
        for topic, consumer in self.consumers.items():
            while True:
                try:
                    message = consumer.receive(timeout_millis=100)
                except pulsar.Timeout:
                    break
                (self._ticks if topic == self.ticks_topic else self._bar)(message.data())
                consumer.acknowledge(message)

    def _ticks(self, data: bytes) -> None:
        columns = decode_numbered_ticks(data).columns
        for key in zip(*(columns[name].tolist() for name in ("instrument_id", "epoch", "sequence")), strict=True):
            if self._is_next("ticks", *key):
                self.ticks[key[0]] += 1

    def _bar(self, data: bytes) -> None:
        bar = decode_bar(data)
        if not self._is_next("bars", bar.instrument_id, bar.epoch, bar.sequence):
            return
        key = (bar.instrument_id, bar.source_id, bar.timeframe, bar.start)
        before = self.bars.get(key)
        if bar.revision != (before.revision + 1 if before else 1):
            self.faults.append(f"bar {key} came as revision {bar.revision} after {before and before.revision}")
        self.bars[key] = bar

    def _is_next(self, stream: str, instrument_id: int, epoch: int, sequence: int) -> bool:
        key = (stream, instrument_id, epoch)
        last = self.last.get(key, 0)
        if sequence <= last:
            self.repeats += 1
            return False
        if sequence != last + 1:
            self.faults.append(f"{stream} of {instrument_id} went from {last} to {sequence}")
        self.last[key] = sequence
        return True
