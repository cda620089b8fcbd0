"""The wire: messages to columns (`decode`), and the doors of everything that goes out.

The forms live beside it: `json_forms` judges one JSON event, `json_scan` reads plain ones by the thousand, `tick_streams` is
Arrow, `bar_events` the JSON of bars. Instruments and sources stay texts here: reference data resolves them later.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from integration.market.bar_events import CONSOLIDATED, BarEvent, decode_bar, encode_bar
from integration.market.identifiers import currency_problem, identity_hash, instrument_problem, source_problem
from integration.market.json_forms import MAX_DEPTH, MAX_JSON_BYTES, TickEvent, read_event
from integration.market.tick_streams import (
    CONTENT_TYPE,
    MAX_STREAM_BYTES,
    MAX_STREAM_ROWS,
    STREAM_PREFIX,
    NumberedTicks,
    TickStream,
    decode_numbered_ticks,
    encode_numbered_ticks,
    encode_ticks_stream,
    flags_of,
    read_stream,
    row_bytes,
)
from integration.market.ticks import (
    TICK_COLUMNS,
    UNNUMBERED,
    Column,
    Decoded,
    DeliveredBar,
    Message,
    Rejection,
    StatusChange,
    Ticks,
)

if TYPE_CHECKING:
    from integration.market.json_scan import PlainEvents

__all__ = [
    "CONSOLIDATED",
    "CONTENT_TYPE",
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "MAX_STREAM_BYTES",
    "MAX_STREAM_ROWS",
    "STREAM_PREFIX",
    "BarEvent",
    "NumberedTicks",
    "decode",
    "decode_bar",
    "decode_numbered_ticks",
    "encode_bar",
    "encode_numbered_ticks",
    "encode_ticks_stream",
    "row_bytes",
    "warm_up",
]

# Loading the compiled scan takes a second, compiling it five: a few messages are not worth that, once loaded they are.
_SCAN_MODULE: Final = "integration.market.json_scan"
_WORTH_LOADING: Final = 64
_WORTH_SCANNING: Final = 4
_JSON_COLUMNS: Final = (
    "kind", "action", "channel", "session", "sequence", "trade_id", "ts_event", "price", "size", "ask_price", "ask_size",
    "conditions",
)  # fmt: skip
_TEXT_COLUMNS: Final = ("instrument", "source", "currency")
_PROBLEMS: Final[dict[str, Callable[[str], str]]] = {
    "instrument": instrument_problem,
    "source": source_problem,
    "currency": lambda text: currency_problem(text) if text else "",  # form 1 and 2 do not say it
}


def decode(messages: Sequence[Message]) -> Decoded:
    """Turn messages of the four forms into columns; every event that is no tick is a bar, a status or a Rejection.

    Rows are in the order of messages and of rows in them; no message raises, and none affects another.
    """
    batch = _Batch(messages)
    for index in batch.scan():
        message = messages[index]
        if message.data.startswith(STREAM_PREFIX):
            batch.add_stream(read_stream(message, index))
        else:
            batch.add_event(index, read_event(message, index))
    return batch.decoded()


def warm_up() -> None:
    """Load the compiled scan, so that the first batch does not wait for it."""
    from integration.market.json_scan import scan

    scan([b"{}"])


def _places(texts: dict[str, int], names: Iterable[str]) -> list[int]:
    """Give the place of each name in an ordered set of texts; new ones are added at its end."""
    return [texts.setdefault(name, len(texts)) for name in names]


class _Batch:
    """What is known of a batch so far: one row per JSON message, of which `kept` are ticks, and whole streams."""

    def __init__(self, messages: Sequence[Message]) -> None:
        count = len(messages)
        self.messages = messages
        self.texts: dict[str, dict[str, int]] = {name: {} for name in _TEXT_COLUMNS}
        self.kept = np.zeros(count, np.bool_)
        self.columns: dict[str, Column] = {}
        self.streams: list[TickStream] = []
        self.bars: list[DeliveredBar] = []
        self.statuses: list[StatusChange] = []
        self.rejections: list[Rejection] = []

    def scan(self) -> Sequence[int]:
        """Take what the fast scan reads; give the positions of the messages that must be looked at one by one."""
        count = len(self.messages)
        if count < (_WORTH_SCANNING if _SCAN_MODULE in sys.modules else _WORTH_LOADING):
            self.columns = {name: np.zeros(count, np.int64) for name in _JSON_COLUMNS + _TEXT_COLUMNS}
            return range(count)
        from integration.market.json_scan import scan

        plain = scan([message.data if len(message.data) <= MAX_JSON_BYTES else b"" for message in self.messages])
        self.columns = {name: plain.columns[name] for name in _JSON_COLUMNS}
        self.kept = plain.read
        self._keep_well_named(plain)
        for index in np.flatnonzero(self.kept & (plain.columns["numbered"] == 0)).tolist():
            self.columns["channel"][index] = self.columns["session"][index] = UNNUMBERED
            self.columns["sequence"][index] = identity_hash(plain.event_id(index))
        undecided: list[int] = np.flatnonzero(~self.kept).tolist()
        return undecided

    def _keep_well_named(self, plain: "PlainEvents") -> None:
        texts = {"instrument": plain.instruments, "source": plain.sources, "currency": plain.currencies}
        for name, distinct in texts.items():
            good = np.array([not _PROBLEMS[name](text) for text in distinct], np.bool_)
            self.kept[self.kept] = good[plain.columns[name][self.kept]]
        for name, distinct in texts.items():
            used = np.zeros(len(distinct) + 1, np.bool_)
            used[plain.columns[name][self.kept]] = True
            used[-1] = False  # stands for -1, the text of a message that was not read
            places = np.zeros(len(used), np.int64)
            places[used] = _places(self.texts[name], (distinct[number] for number in np.flatnonzero(used).tolist()))
            self.columns[name] = places[plain.columns[name]]

    def add_event(self, index: int, event: TickEvent | DeliveredBar | StatusChange | Rejection) -> None:
        """Take what the message at `index` turned out to be."""
        if isinstance(event, TickEvent):
            for name in _JSON_COLUMNS:
                self.columns[name][index] = getattr(event, name)
            for name in _TEXT_COLUMNS:
                (self.columns[name][index],) = _places(self.texts[name], [getattr(event, name)])
            self.kept[index] = True
        elif isinstance(event, DeliveredBar):
            self.bars.append(event)
        elif isinstance(event, StatusChange):
            self.statuses.append(event)
        else:
            self.rejections.append(event)

    def add_stream(self, stream: TickStream | Rejection) -> None:
        """Take the rows of an Arrow message."""
        if isinstance(stream, Rejection):
            self.rejections.append(stream)
            return
        self.rejections += stream.rejections
        if len(stream.ticks):
            self.streams.append(stream)

    def decoded(self) -> Decoded:
        """Join everything in order of arrival, in arrays of our own."""
        parts = [(stream.ticks, self._stream_texts(stream)) for stream in self.streams]
        if self.kept.any() or not parts:
            parts.insert(0, (self._json_ticks(), self._json_texts()))
        # joining also gives columns that are ours: those of a stream are read-only views of its bytes
        ticks = Ticks.concatenate([part for part, _ in parts])
        texts = {name: np.concatenate([indices[name] for _, indices in parts]) for name in _TEXT_COLUMNS}
        if self.streams and self.kept.any():
            order = np.argsort(ticks.message, kind="stable")
            ticks, texts = ticks.take(order), {name: column[order] for name, column in texts.items()}
        return Decoded(
            ticks=ticks,
            **texts,
            instruments=list(self.texts["instrument"]),
            sources=list(self.texts["source"]),
            currencies=list(self.texts["currency"]),
            bars=self.bars,
            statuses=self.statuses,
            rejections=self.rejections,
        )

    def _json_ticks(self) -> Ticks:
        rows = np.flatnonzero(self.kept)
        whole = len(rows) == len(self.kept)
        columns = {
            name: (self.columns[name] if whole else self.columns[name][rows]).astype(TICK_COLUMNS[name], copy=False)
            for name in _JSON_COLUMNS
        }
        columns["message"] = rows.astype(np.int32)
        columns["ts_publish"] = np.array([self.messages[row].ts_publish for row in rows.tolist()], np.int64)
        columns["flags"] = flags_of(columns["action"])
        return Ticks(**columns, **_zeros(len(rows), columns.keys()))

    def _json_texts(self) -> dict[str, npt.NDArray[np.int32]]:
        return {name: self.columns[name][self.kept].astype(np.int32) for name in _TEXT_COLUMNS}

    def _stream_texts(self, stream: TickStream) -> dict[str, npt.NDArray[np.int32]]:
        rows = len(stream.ticks)
        (source,), (currency,) = _places(self.texts["source"], [stream.source]), _places(self.texts["currency"], [""])
        return {
            "instrument": np.array(_places(self.texts["instrument"], stream.instruments), np.int32)[stream.instrument],
            "source": np.full(rows, source, np.int32),
            "currency": np.full(rows, currency, np.int32),
        }


def _zeros(rows: int, but: Collection[str]) -> dict[str, Column]:
    return {name: np.zeros(rows, kind) for name, kind in TICK_COLUMNS.items() if name not in but}
