"""How the admin writes ages, moments, rates and counts: one form for each, never a bare float, never “None”. Pure."""

from datetime import UTC, datetime
from typing import Final

NOTHING: Final = "–"
_STEPS: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))


def age_text(seconds: float | None) -> str:
    """Write an age with its one or two leading units: `4 s`, `12 min`, `3 h 10 min`, `9 d`."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3_600:
        return f"{whole // 60} min"
    if whole < 86_400:
        hours, rest = divmod(whole, 3_600)
        return f"{hours} h {rest // 60} min" if rest >= 60 else f"{hours} h"
    return f"{whole // 86_400} d"


def since_text(moment: datetime | None, now: datetime) -> str:
    """Write how long ago a moment was."""
    return NOTHING if moment is None else age_text((now - moment).total_seconds())


def moment_text(ns: int | None) -> str:
    """Write ns UTC in full: `2026-01-05 14:30:00.000000001 UTC`; years outside 1970 to 2262 stay numbers."""
    if not ns:
        return NOTHING
    seconds, fraction = divmod(ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{fraction:09d} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"


def rate_text(per_second: float) -> str:
    """Write a rate without its unit, three figures at most: `0`, `0.4`, `12`, `12,300`."""
    if per_second == 0:
        return "0"
    if per_second < 10:
        return f"{per_second:.1f}"
    return f"{per_second:,.0f}"


def counted(count: int, one: str, many: str) -> str:
    """Write how many of what: `1 gap`, `2,000 gaps`."""
    return f"{count:,} {one if count == 1 else many}"


def topic_text(topic: str) -> str:
    """Shorten `persistent://tenant/namespace/name-partition-1` to `namespace/name #1`; titles carry the full text."""
    if not topic.startswith("persistent://"):
        return topic
    return "/".join(topic.split("/")[-2:]).replace("-partition-", " #")
