"""Trading sessions of a venue as arrays: which session a time belongs to, whether it is open, where bars start and end.

A session *owns* a span of time: every instant belongs to exactly one session, so that no trade is without a trading day. Pure: no clock;
the calendar library is imported when a table is built, and nowhere else. Lunch breaks are not modelled.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
State = Literal["open", "closed", "unknown"]

SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

TIMEFRAMES: Final = ("1m", "5m", "15m", "1h", "4h", "1d")
# The day has no fixed length: it is the session's.
TIMEFRAME_NS: Final = {"1m": MINUTE, "5m": 5 * MINUTE, "15m": 15 * MINUTE, "1h": HOUR, "4h": 4 * HOUR}

ALWAYS_OPEN_CALENDARS: Final = frozenset({"24/7", "always_open"})


@dataclass(slots=True, frozen=True, eq=False)
class SessionTable:
    """Sessions in order; all times ns UTC on whole minutes, `session_date` days since 1970-01-01.

    `owned_until_ns[i]` ends the span of session i and begins that of i+1. On a day calendar (XNYS) a session owns its local date, pre-market
    and after-hours included, and the closed days before it. On an overnight calendar (CMES) it owns all from the close before it to its
    own close. `day_start_ns` is the first instant at which its trading day can see a trade: local midnight, or the open when overnight.
    Outside the table, and where it is empty, days are UTC dates, open from midnight to midnight; the state is then `unknown`,
    unless the venue is always open.
    """

    name: str
    known: bool
    always_open: bool
    owned_from_ns: int
    session_date: npt.NDArray[np.int32]
    day_start_ns: Times
    open_ns: Times
    close_ns: Times
    owned_until_ns: Times

    def __post_init__(self) -> None:
        bounds = np.stack((self.day_start_ns, self.open_ns, self.close_ns, self.owned_until_ns))
        if np.any(bounds % MINUTE) or self.owned_from_ns % MINUTE:
            raise ValueError(f"sessions must begin and end on whole minutes, was calendar {self.name!r}")
        spans = np.diff(np.append(self.owned_from_ns, self.owned_until_ns))
        if np.any(np.diff(bounds[1:], axis=0) < 0) or np.any(spans <= 0) or np.any(self._starts() > self.open_ns):
            raise ValueError(f"sessions must be in order and must not overlap, was calendar {self.name!r}")

    @classmethod
    def of_always_open(cls) -> Self:
        """Make the table of a venue that never closes: sessions are UTC dates, bars are UTC multiples."""
        return cls._empty("24/7", known=True)

    @classmethod
    def of_unknown(cls, name: str) -> Self:
        """Make the table of a venue whose calendar nobody knows: UTC dates, and every state is `unknown`."""
        return cls._empty(name, known=False)

    @classmethod
    def _empty(cls, name: str, *, known: bool) -> Self:
        none = np.zeros(0, np.int64)
        return cls(name, known, known, 0, np.zeros(0, np.int32), none, none, none, none)

    def __len__(self) -> int:
        return len(self.session_date)

    def _starts(self) -> Times:
        return np.append(self.owned_from_ns, self.owned_until_ns[:-1])[: len(self)]

    def _locate(self, ts: Times) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Give the index of the owning session, and whether there is one; the index is 0 where there is none."""
        index = np.searchsorted(self.owned_until_ns, ts, side="right")
        inside = (index < len(self)) & (ts >= self.owned_from_ns)
        return np.where(inside, index, 0), inside

    def _bounds(self, ts: Times) -> tuple[Times, Times, Times, Times]:
        """Give (owned from, open, close, owned until) of the session that owns each time."""
        midnight = ts - ts % DAY
        if not len(self):
            return midnight, midnight, midnight + DAY, midnight + DAY
        index, inside = self._locate(ts)
        return (
            np.where(inside, self._starts()[index], midnight),
            np.where(inside, self.open_ns[index], midnight),
            np.where(inside, self.close_ns[index], midnight + DAY),
            np.where(inside, self.owned_until_ns[index], midnight + DAY),
        )

    def session_dates(self, ts_event: Times) -> npt.NDArray[np.int32]:
        """Give the trading day (days since 1970-01-01) that owns each time."""
        dates = (ts_event // DAY).astype(np.int32)
        if not len(self):
            return dates
        index, inside = self._locate(ts_event)
        return np.where(inside, self.session_date[index], dates).astype(np.int32)

    def is_open(self, ts: Times) -> npt.NDArray[np.bool_]:
        """Tell for each time whether a session is known to be open; the close itself is closed."""
        if not len(self):
            return np.full(ts.shape, self.always_open)
        index, inside = self._locate(ts)
        return inside & (ts >= self.open_ns[index]) & (ts < self.close_ns[index])

    def state(self, ts: int) -> State:
        """Give `open`, `closed`, or `unknown` for an unknown calendar and for times outside the table."""
        at = np.array([ts], np.int64)
        if self.is_open(at)[0]:
            return "open"
        return "closed" if len(self) and self._locate(at)[1][0] else "unknown"

    def next_change(self, ts: int) -> int | None:
        """Give the first time after `ts` at which the venue opens or closes; None when it never does or that is not known.

        A close that is the next session's open (an overnight calendar in mid-week) is no change.
        """
        seam = self.close_ns[:-1] == self.open_ns[1:]
        opens = self.open_ns[np.append(True, ~seam)[: len(self)]]
        closes = self.close_ns[np.append(~seam, True)[: len(self)]]
        changes = np.sort(np.concatenate((opens, closes)))
        if not len(changes) or self.state(ts) == "unknown":
            return None
        at = int(np.searchsorted(changes, ts, side="right"))
        return int(changes[at]) if at < len(changes) else None

    def bar_starts(self, ts: Times, timeframe: str) -> tuple[Times, Times]:
        """Give (start, end) in ns of the bar each time belongs to; `timeframe` is one of `TIMEFRAMES`, else KeyError.

        1m, 5m and 15m are UTC multiples. 1h and 4h count from the session's open, before it backwards, and are cut at open, close and at the end
        of the session's span, so that a bar never mixes the session with what lies outside it. 1d runs from open to close; trades of the
        same trading day outside these hours belong to it too.
        """
        if timeframe in ("1m", "5m", "15m"):
            start = ts - ts % TIMEFRAME_NS[timeframe]
            return start, start + TIMEFRAME_NS[timeframe]
        owned_from, opens, closes, owned_until = self._bounds(ts)
        if timeframe == "1d":
            return opens, closes
        length = TIMEFRAME_NS[timeframe]
        start = opens + (ts - opens) // length * length
        before, after = ts < opens, ts >= closes
        floor = np.where(before, owned_from, np.where(after, closes, opens))
        ceiling = np.where(before, opens, np.where(after, owned_until, closes))
        return np.maximum(start, floor), np.minimum(start + length, ceiling)


@cache
def session_table(calendar: str, *, first_year: int = 2000, last_year: int) -> SessionTable:
    """Build the table of a calendar by its `exchange_calendars` name, 1 January of `first_year` to 31 December of `last_year`.

    `24/7` needs no library. An unknown name, or any failure of the library, fails closed: a table whose state is `unknown`.
    """
    if calendar in ALWAYS_OPEN_CALENDARS:
        return SessionTable.of_always_open()
    try:
        return _from_library(calendar, first_year, last_year)
    except Exception:  # noqa: BLE001 - whatever a third-party calendar raises must not read as "open" or "fresh"
        return SessionTable.of_unknown(calendar)


def _from_library(name: str, first_year: int, last_year: int) -> SessionTable:
    import exchange_calendars
    import pandas as pd

    # The library says how far a calendar reaches only through an instance; its own default span is not used.
    kind: Any = type(exchange_calendars.get_calendar(name))
    first = max(filter(None, (pd.Timestamp(first_year, 1, 1), kind.bound_min())))
    last = min(filter(None, (pd.Timestamp(last_year, 12, 31), kind.bound_max())))
    calendar = kind(start=first, end=last)
    dates = calendar.schedule.index
    opens = _nanoseconds(pd.DatetimeIndex(calendar.schedule["open"]).tz_convert(None))
    closes = _nanoseconds(pd.DatetimeIndex(calendar.schedule["close"]).tz_convert(None))
    midnight = _local_midnights(dates, calendar.tz)
    overnight = bool(np.any(opens < midnight))
    ends = closes if overnight else np.maximum(_local_midnights(dates + pd.Timedelta(days=1), calendar.tz), closes)
    starts = opens if overnight else midnight
    days = _nanoseconds(dates) // DAY
    return SessionTable(name, True, False, int(starts[0]), days.astype(np.int32), starts, opens, closes, ends)


def _nanoseconds(times: Any) -> Times:
    return np.asarray(times, dtype="datetime64[ns]").astype(np.int64)


def _local_midnights(dates: Any, zone: Any) -> Times:
    # Where a clock change skips midnight (Beirut, São Paulo once) the day begins when the clock has moved.
    midnights = dates.tz_localize(None).tz_localize(
        zone, nonexistent="shift_forward", ambiguous=np.ones(len(dates), bool)
    )
    return _nanoseconds(midnights.tz_convert(None))
