"""Times: ISO 8601 text with a zone to and from integer nanoseconds since 1970-01-01 UTC. No clock, no calendars of venues."""

import re
from datetime import date, timedelta
from typing import Final

NS_PER_SECOND: Final = 1_000_000_000
MAX_NS: Final = 2**63 - 1  # 2262-04-11T23:47:16.854775807Z
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_MAX_OFFSET_MINUTES: Final = 14 * 60
_TEXT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):([0-5]\d))", re.ASCII
)


def ns_from_text(text: str) -> int:
    """Convert ISO 8601 text to nanoseconds UTC exactly.

    The zone is required (`Z` or an offset of at most 14 hours); a leap second, `24:00:00`, a date that no calendar has, or a
    time outside 1970 to 2262 raises ValueError.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"not ISO 8601 with a zone, was {text[:64]!r}")
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    minutes = days * 1440 + int(hour) * 60 + int(minute)
    if sign is not None:
        offset = int(offset_hour) * 60 + int(offset_minute)
        if offset > _MAX_OFFSET_MINUTES:
            raise ValueError(f"offset beyond 14 hours, was {text!r}")
        minutes -= -offset if sign == "-" else offset
    nanoseconds = int(fraction.ljust(9, "0")) if fraction else 0
    return checked_ns((minutes * 60 + int(second)) * NS_PER_SECOND + nanoseconds)


def checked_ns(ns: int) -> int:
    """Give `ns` back; ValueError when it lies outside 1970 to 2262."""
    if not 0 <= ns <= MAX_NS:
        raise ValueError(f"outside 1970 to 2262, was {str(ns)[:32]} ns")
    return ns


def text_from_ns(ns: int) -> str:
    """Write nanoseconds UTC as ISO 8601 with nine decimals and `Z`; ValueError outside 1970 to 2262."""
    seconds, nanoseconds = divmod(checked_ns(ns), NS_PER_SECOND)
    days, seconds = divmod(seconds, 86_400)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{date.fromordinal(_EPOCH_DAY + days)}T{hour:02d}:{minute:02d}:{second:02d}.{nanoseconds:09d}Z"


def days_from_date(day: date) -> int:
    """Count the days from 1970-01-01 to `day`, the form of `session_date` in columns."""
    return day.toordinal() - _EPOCH_DAY


def date_from_days(days: int) -> date:
    """Give the date that lies `days` after 1970-01-01."""
    return date(1970, 1, 1) + timedelta(days=days)
