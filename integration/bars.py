"""Bars from trades: one fold over numbered batches, exact, with revisions. Pure: the clock comes with each batch, stored bars by a callback.

A bar is known by (instrument, source or 0 = consolidated, timeframe, start). The arithmetic is in `bar_kernel`; this module holds the
record, what a late trade does to a stored bar, and the state between batches. `SessionTable` says where bars start and end.

Rules (docs/events.md has the wire form):

- A trade counts if its action is `new`; `integration.corrections` says what each one comes to. Conditions marked off-market set no price, conditions marked no-volume add no volume, turnover or count;
  a trade with both does nothing. `first_ts` and `last_ts` are those of the trades that set the price; equal times open by the
  first to arrive and close by the last.
- A bar closes when the clock of the partition its instrument flows through (the slowest, if several) passes its end and the grace, or a
  trade of its key does. What comes later revises the bar: one revision per bar and batch, `late_trade`, or `release` if any of the trades
  was released from quarantine. A bar that only late trades made begins at revision 1 with that reason.
- The day's bar comes out at the session's close and stays open while its trading day lasts (after-hours). Meanwhile a change of price, or a late trade
  of the session, revises it at once; volume after hours is told when the trading day is over, with `is_final`, in
  any case. A revision that changes nothing but `is_final` repeats the reason before it.
- A bar of off-market trades alone has no price: it is held (revision 0, to be stored and not published) until a trade of
  its interval sets one; then the held volume is in it.
- `is_partial`: the interval began before we began to listen to the partition. An instrument that is new on a partition we have heard since
  before is complete. For the day it is enough to have listened since the trading day began (local midnight; the open, overnight).
- `is_final`: the session's trading day and the grace had passed when this revision was made.
- No trade, no bar: neither silence nor a halt makes one.
- Corrected and cancelled trades change open bars in silence, and revise those that are out: one revision per bar and batch, `cancel` if
  any of the trades was cancelled, else `correction`; it comes before what the batch's own trades do to the bar. A bar that has lost
  its last price is withdrawn: a revision whose prices are the last close, and that counts no trade on the wire.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from integration.bar_sums import Sums, turnover_of, volume_of
from integration.market.sessions import MINUTE, SECOND, TIMEFRAMES, SessionTable
from integration.market.ticks import Ticks

REASONS: Final = ("first", "late_trade", "correction", "cancel", "release", "override", "delivered")
FIRST, LATE_TRADE, CORRECTION, CANCEL, RELEASE, OVERRIDE, DELIVERED = REASONS

CONSOLIDATED: Final = 0
DEFAULT_GRACE_NS: Final = 2 * SECOND

_MAGIC: Final = b"MDIBARS\x01"
_HEADER: Final = struct.Struct("<8s3I")
_CHECKSUM: Final = struct.Struct("<I")
_FIRST_CAPACITY: Final = 64


class BarKey(NamedTuple):
    """What a bar is known by; `source_id` 0 is all sources together, `start` ns UTC."""

    instrument_id: int
    source_id: int
    timeframe: str
    start: int


@dataclass(slots=True, frozen=True)
class Bar:
    """One revision of a bar. Prices and volume in nanos, turnover in 1e-18 (nanos of price times nanos of size): exact integers of any size.

    Times in ns UTC, `session_date` in days since 1970-01-01. Without a price `first_ts` and `last_ts` are 0: revision 0 had none yet and is never
    published; a later one has lost it (withdrawn) and repeats the last close.
    Raises ValueError unless low <= open, close <= high.
    """

    instrument_id: int
    source_id: int
    timeframe: str
    start: int
    end: int
    session_date: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    turnover: int
    trade_count: int
    first_ts: int
    last_ts: int
    revision: int
    reason: str
    is_partial: bool = False
    is_final: bool = False

    def __post_init__(self) -> None:
        if not (self.low <= self.open <= self.high and self.low <= self.close <= self.high):
            raise ValueError(f"low <= open, close <= high must hold, was {self}")
        if self.start >= self.end or self.first_ts > self.last_ts or self.revision < 0 or self.trade_count < 0:
            raise ValueError(f"start < end, first_ts <= last_ts, revision and trade_count >= 0 must hold, was {self}")

    @property
    def key(self) -> BarKey:
        """What the bar is known by."""
        return BarKey(self.instrument_id, self.source_id, self.timeframe, self.start)

    @property
    def has_price(self) -> bool:
        """Whether a trade sets the price."""
        return self.revision > 0 and self.last_ts != 0

    @property
    def is_published(self) -> bool:
        """Whether the bar is told to clients, be it that it is withdrawn."""
        return self.revision > 0

    @property
    def volume_decimal(self) -> Decimal:
        """The volume, exact, without trailing zeros."""
        return _decimal(self.volume, 9)

    @property
    def turnover_decimal(self) -> Decimal:
        """The sum of price times size, exact, without trailing zeros."""
        return _decimal(self.turnover, 18)


def _decimal(value: int, places: int) -> Decimal:
    # Built from text: every arithmetic operation of Decimal would round to 28 digits.
    while places and value % 10 == 0:
        value, places = value // 10, places - 1
    return Decimal(f"{value}E-{places}")


@dataclass(slots=True, frozen=True)
class Folded:
    """What one batch did: `bars` to store and to publish, `held` to store only. Each in order of (end, timeframe, start, instrument, source).

    `incomplete` are (instrument, start) of touched minutes whose trades do not make the bar that is known: nothing was changed there.
    """

    bars: list[Bar] = field(default_factory=list)
    held: list[Bar] = field(default_factory=list)
    incomplete: set[tuple[int, int]] = field(default_factory=set)


class Touched(NamedTuple):
    """A minute of an instrument and source in which a trade was corrected or cancelled (`reason`); `start` ns UTC."""

    instrument_id: int
    source_id: int
    start: int
    reason: str


@dataclass(slots=True, frozen=True)
class Amended:
    """What amendments did to trades of earlier batches: all trades of the touched minutes that counted before, and that count now.

    Both in order of arrival, without those of the batch that brings the amendments.
    """

    before: Ticks
    after: Ticks
    touched: Sequence[Touched]


Load = Callable[[Sequence[BarKey]], Iterable[Bar]]
LoadMinutes = Callable[[int, int, int, int], Iterable[Bar]]
SessionsOf = Callable[[int], SessionTable]


def _no_minutes(_instrument_id: int, _source_id: int, _start: int, _end: int) -> Iterable[Bar]:
    return ()


def revise(stored: Bar | None, late: Bar) -> Bar:
    """Merge trades that arrived after a bar was stored into it, and number the revision; `late` is the bar of these trades alone."""
    if stored is None:
        return late
    opens = closes = stored if not late.has_price else late
    high, low = opens.high, opens.low
    if stored.has_price and late.has_price:
        opens = late if late.first_ts < stored.first_ts else stored
        closes = late if late.last_ts >= stored.last_ts else stored
        high, low = max(high, stored.high), min(low, stored.low)
    return replace(
        stored,
        open=opens.open,
        high=high,
        low=low,
        close=closes.close,
        first_ts=opens.first_ts,
        last_ts=closes.last_ts,
        volume=stored.volume + late.volume,
        turnover=stored.turnover + late.turnover,
        trade_count=stored.trade_count + late.trade_count,
        revision=stored.revision + 1 if stored.is_published or late.has_price else 0,
        reason=late.reason,
        is_partial=stored.is_partial or late.is_partial,
        is_final=late.is_final,
    )


class _Span(NamedTuple):
    """A bar that holds touched minutes: whose it is, and the minutes [first, until) that make it (a day's reach beyond its hours)."""

    key: int
    frame: int
    start: int
    end: int
    first: int
    until: int
    date: int
    day_end: int
    is_partial: bool
    reason: str


_NOTHING: Final = Sums()


class BarBuilder:
    """The fold's state. Single writer: the same batches in the same order give the same bars.

    `load` gives the stored bars (latest revision, held ones too) of those keys that have one; it is asked at most once per batch, only for bars that
    closed before. `load_minutes` gives the stored 1m bars of (instrument, source, start, end) in [start, end). `sessions_of` gives an instrument's calendar and is asked once per instrument. `grace_ns` is 0 to under a minute.
    """

    def __init__(
        self,
        *,
        load: Load,
        sessions_of: SessionsOf,
        grace_ns: int = DEFAULT_GRACE_NS,
        load_minutes: LoadMinutes = _no_minutes,
    ) -> None:
        if not 0 <= grace_ns < MINUTE:
            # Two open bars per timeframe are enough only while the grace is shorter than the shortest bar.
            raise ValueError(f"the grace must be 0 to under {MINUTE} ns, was {grace_ns}")
        from integration import bar_kernel  # late: numba takes a second to import, and readers of Bar do not need it

        self._kernel = bar_kernel
        self._load = load
        self._load_minutes = load_minutes
        self._sessions_of = sessions_of
        self._grace = grace_ns
        self._clear()

    def _clear(self) -> None:
        self._torn = False
        self._keys = 0
        self._unsaved: dict[BarKey, Bar] = {}
        self._partitions: dict[int, int] = {}
        self._clocks = np.zeros(0, np.int64)
        self._heard_from = np.zeros(0, np.int64)
        self._tables: list[SessionTable] = []
        self._calendar_bounds = np.zeros((0, 3), np.int64)
        self._calendar_rows = np.zeros((0, 5), np.int64)
        self._parts = np.zeros((0, self._kernel.COLUMNS), np.int64)
        self._part_key = np.zeros(0, np.int64)
        self._allocate(_FIRST_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        """Make room for `capacity` keys, keeping those there are."""
        kernel, kept = self._kernel, self._keys

        def grown(name: str, shape: tuple[int, ...], dtype: type, fill: int) -> npt.NDArray[Any]:
            array: npt.NDArray[Any] = np.full((capacity, *shape), fill, dtype)
            if kept:
                array[:kept] = getattr(self, name)[:kept]
            return array

        self._places = grown("_places", (kernel.FRAMES, 2, kernel.COLUMNS), np.int64, kernel.NEVER)
        self._instruments = grown("_instruments", (), np.int64, 0)
        self._sources = grown("_sources", (), np.int64, 0)
        self._frontier = grown("_frontier", (), np.int64, kernel.NEVER)
        self._due = grown("_due", (), np.int64, kernel.FOREVER)
        self._joined = grown("_joined", (), np.int64, kernel.NEVER)
        self._whole = grown("_whole", (), np.int32, 0)
        self._calendar = grown("_calendar", (), np.int32, 0)
        self._members = grown("_members", (len(self._clocks),), np.uint8, 0)
        self._latest = np.full(capacity, -1, np.int32)
        self._table = np.full(_power_of_two(2 * capacity), -1, np.int32)
        kernel.fill_table(self._table, self._instruments, self._sources, kept)

    def fold(self, ticks: Ticks, clock: int, partition: int, amended: Amended | None = None) -> Folded:
        """Take the next batch of a partition: its accepted ticks in order of arrival (or none), and the clock after them; first, what it amends.

        `clock` (ns UTC) says that everything published on this partition before it has been seen; one that runs backwards counts as the highest yet.
        Write what comes back before, or in one go with, what the next batch gives; `settle` says that it is written.
        RuntimeError when an earlier call failed half-way: only `restore` may follow then.
        """
        if self._torn:
            raise RuntimeError("an earlier batch failed half-way: restore the last snapshot first")
        self._torn = True
        index = self._partition(partition, ticks, clock)
        told, incomplete = self._amend(amended) if amended else ([], set[tuple[int, int]]())
        before = self._clocks.copy()
        self._clocks[index] = max(clock, int(before[index]))
        late, out = self._take(ticks, before, index)
        bars = self._revised(late) + self._bars(out) + self._bars(self._closed(index))
        self._unsaved.update((bar.key, bar) for bar in bars)
        again = {bar.key for bar in bars}  # a bar that is held is held, or told, as it is after the whole batch
        bars += [
            replace(bar, is_final=self._is_over(key, day_end))
            for key, day_end, bar in told
            if bar.is_published or bar.key not in again
        ]
        bars.sort(key=lambda bar: (*_order(bar), bar.revision))
        self._torn = False
        held = [bar for bar in bars if not bar.is_published]
        return Folded([bar for bar in bars if bar.is_published], held, incomplete)

    def settle(self) -> None:
        """Forget the bars given so far: they are written, `load` will see them."""
        self._unsaved.clear()

    def _partition(self, partition: int, ticks: Ticks, clock: int) -> int:
        if partition in self._partitions:
            return self._partitions[partition]
        index = self._partitions[partition] = len(self._partitions)
        published = int(ticks.ts_publish.min()) if len(ticks) else 0
        self._heard_from = np.append(self._heard_from, min(published, clock) if published > 0 else clock)
        self._clocks = np.append(self._clocks, self._kernel.NEVER)
        self._members = np.pad(self._members, ((0, 0), (0, 1)))
        return index

    def _take(self, ticks: Ticks, before: npt.NDArray[np.int64], partition: int) -> tuple[Any, Any]:
        """Give the late sums and the bars that this batch's trades let out, as rows of the kernel."""
        kernel = self._kernel
        count = self._sum(ticks)
        part_key = self._part_key[:count]
        # Keys and minutes fit one word: 2^28 minutes end in 2480.
        order = np.argsort((part_key << 28) + self._parts[:count, kernel.START] // MINUTE)
        late = np.empty((6 * count, kernel.OUT_COLUMNS), np.int64)
        out = np.empty((18 * count, kernel.OUT_COLUMNS), np.int64)
        late_count, out_count = kernel.apply_minutes(
            order, self._parts, part_key, self._places, self._frontier, self._due, self._joined, self._members, self._calendar,
            self._calendar_bounds, self._calendar_rows, before, self._clocks, partition, int(self._heard_from[partition]),
            self._grace, late, out,
        )  # fmt: skip
        return late[:late_count], out[:out_count]

    def _sum(self, ticks: Ticks) -> int:
        """Sum the batch by key and minute into `_parts`; give the number of sums."""
        key_of_row = self._assign(ticks)
        room = 2 * len(ticks)
        if len(self._parts) < room:
            self._parts = np.empty((room, self._kernel.COLUMNS), np.int64)
            self._part_key = np.empty(room, np.int64)
        table = np.full(_power_of_two(2 * room), -1, np.int32)
        frozen = self._kernel.frozen
        return self._kernel.sum_minutes(
            key_of_row, self._whole, frozen(ticks.ts_event), frozen(ticks.price), frozen(ticks.size), frozen(ticks.conditions),
            frozen(ticks.flags), self._latest, table, self._parts, self._part_key,
        )  # fmt: skip

    def _assign(self, ticks: Ticks) -> npt.NDArray[np.int32]:
        key_of_row = np.empty(len(ticks), np.int32)
        row, known = 0, self._keys
        frozen = self._kernel.frozen
        while True:
            row, self._keys = self._kernel.assign_keys(
                row, frozen(ticks.kind), frozen(ticks.action), frozen(ticks.instrument_id), frozen(ticks.source_id),
                frozen(ticks.conditions), key_of_row, self._table, self._instruments, self._sources, self._whole, self._keys,
            )  # fmt: skip
            if row == len(ticks):
                break
            self._allocate(2 * len(self._instruments))
        self._set_calendars(known)
        return key_of_row

    def _set_calendars(self, known: int) -> None:
        """Ask for the calendars of the keys from number `known` on."""
        for key in range(known, self._keys):
            whole = int(self._whole[key])
            if whole == key:
                self._calendar[key] = self._calendar_number(self._sessions_of(int(self._instruments[key])))
            else:
                self._calendar[key] = self._calendar[whole]

    def _calendar_number(self, table: SessionTable) -> int:
        for number, known in enumerate(self._tables):
            if known is table:
                return number
        columns = (table.session_date, table.day_start_ns, table.open_ns, table.close_ns, table.owned_until_ns)
        first = len(self._calendar_rows)
        self._calendar_rows = np.concatenate((self._calendar_rows, np.stack(columns, axis=1).astype(np.int64)))
        bounds = np.array([[first, len(self._calendar_rows), table.owned_from_ns]], np.int64)
        self._calendar_bounds = np.concatenate((self._calendar_bounds, bounds))
        self._tables.append(table)
        return len(self._tables) - 1

    def _closed(self, partition: int) -> Any:
        """Give the rows of the bars that the clock of this partition has passed."""
        clock = int(self._clocks[partition])
        candidates = int(np.count_nonzero(self._due[: self._keys] <= clock))
        if not candidates:
            return self._parts[:0]
        out = np.empty((12 * candidates, self._kernel.OUT_COLUMNS), np.int64)
        count = self._kernel.close_due(
            self._keys, clock, self._clocks, self._members, self._places, self._frontier, self._due, self._grace, out
        )
        return out[:count]

    def _revised(self, late: Any) -> list[Bar]:
        """Merge late sums into the bars as they are stored, or as this builder gave them since the last `settle`."""
        if not len(late):
            return []
        late[:, self._kernel.REASON] = np.where(
            late[:, self._kernel.MARKS] & self._kernel.RELEASED, self._kernel.REASON_RELEASE, self._kernel.REASON_LATE
        )
        late[:, self._kernel.REVISION] = late[:, self._kernel.FIRST] != self._kernel.NEVER
        parts = self._bars(late)
        missing = [part.key for part in parts if part.key not in self._unsaved]
        stored = {bar.key: bar for bar in self._load(missing)} if missing else {}
        return [revise(self._unsaved.get(part.key) or stored.get(part.key), part) for part in parts]

    def _bars(self, rows: Any) -> list[Bar]:
        kernel = self._kernel
        if not len(rows):
            return []
        keys = rows[:, kernel.KEY]
        finals = (rows[:, kernel.DAY_END] + self._grace <= self._frontier[keys]).tolist()
        no_price = rows[:, kernel.FIRST] == kernel.NEVER
        rows[no_price, kernel.FIRST] = rows[no_price, kernel.LAST] = 0
        owners = zip(self._instruments[keys].tolist(), self._sources[keys].tolist(), finals, strict=True)
        return [self._bar(row, *owner) for row, owner in zip(rows.tolist(), owners, strict=True)]

    def _bar(self, row: list[int], instrument_id: int, source_id: int, is_final: bool) -> Bar:
        kernel = self._kernel
        return Bar(
            instrument_id=instrument_id,
            source_id=source_id,
            timeframe=TIMEFRAMES[row[kernel.TIMEFRAME]],
            start=row[kernel.START],
            end=row[kernel.END],
            session_date=row[kernel.DATE],
            open=row[kernel.OPEN],
            high=row[kernel.HIGH],
            low=row[kernel.LOW],
            close=row[kernel.CLOSE],
            volume=volume_of(row, kernel),
            turnover=turnover_of(row, kernel),
            trade_count=row[kernel.COUNT],
            first_ts=row[kernel.FIRST],
            last_ts=row[kernel.LAST],
            revision=row[kernel.REVISION],
            reason=REASONS[row[kernel.REASON]],
            is_partial=bool(row[kernel.MARKS] & kernel.PARTIAL),
            is_final=is_final,
        )

    # -- amendments ---------------------------------------------------------------------------------------------------

    def _amend(self, amended: Amended) -> tuple[list[tuple[int, int, Bar]], set[tuple[int, int]]]:
        """Make the bars of touched minutes, and the longer ones above them, what their trades make now.

        Gives (key, end of the trading day, bar) of each one that was out, and the minutes whose trades are not all at hand.
        """
        before, now = self._minutes_of(amended.before), self._minutes_of(amended.after)
        reasons = self._touched(amended.touched)
        minutes = self._known_minutes(reasons)
        incomplete = {
            (int(self._instruments[key]), start)
            for key, start in reasons
            if minutes[key].get(start, _NOTHING).amounts != before.get((key, start), _NOTHING).amounts
        }
        whole = {
            at: reason for at, reason in reasons.items() if (int(self._instruments[at[0]]), at[1]) not in incomplete
        }
        for key, start in whole:
            minutes[key][start] = now.get((key, start), _NOTHING)
        spans = self._spans(whole)
        closed = self._closed_bars(spans)
        told = []
        for span in spans:
            sums = Sums.join(minutes[span.key][at] for at in sorted(minutes[span.key]) if span.first <= at < span.until)
            place = self._open_place(span)
            known = closed.get(self._bar_key(span))
            bar = self._amend_closed(span, known, sums) if place is None else self._amend_open(span, place, sums)
            if bar is not None:
                told.append((span.key, span.day_end, bar))
        for key in {span.key for span in spans if self._members[span.key].any()}:
            self._due[key] = self._kernel.NEVER  # looked at, and worked out anew, at the end of this batch
        self._unsaved.update((bar.key, bar) for _, _, bar in told)
        return told, incomplete

    def _minutes_of(self, ticks: Ticks) -> dict[tuple[int, int], Sums]:
        kernel, count = self._kernel, self._sum(ticks)
        starts = self._parts[:count, kernel.START].tolist()
        sums = [Sums.of_row(row, kernel) for row in self._parts[:count]]
        return dict(zip(zip(self._part_key[:count].tolist(), starts, strict=True), sums, strict=True))

    def _touched(self, touched: Sequence[Touched]) -> dict[tuple[int, int], str]:
        """Give (key, start) of the minutes, for their source and for the instrument as a whole, with the reason."""
        reasons: dict[tuple[int, int], str] = {}
        for instrument_id, source_id, start, reason in sorted(touched):
            for source in {max(source_id, 0), CONSOLIDATED}:
                mine = (self._instruments[: self._keys] == instrument_id) & (self._sources[: self._keys] == source)
                at = int(np.flatnonzero(mine)[0]), start
                reasons[at] = CANCEL if CANCEL in (reason, reasons.get(at)) else reason
        return reasons

    def _session(self, key: int, start: int) -> Any:
        """Give (owned from, date, day start, open, close, owned until) of the session that owns a minute."""
        session = np.empty(6, np.int64)
        bounds = self._calendar_bounds[self._calendar[key]]
        self._kernel.session_of(start, self._calendar_rows, bounds, session)
        return session

    def _spans(self, reasons: dict[tuple[int, int], str]) -> list["_Span"]:
        """Give the bars of all timeframes that hold the minutes."""
        spans: dict[tuple[int, int, int], _Span] = {}
        for (key, minute), reason in reasons.items():
            session = self._session(key, minute)
            owned_from, date, day_start, _, _, owned_until = session.tolist()
            for frame in range(self._kernel.FRAMES):
                start, end = self._kernel.bar_span(minute, frame, session)
                is_day = frame == self._kernel.ONE_DAY
                first, until, begins = (owned_from, owned_until, day_start) if is_day else (start, end, start)
                before = spans.get((key, frame, start))
                why = CANCEL if before and before.reason == CANCEL else reason
                spans[key, frame, start] = _Span(
                    key, frame, start, end, first, until, date, owned_until, bool(begins < self._joined[key]), why
                )
        return list(spans.values())

    def _known_minutes(self, reasons: dict[tuple[int, int], str]) -> dict[int, dict[int, Sums]]:
        """Give what is known of all minutes of the bars that hold these, by key and start: stored, given since, or open."""
        minutes: dict[int, dict[int, Sums]] = {key: {} for key, _ in reasons}
        for key, first, until in sorted({self._extent(key, start) for key, start in reasons}):
            owner = int(self._instruments[key]), int(self._sources[key])
            stored = self._load_minutes(*owner, first, until)
            unsaved = (bar for bar in self._unsaved.values() if bar.timeframe == TIMEFRAMES[0] and bar.key[:2] == owner)
            for bar in (*stored, *unsaved):
                if first <= bar.start < until:
                    minutes[key][bar.start] = Sums.of_bar(bar)
        for key, mine in minutes.items():
            for place in self._places[key, 0]:
                if place[self._kernel.START] != self._kernel.NEVER:
                    mine[int(place[self._kernel.START])] = Sums.of_row(place, self._kernel)
        return minutes

    def _extent(self, key: int, start: int) -> tuple[int, int, int]:
        spans = self._spans({(key, start): CORRECTION})
        return key, min(span.first for span in spans), max(span.until for span in spans)

    def _bar_key(self, span: "_Span") -> BarKey:
        instrument_id, source_id = int(self._instruments[span.key]), int(self._sources[span.key])
        return BarKey(instrument_id, source_id, TIMEFRAMES[span.frame], span.start)

    def _open_place(self, span: "_Span") -> Any:
        for place in self._places[span.key, span.frame]:
            if place[self._kernel.START] == span.start:
                return place
        return None

    def _closed_bars(self, spans: Sequence["_Span"]) -> dict[BarKey, Bar]:
        """Give the newest revision of those bars that are not open."""
        keys = [self._bar_key(span) for span in spans if self._open_place(span) is None]
        missing = [key for key in keys if key not in self._unsaved]
        stored = {bar.key: bar for bar in self._load(missing)} if missing else {}
        return stored | {key: self._unsaved[key] for key in keys if key in self._unsaved}

    def _amend_open(self, span: "_Span", place: Any, sums: Sums) -> Bar | None:
        """Change an open bar; give its next revision when it is out already (the day after its close)."""
        kernel = self._kernel
        is_out = place[kernel.REVISION] > 0
        if not is_out and sums.is_empty:
            place[kernel.START] = kernel.NEVER
            return None
        sums.write(place, kernel, int(place[kernel.CLOSE]) if is_out else 0)
        if not is_out:
            if sums.has_price:
                place[kernel.MARKS] |= kernel.URGENT
            return None
        place[kernel.REVISION] += 1
        place[kernel.REASON] = REASONS.index(span.reason)
        place[kernel.MARKS] &= kernel.PARTIAL
        return self._bars(np.array([[*place, span.key, span.frame]], np.int64))[0]

    def _amend_closed(self, span: "_Span", known: Bar | None, sums: Sums) -> Bar | None:
        """Give the next revision of a closed bar."""
        if known is None and sums.is_empty:
            return None
        revision, last_price = (known.revision, known.close) if known else (0, 0)
        prices = (sums.open, sums.high, sums.low, sums.close) if sums.has_price else (last_price,) * 4
        return Bar(
            *self._bar_key(span), span.end, known.session_date if known else span.date, *prices, *sums.amounts,
            sums.first_ts if sums.has_price else 0, sums.last_ts if sums.has_price else 0,
            revision + 1 if revision or sums.has_price else 0, span.reason, known.is_partial if known else span.is_partial,
        )  # fmt: skip

    def _is_over(self, key: int, day_end: int) -> bool:
        """Tell whether a key is known beyond the end of a trading day and the grace."""
        clocks = self._clocks[self._members[key] > 0]
        known = max(int(self._frontier[key]), int(clocks.min()) if len(clocks) else self._kernel.NEVER)
        return day_end + self._grace <= known

    # -- state --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Write the state as bytes: the same state gives the same bytes. Bars already given are not in it; keep both in one transaction."""
        open_bars = self._places[: self._keys, :, :, self._kernel.START] != self._kernel.NEVER
        where = np.flatnonzero(open_bars)
        keys = slice(0, self._keys)
        arrays = (
            np.fromiter(self._partitions, np.int64, len(self._partitions)), self._clocks, self._heard_from,
            self._instruments[keys], self._sources[keys], self._frontier[keys], self._joined[keys], where,
            self._places[keys][open_bars], self._members[keys],
        )  # fmt: skip
        header = _HEADER.pack(_MAGIC, self._keys, len(self._partitions), len(where))
        plain: list[Any] = [np.ascontiguousarray(array, _little(array.dtype)) for array in arrays if array.size]
        body = [memoryview(array).cast("B") for array in plain]
        checksum = zlib.crc32(header)
        for piece in body:
            checksum = zlib.crc32(piece, checksum)
        return b"".join((header, *body, _CHECKSUM.pack(checksum)))

    def restore(self, data: bytes) -> None:
        """Take up the state of a snapshot in place of what there is; ValueError when the bytes are none, and nothing has changed then."""
        keys, partitions, places = _check(data, self._kernel.COLUMNS)
        self._clear()
        reader = _Reader(data)
        self._partitions = {int(name): index for index, name in enumerate(reader.take(np.int64, partitions))}
        self._clocks = reader.take(np.int64, partitions)
        self._heard_from = reader.take(np.int64, partitions)
        self._allocate(max(_FIRST_CAPACITY, _power_of_two(keys)))
        self._keys = keys
        self._instruments[:keys] = reader.take(np.int64, keys)
        self._sources[:keys] = reader.take(np.int64, keys)
        self._frontier[:keys] = reader.take(np.int64, keys)
        self._joined[:keys] = reader.take(np.int64, keys)
        where = reader.take(np.int64, places)
        flat = self._places.reshape(-1, self._kernel.COLUMNS)
        flat[where] = reader.take(np.int64, places * self._kernel.COLUMNS).reshape(-1, self._kernel.COLUMNS)
        self._members[:keys] = reader.take(np.uint8, keys * partitions).reshape(keys, partitions)
        self._kernel.fill_table(self._table, self._instruments, self._sources, keys)
        self._find_wholes()
        self._set_calendars(0)
        self._kernel.find_due(keys, self._places, self._frontier, self._grace, self._due)

    def _find_wholes(self) -> None:
        wholes = {int(self._instruments[key]): key for key in range(self._keys) if self._sources[key] == CONSOLIDATED}
        self._whole[: self._keys] = [wholes[int(instrument)] for instrument in self._instruments[: self._keys]]


class _Reader:
    """Takes little-endian arrays off a snapshot, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _HEADER.size

    def take(self, dtype: type, count: int) -> Any:
        kind = _little(np.dtype(dtype))
        array = np.frombuffer(self._data, kind, count, self._at)
        self._at += array.nbytes
        return array.astype(dtype)


def _check(data: bytes, columns: int) -> tuple[int, int, int]:
    """Give (keys, partitions, open bars) of a snapshot; ValueError unless every byte is as it was written."""
    if len(data) < _HEADER.size + _CHECKSUM.size or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"not a snapshot of bars of this version, was {data[: len(_MAGIC)]!r}")
    _, keys, partitions, places = _HEADER.unpack_from(data)
    size = _HEADER.size + 24 * partitions + 32 * keys + (1 + columns) * 8 * places + keys * partitions + _CHECKSUM.size
    if len(data) != size:
        raise ValueError(f"a snapshot of {keys} keys has {size} bytes, was {len(data)}")
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        raise ValueError("the snapshot's checksum does not match")
    return keys, partitions, places


def _little(dtype: "np.dtype[Any]") -> "np.dtype[Any]":
    return dtype.newbyteorder("<")


def _order(bar: Bar) -> tuple[int, int, int, int, int]:
    return bar.end, TIMEFRAMES.index(bar.timeframe), bar.start, bar.instrument_id, bar.source_id


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 1).bit_length()
