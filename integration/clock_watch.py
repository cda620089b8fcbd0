"""Tells a clock that was set from a bad event: of a source, by many events from the future; our own, against the monotonic clock.

Holds no events. What follows is the consumer's: it pauses the topic of a source that steps, and closes no bar by a clock in doubt.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from django.core.cache import cache
from redis.exceptions import RedisError

MAX_SKEW_NS: Final = 5_000_000_000
WINDOW: Final = 64  # newest events of a source that are looked at
LEAST: Final = 32  # so many of them from the future are no single mistakes any more
_KEY: Final = "clock:skew"
_KEPT_S: Final = 30


@dataclass
class ClockWatch:
    """One partition's view of the clocks. `is_muted` after an operator's decision, until a source has a sound window again."""

    recent: dict[str, deque[bool]] = field(default_factory=dict)
    is_muted: bool = False
    in_doubt: bool = False
    _offset_ns: int | None = None

    def stepping(self, counts: Mapping[str, tuple[int, int]]) -> str:
        """Take (events, events from the future) by source code; name a source whose clock has been set, or nobody."""
        for source, (total, future) in counts.items():
            window = self.recent.setdefault(source, deque(maxlen=WINDOW))
            # Of a large batch its shares count: nothing is said of the order inside.
            shown = min(total, WINDOW)
            bad = round(shown * future / total) if total else 0
            window.extend([False] * (shown - bad) + [True] * bad)
        found = [
            source for source, window in self.recent.items() if 2 * sum(window) >= len(window) and sum(window) >= LEAST
        ]
        if not found:
            self.is_muted = False
        return "" if self.is_muted or not found else found[0]

    def resumed(self) -> None:
        """Note that an operator lets it flow: it is not stopped again for the same step."""
        self.is_muted = True

    def look(self, now_ns: int, monotonic_ns: int) -> bool:
        """Compare our clock with one that cannot be set; True when it was set by more than MAX_SKEW_NS since the last look."""
        offset, before = now_ns - monotonic_ns, self._offset_ns
        self._offset_ns = offset
        is_step = before is not None and abs(offset - before) > MAX_SKEW_NS
        self.in_doubt = self.in_doubt or is_step
        return is_step

    def agrees(self, ts_publish: int, now_ns: int) -> bool:
        """Tell whether our clock is not behind the broker's; a message just published takes the doubt away."""
        if abs(ts_publish - now_ns) <= MAX_SKEW_NS:
            self.in_doubt = False
        return ts_publish <= now_ns + MAX_SKEW_NS


def mark_skew(words: str) -> None:
    """Tell the alerts that clocks disagree; forgotten by itself. Without Valkey only the log tells."""
    try:
        cache.set(_KEY, words, _KEPT_S)
    except (RedisError, OSError):
        return


def skews() -> list[tuple[str, str]]:
    """Give (key, words) where our clock and the broker's were found to disagree in the last half minute."""
    try:
        words = cache.get(_KEY)
    except (RedisError, OSError):
        return []
    return [("our clock", words)] if words else []
