"""The batch: ticks as columns in one declared schema, with what was turned away and why. Pure data, no rules.

A batch holds what one partition delivered in one go. Columns are numpy arrays of equal length; a row is one trade or quote.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

TRADE: Final = 1
QUOTE: Final = 2

NEW: Final = 0
CORRECT: Final = 1
CANCEL: Final = 2

# Identity of an event that its source does not number: channel and session are -1, sequence is a hash of its event_id.
UNNUMBERED: Final = -1

# A message that cannot be read at all is known by its bytes: channel and session are -2, sequence is a hash of them.
UNREADABLE: Final = -2

FLAG_LATE: Final = 1
FLAG_OFF_MARKET: Final = 2
FLAG_CORRECTION: Final = 4
FLAG_CANCEL: Final = 8
FLAG_LOCKED: Final = 16
FLAG_OFF_SESSION: Final = 32
FLAG_HALTED: Final = 64
FLAG_TIME_UNVERIFIED: Final = 128
FLAG_RELEASED: Final = 256

CONDITIONS: Final = (
    "odd_lot", "average_price", "derivatively_priced", "out_of_sequence", "prior_reference_price", "cash", "next_day", "seller",
    "extended_hours", "official_open", "official_close", "opening", "closing", "intermarket_sweep",
)  # fmt: skip
CONDITION_BITS: Final = {word: 1 << bit for bit, word in enumerate(CONDITIONS)}
OFF_MARKET_CONDITIONS: Final = sum(1 << bit for bit in range(11))
NO_VOLUME_CONDITIONS: Final = CONDITION_BITS["official_open"] | CONDITION_BITS["official_close"]

# name -> numpy type. price and size are the trade's, or the bid's of a quote; ask_* are 0 on a trade (docs/events.md).
TICK_COLUMNS: Final = {
    "kind": np.uint8,
    "action": np.uint8,
    "instrument_id": np.int32,
    "source_id": np.int32,
    "channel": np.int32,
    "session": np.int64,
    "sequence": np.int64,
    "trade_id": np.int64,
    "ts_event": np.int64,
    "ts_publish": np.int64,
    "price": np.int64,
    "size": np.int64,
    "ask_price": np.int64,
    "ask_size": np.int64,
    "conditions": np.uint32,
    "flags": np.uint32,
    "session_date": np.int32,  # days since 1970-01-01
    "message": np.int32,  # index of the message in the batch that the row came from
    "row": np.int32,  # index of the row inside an Arrow message; 0 for JSON
}


@dataclass(slots=True)
class Ticks:
    """Columns of `TICK_COLUMNS`, all of one length, in order of arrival."""

    kind: Column
    action: Column
    instrument_id: Column
    source_id: Column
    channel: Column
    session: Column
    sequence: Column
    trade_id: Column
    ts_event: Column
    ts_publish: Column
    price: Column
    size: Column
    ask_price: Column
    ask_size: Column
    conditions: Column
    flags: Column
    session_date: Column
    message: Column
    row: Column

    @classmethod
    def zeros(cls, length: int) -> Self:
        """Make columns of `length` zeros."""
        return cls(**{name: np.zeros(length, dtype) for name, dtype in TICK_COLUMNS.items()})

    @classmethod
    def concatenate(cls, parts: Sequence["Ticks"]) -> Self:
        """Join parts in the order given; no parts make an empty batch."""
        if not parts:
            return cls.zeros(0)
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in TICK_COLUMNS})

    def __len__(self) -> int:
        return len(self.kind)

    def columns(self) -> Iterator[tuple[str, Column]]:
        """Give (name, array) in schema order."""
        for name in TICK_COLUMNS:
            yield name, getattr(self, name)

    def take(self, selection: Mask | npt.NDArray[np.intp]) -> "Ticks":
        """Give the selected rows, by boolean mask or by positions."""
        return Ticks(**{name: column[selection] for name, column in self.columns()})


@dataclass(slots=True, frozen=True)
class DeliveredBar:
    """A bar that upstream built (form 3, `ohlc`); prices and volume in nanos, start in ns."""

    message: int
    instrument: str
    currency: str
    source: str
    timeframe: str
    start: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    channel: int
    session: int
    sequence: int
    ts_publish: int


@dataclass(slots=True, frozen=True)
class StatusChange:
    """A venue says that an instrument is now open, halted, in auction or closed, at `ts_event` ns."""

    message: int
    instrument: str
    source: str
    status: str
    ts_event: int
    channel: int
    session: int
    sequence: int
    ts_publish: int


@dataclass(slots=True, frozen=True)
class Rejection:
    """One event that is not stored as a tick: which message (and row of an Arrow message), the stable code, and words for people.

    Identity is (source code or "", channel, session, sequence) where it could be read; an unreadable message has `UNREADABLE`.
    """

    message: int
    code: str
    detail: str
    row: int = -1  # -1: the whole message
    source: str = ""
    channel: int = UNREADABLE
    session: int = UNREADABLE
    sequence: int = 0
    instrument: str = ""
    ts_event: int = 0


@dataclass(slots=True, frozen=True)
class Message:
    """What a source hands over: bytes as received, with the broker's facts about them."""

    data: bytes
    ts_publish: int  # ns UTC, the broker's clock
    ts_received: int  # ns UTC, our socket
    message_id: bytes = b""  # serialized; says where to read from, never what to skip


@dataclass(slots=True)
class Decoded:
    """Messages turned into columns, before instruments and sources are known.

    `instrument` and `source` hold, per tick row, an index into `instruments` and `sources` (the distinct texts), since a
    batch names few instruments many times. `currency` likewise; the empty text means that the form does not say.
    """

    ticks: Ticks
    instrument: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]
    currency: npt.NDArray[np.int32]
    instruments: list[str]
    sources: list[str]
    currencies: list[str]
    bars: list[DeliveredBar] = field(default_factory=list)
    statuses: list[StatusChange] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    @classmethod
    def join(cls, parts: Sequence[tuple[int, "Decoded"]]) -> "Decoded":
        """Join what was decoded apart, in order; each part comes with the place of its first message in the whole."""
        if len(parts) == 1:
            return parts[0][1]
        ticks = Ticks.concatenate([part.ticks for _, part in parts])
        ticks.message += np.repeat([start for start, _ in parts], [len(part.ticks) for _, part in parts]).astype(
            np.int32
        )
        instrument, instruments = _join_texts([(part.instrument, part.instruments) for _, part in parts])
        source, sources = _join_texts([(part.source, part.sources) for _, part in parts])
        currency, currencies = _join_texts([(part.currency, part.currencies) for _, part in parts])
        whole = cls(ticks, instrument, source, currency, instruments, sources, currencies)
        for start, part in parts:
            whole.bars += [replace(event, message=start + event.message) for event in part.bars]
            whole.statuses += [replace(event, message=start + event.message) for event in part.statuses]
            whole.rejections += [replace(event, message=start + event.message) for event in part.rejections]
        return whole


def _join_texts(parts: Sequence[tuple[npt.NDArray[np.int32], list[str]]]) -> tuple[npt.NDArray[np.int32], list[str]]:
    places: dict[str, int] = {}
    columns = []
    for column, texts in parts:
        moved = np.array([places.setdefault(text, len(places)) for text in texts] or [0], np.int32)
        columns.append(moved[column])
    return np.concatenate(columns), list(places)


Decoder = Callable[[Sequence[Message]], Decoded]
