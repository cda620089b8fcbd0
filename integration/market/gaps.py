"""Which sequences of a channel never came, judged on the union of all partitions and below their common clock. Pure.

Memory is bounded by what is open: beside the newest `SESSIONS_KEPT` sessions of each channel only those with a hole are held.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

SETTLE_NS: Final = 2_000_000_000
# Of each (source, channel). More than one, since a session's last events may come after the next one's first.
SESSIONS_KEPT: Final = 8

Range = tuple[int, int]  # first and last, both included


@dataclass(slots=True)
class ChannelGaps:
    """One (source, channel, session): all up to `base` is settled, `pending` are sequences above it, `missing` are open gaps."""

    base: int
    pending: npt.NDArray[np.int64]
    hole_since: int = 0  # clock at which the hole after `base` was first noticed; 0: there is none
    missing: list[Range] = field(default_factory=list)
    partitions: set[int] = field(default_factory=set)


@dataclass(slots=True)
class GapChanges:
    """Gaps that opened and gaps that were (partly) filled: a partly filled one closes, and its rest opens."""

    opened: list[tuple[int, int, int, int, int]] = field(default_factory=list)  # source, channel, session, first, last
    closed: list[tuple[int, int, int, int, int]] = field(default_factory=list)


class GapTracker:
    """Follows every channel; the same batches in the same order give the same gaps.

    A session rises whenever its channel restarts (docs/events.md), so an old one is over. Of each channel the `SESSIONS_KEPT` sessions
    whose numbers rose last are kept whatever they hold; an older one is kept as long as a number of it is missing or pending,
    and forgotten when none is. What comes late for a forgotten session (an operator's release, say) is judged no more: it opens
    no gap, since nobody knows any more which numbers around it came. It is told by its session, which is below all those newest.
    """

    def __init__(self) -> None:
        self.channels: dict[tuple[int, int, int], ChannelGaps] = {}
        self.clocks: dict[int, int] = {}
        # (source, channel) -> its newest sessions, the one whose numbers rose last at the end
        self._recent: dict[tuple[int, int], list[int]] = {}
        self._pending: set[tuple[int, int, int]] = set()

    def fold(
        self, partition: int, clock: int, source_id: npt.NDArray[Any], channel: npt.NDArray[Any], session: npt.NDArray[Any],
        sequence: npt.NDArray[Any],
    ) -> GapChanges:  # fmt: skip
        """Take the identities of a batch (columns of equal length) and the clock after it; give what opened and closed."""
        self.clocks[partition] = max(clock, self.clocks.get(partition, 0))
        changes = GapChanges()
        for key, numbers in _by_channel(source_id, channel, session, sequence):
            if not self._is_forgotten(key):
                self._arrive(key, numbers, partition, changes)
        # Sorted, as a checkpoint writes them: the order of arrival is not kept over a restart.
        for key in sorted(self._pending):
            self._settle(key, self.channels[key], changes)
        return changes

    def dump(self) -> dict[str, Any]:
        """Give the state as plain values."""
        return {
            "clocks": self.clocks,
            "channels": [
                (*key, state.base, state.pending.tolist(), state.hole_since, state.missing, sorted(state.partitions))
                for key, state in sorted(self.channels.items())
            ],
            "recent": [(*key, sessions) for key, sessions in sorted(self._recent.items())],
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> "GapTracker":
        """Read what `dump` gave; a checkpoint from before sessions were forgotten lacks `recent`, and their numbers rise with time."""
        tracker = cls()
        tracker.clocks = {int(partition): int(clock) for partition, clock in data["clocks"].items()}
        for source_id, channel, session, base, pending, since, missing, partitions in data["channels"]:
            key = (source_id, channel, session)
            tracker.channels[key] = ChannelGaps(
                base, np.array(pending, np.int64), since, [(first, last) for first, last in missing], set(partitions)
            )
            if pending:
                tracker._pending.add(key)
        if "recent" in data:
            tracker._recent = {(source_id, channel): list(sessions) for source_id, channel, sessions in data["recent"]}
        else:
            for key in sorted(tracker.channels):
                tracker._rose(key)
        return tracker

    def _is_forgotten(self, key: tuple[int, int, int]) -> bool:
        return key not in self.channels and self._is_old(key)

    def _is_old(self, key: tuple[int, int, int]) -> bool:
        """Tell whether the session of `key` is below all of the newest ones; their lowest never falls."""
        recent = self._recent.get(key[:2], ())
        return len(recent) == SESSIONS_KEPT and key[2] < min(recent)

    def _arrive(
        self, key: tuple[int, int, int], numbers: npt.NDArray[np.int64], partition: int, changes: GapChanges
    ) -> None:
        state = self.channels.get(key)
        if state is None:
            state = self.channels[key] = ChannelGaps(int(numbers[0]) - 1, np.zeros(0, np.int64))
        state.partitions.add(partition)
        if state.missing:
            _fill(key, state, numbers[numbers <= state.base], changes)
        highest = int(state.pending[-1]) if len(state.pending) else state.base
        above = numbers[numbers > state.base]
        state.pending = np.union1d(state.pending, above) if len(state.pending) else above
        _advance(state)
        self._note_pending(key, state)
        if numbers[-1] > highest and not self._is_old(key):
            self._rose(key)
        self._forget_if_over(key)

    def _note_pending(self, key: tuple[int, int, int], state: ChannelGaps) -> None:
        if len(state.pending):
            self._pending.add(key)
        else:
            self._pending.discard(key)

    def _rose(self, key: tuple[int, int, int]) -> None:
        """Make the session of `key` the newest of its channel; the one that falls out is forgotten if nothing of it is open."""
        source_id, channel, session = key
        recent = self._recent.setdefault((source_id, channel), [])
        if recent and recent[-1] == session:
            return
        if session in recent:
            recent.remove(session)
        recent.append(session)
        if len(recent) > SESSIONS_KEPT:
            self._forget_if_over((source_id, channel, recent.pop(0)))

    def _forget_if_over(self, key: tuple[int, int, int]) -> None:
        state = self.channels[key]
        if not (state.missing or len(state.pending) or key[2] in self._recent[key[:2]]):
            del self.channels[key]

    def _settle(self, key: tuple[int, int, int], state: ChannelGaps, changes: GapChanges) -> None:
        """Declare the hole after `base` missing once every partition of the channel has moved past the time it was noticed."""
        common = min(self.clocks[partition] for partition in state.partitions)
        while len(state.pending):
            if state.hole_since == 0:
                state.hole_since = max(self.clocks[partition] for partition in state.partitions)
            if common < state.hole_since + SETTLE_NS:
                return
            hole = (state.base + 1, int(state.pending[0]) - 1)
            state.missing.append(hole)
            changes.opened.append((*key, *hole))
            state.base = hole[1]
            # The holes behind this one were there as long; they need not wait again.
            since = state.hole_since
            _advance(state)
            state.hole_since = since if len(state.pending) else 0
        self._pending.discard(key)


def _advance(state: ChannelGaps) -> None:
    """Move `base` over what has come without a hole."""
    before = state.base
    if len(state.pending):
        run = int(
            np.argmin(np.append(state.pending == np.arange(state.base + 1, state.base + 1 + len(state.pending)), False))
        )
        state.base += run
        state.pending = state.pending[run:]
    if state.base != before or not len(state.pending):
        state.hole_since = 0


def _fill(key: tuple[int, int, int], state: ChannelGaps, numbers: npt.NDArray[np.int64], changes: GapChanges) -> None:
    left: list[Range] = []
    for first, last in state.missing:
        came = numbers[(numbers >= first) & (numbers <= last)]
        if not len(came):
            left.append((first, last))
            continue
        changes.closed.append((*key, first, last))
        edges = np.r_[first - 1, came, last + 1]
        rest = [(int(a) + 1, int(b) - 1) for a, b in pairwise(edges.tolist()) if b - a > 1]
        changes.opened += [(*key, *hole) for hole in rest]
        left += rest
    state.missing = left


def _by_channel(
    source_id: npt.NDArray[Any], channel: npt.NDArray[Any], session: npt.NDArray[Any], sequence: npt.NDArray[Any]
) -> list[tuple[tuple[int, int, int], npt.NDArray[np.int64]]]:
    """Split numbered identities by channel, sorted and distinct."""
    found = []
    left = np.flatnonzero(channel >= 0)
    while len(left):
        head = left[0]
        same = (
            (source_id[left] == source_id[head]) & (channel[left] == channel[head]) & (session[left] == session[head])
        )
        key = (int(source_id[head]), int(channel[head]), int(session[head]))
        found.append((key, _ascending(sequence[left[same]])))
        left = left[~same]
    return found


def _ascending(sequence: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Give the sequences sorted and distinct; most batches are both already."""
    if bool((sequence[1:] > sequence[:-1]).all()):
        return sequence.astype(np.int64)
    return np.unique(sequence).astype(np.int64)
