"""Reference data compiled from rows into plain lookups that the hot path reads; replaced whole when anything changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from integration.market.ticks import Column

UNKNOWN_INSTRUMENT_ID: Final = 0
FOREVER: Final = 2**63 - 1
PENCE: Final = "GBX"  # accepted on an event as the unit of a listing quoted in pence, never stored as a currency


class Sessions(Protocol):
    """A venue's trading days (`integration.market.sessions`)."""

    def session_dates(self, ts: Column) -> npt.NDArray[np.int32]:
        """Give the trading day, in days since 1970, that each time (ns) belongs to."""
        ...

    def is_open(self, ts: Column) -> npt.NDArray[np.bool_]:
        """Tell for each time (ns) whether the venue trades; always false for an unknown calendar."""
        ...


@dataclass(slots=True, frozen=True)
class AliasSpan:
    """An instrument that a text names from `start` (inclusive) to `end` (exclusive), ns UTC."""

    start: int
    end: int
    instrument_id: int


@dataclass(slots=True, frozen=True)
class SourceFacts:
    """What a source may do."""

    id: int
    topics: frozenset[str]
    is_active: bool = True
    sequence_jump_limit: int = 1_000_000
    future_limit_ns: int = 5_000_000_000
    ancient_limit_ns: int = 7 * 86_400 * 1_000_000_000
    crossed_limit_bps: int = 0


@dataclass(slots=True, frozen=True)
class InstrumentFacts:
    """What the screens must know of an instrument."""

    id: int
    venue: str
    currencies: frozenset[str]
    symbol: str = ""  # the ticker of today, SYMBOL.MIC
    allows_negative: bool = False
    is_canary: bool = False


@dataclass(slots=True, frozen=True)
class Reference:
    """One consistent reading of the reference tables, known by `version`."""

    version: int
    aliases: dict[str, tuple[AliasSpan, ...]]
    sources: dict[str, SourceFacts]
    instruments: dict[int, InstrumentFacts]
    sessions: dict[str, Sessions]
    allows_negative: npt.NDArray[np.bool_] = field(init=False)
    canary: npt.NDArray[np.bool_] = field(init=False)
    venue_index: npt.NDArray[np.int32] = field(init=False)
    venues: tuple[str, ...] = field(init=False)
    source_by_id: dict[int, SourceFacts] = field(init=False)

    def __post_init__(self) -> None:
        size = max(self.instruments, default=0) + 1
        venues = tuple(sorted({facts.venue for facts in self.instruments.values()}))
        columns = np.zeros(size, np.bool_), np.zeros(size, np.bool_), np.full(size, -1, np.int32)
        for id_, facts in self.instruments.items():
            columns[0][id_], columns[1][id_], columns[2][id_] = (
                facts.allows_negative,
                facts.is_canary,
                venues.index(facts.venue),
            )
        for name, value in zip(("allows_negative", "canary", "venue_index"), columns, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "venues", venues)
        object.__setattr__(self, "source_by_id", {facts.id: facts for facts in self.sources.values()})

    @property
    def instrument_count(self) -> int:
        """Length of arrays that are indexed by instrument_id."""
        return len(self.allows_negative)

    def code_of(self, source_id: int) -> str:
        """Give the code of a source, or the empty text."""
        return next((code for code, facts in self.sources.items() if facts.id == source_id), "")

    def resolve(self, text: str, ts_event: int) -> int:
        """Give the instrument that `text` names at `ts_event`, or UNKNOWN_INSTRUMENT_ID."""
        for span in self.aliases.get(text, ()):
            if span.start <= ts_event < span.end:
                return span.instrument_id
        return UNKNOWN_INSTRUMENT_ID

    def resolve_column(
        self, texts: Sequence[str], which: npt.NDArray[np.int32], ts_event: Column
    ) -> npt.NDArray[np.int32]:
        """Resolve many events: event i names `texts[which[i]]` at `ts_event[i]`.

        A text with one span that covers the whole batch costs one look-up; the others are resolved event by event.
        """
        resolved = np.zeros(len(which), np.int32)
        if not len(which):
            return resolved
        earliest, latest = int(ts_event.min()), int(ts_event.max())
        whole = np.full(len(texts), -1, np.int32)
        for index, text in enumerate(texts):
            spans = self.aliases.get(text, ())
            if not spans:
                whole[index] = UNKNOWN_INSTRUMENT_ID
            elif len(spans) == 1 and spans[0].start <= earliest and latest < spans[0].end:
                whole[index] = spans[0].instrument_id
        resolved[:] = whole[which]
        for at in np.flatnonzero(resolved < 0).tolist():
            resolved[at] = self.resolve(texts[which[at]], int(ts_event[at]))
        return resolved

    def session_dates(
        self, instrument_id: npt.NDArray[np.int32], ts_event: Column
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Give each event's trading day (days since 1970) and whether its venue is open then.

        A venue without a known calendar gives the UTC date and "not open".
        """
        dates = (ts_event // 86_400_000_000_000).astype(np.int32)
        is_open = np.zeros(len(dates), np.bool_)
        venues = self.venue_index[instrument_id]
        for index, venue in enumerate(self.venues):
            here = venues == index
            table = self.sessions.get(venue)
            if table is not None and here.any():
                dates[here] = table.session_dates(ts_event[here])
                is_open[here] = table.is_open(ts_event[here])
        return dates, is_open
