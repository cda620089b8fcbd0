"""Counts the events of a batch by channel, before anything is decided about them and as they leave, so that the sums can be compared.

Pure. A key is (source, channel, session); what is known by its bytes alone is `BYTES`, whoever sent it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from integration.market.identity import Identities
from integration.market.ticks import UNREADABLE

Key = tuple[int, int, int]
BYTES: Final[Key] = (0, UNREADABLE, UNREADABLE)
# [source, channel, session, received, repeats, claims refused]
TallyRow = tuple[int, int, int, int, int, int]


@dataclass(slots=True)
class Tally:
    """What came (`received`), what was known before (`repeats`), and what claimed an identity that it may not use (`refused_claims`).

    A refused claim goes on under `BYTES`. So, for each key: received = ticks + side events + quarantined + parked + repeats + refused
    claims; and for `BYTES` all refused claims stand on the left as well.
    """

    received: Counter[Key] = field(default_factory=Counter)
    repeats: Counter[Key] = field(default_factory=Counter)
    refused_claims: Counter[Key] = field(default_factory=Counter)

    def receive(self, events: Identities) -> None:
        """Count events as they were decoded."""
        self.received.update(count_by_key(events))

    def leave(self, events: Identities, repeats: Sequence[int], claims: Sequence[int], repeated_claims: int) -> None:
        """Count events (by position) that were repeats or refused claims; `repeated_claims` of the latter were repeats by their bytes."""
        self.repeats.update(count_by_key(events.take(np.array(repeats, np.intp))))
        self.refused_claims.update(count_by_key(events.take(np.array(claims, np.intp))))
        if repeated_claims:
            self.repeats[BYTES] += repeated_claims

    def rows(self) -> list[TallyRow]:
        """Give the counts as plain rows, in order of their keys."""
        keys = sorted({*self.received, *self.repeats, *self.refused_claims})
        return [(*key, self.received[key], self.repeats[key], self.refused_claims[key]) for key in keys]


def count_by_key(events: Identities) -> dict[Key, int]:
    """Count events by key; most batches are one."""
    if not len(events):
        return {}
    columns = (events.source_id, events.channel, events.session)
    if all(bool((column == column[0]).all()) for column in columns):
        return {_key(int(events.source_id[0]), int(events.channel[0]), int(events.session[0])): len(events)}
    keys, counts = np.unique(_stacked(columns), axis=0, return_counts=True)
    found: Counter[Key] = Counter()
    for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
        found[_key(*key)] += count
    return dict(found)


def _stacked(columns: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def _key(source_id: int, channel: int, session: int) -> Key:
    return BYTES if channel == UNREADABLE else (source_id, channel, session)
