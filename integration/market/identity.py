"""Which events a topic partition has seen: exact, bounded in memory, changed only by `adopt` after a commit.

A numbered event is (source, channel, session, sequence): sequences are bits in blocks, never a recent window. An event
without a number is a hash of its event_id. What has left memory is `UNSURE` and is looked up in the stored rows by the caller.
"""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from integration.market.ticks import UNNUMBERED, UNREADABLE, Column

NEW: Final = 0
KNOWN: Final = 1  # seen before, in this batch or an earlier one: compare the content
UNSURE: Final = 2  # older than what is kept: look in the stored rows
JUMP: Final = 3  # further ahead than the source's limit

Verdicts = npt.NDArray[np.uint8]

BLOCK_BITS: Final = 65_536
_BLOCK_BYTES: Final = BLOCK_BITS // 8
MAX_BLOCKS: Final = 128  # per channel and session: 8.4 million sequences in 1 MiB
MAX_PARTITION_BLOCKS: Final = 2_048  # per partition: 16 MiB, whatever the number of channels and sessions
MAX_HASHES: Final = 200_000  # per partition: about 20 MB, an hour at 50 unnumbered events a second
_HEADER: Final = struct.Struct("<4sII")
_CHANNEL: Final = struct.Struct("<iiqqqI")
_MAGIC: Final = b"ID01"


@dataclass(slots=True)
class SeenSequences:
    """The sequences of one (source, channel, session) that this partition has seen.

    Below `floor` blocks have been dropped: nothing there is certain any more.
    """

    high: int = 0
    floor: int = 0
    blocks: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def judge(self, sequences: Column, jump_limit: int) -> Verdicts:
        """Give NEW, KNOWN, UNSURE or JUMP for each of the int64 sequences, in order of arrival."""
        verdicts = np.zeros(len(sequences), np.uint8)
        verdicts[self._jumps(sequences, jump_limit)] = JUMP
        old = np.flatnonzero(sequences <= self.high)
        if len(old):
            verdicts[old] = np.where(sequences[old] < self.floor, UNSURE, self._bits(sequences[old]))
        return verdicts

    def _jumps(self, sequences: Column, limit: int) -> list[int]:
        """Give the positions of sequences too far ahead of all that came before them, here or earlier; a jump moves nothing."""
        if not len(sequences):
            return []
        highest = np.maximum.accumulate(np.r_[self.high, sequences[:-1]])
        if not ((highest > 0) & (sequences - limit > highest)).any():
            return []
        jumps, high = [], self.high
        for at, sequence in enumerate(sequences.tolist()):
            if high and sequence > high + limit:
                jumps.append(at)
            else:
                high = max(high, sequence)
        return jumps

    def add(self, sequences: Column) -> None:
        """Remember sequences; drop the oldest blocks beyond the memory limit."""
        if not len(sequences):
            return
        numbers, offsets = np.divmod(sequences, BLOCK_BITS)
        for number in np.unique(numbers).tolist():
            if number * BLOCK_BITS + BLOCK_BITS <= self.floor:
                continue
            inside = offsets[numbers == number]
            bits = np.unpackbits(self.blocks[number]) if number in self.blocks else np.zeros(BLOCK_BITS, np.uint8)
            bits[inside] = 1
            self.blocks[number] = np.packbits(bits)
        self.high = max(self.high, int(sequences.max()))
        for number in sorted(self.blocks)[: max(0, len(self.blocks) - MAX_BLOCKS)]:
            del self.blocks[number]
            self.floor = max(self.floor, (number + 1) * BLOCK_BITS)

    def forget(self) -> None:
        """Keep how far it went and nothing else: all of it is to be looked up from now on."""
        self.blocks.clear()
        self.floor = self.high + 1

    def _bits(self, sequences: Column) -> Verdicts:
        numbers, offsets = np.divmod(sequences, BLOCK_BITS)
        found = np.zeros(len(sequences), np.uint8)
        for number in np.unique(numbers).tolist():
            block = self.blocks.get(number)
            if block is not None:
                here = np.flatnonzero(numbers == number)
                inside = offsets[here]
                found[here] = (block[inside >> 3] >> (7 - (inside & 7)).astype(np.uint8)) & 1
        return found


_UNSEEN: Final = SeenSequences()  # never added to


@dataclass(slots=True)
class Identities:
    """Columns of equal length: what names each event of a batch, in order of arrival."""

    source_id: Column
    channel: Column
    session: Column
    sequence: Column
    ts_event: Column

    def __len__(self) -> int:
        return len(self.source_id)

    def take(self, selection: Column) -> "Identities":
        """Give the selected events."""
        return Identities(
            self.source_id[selection],
            self.channel[selection],
            self.session[selection],
            self.sequence[selection],
            self.ts_event[selection],
        )


@dataclass(slots=True)
class KnownIdentities:
    """All identities that one topic partition has seen."""

    channels: dict[tuple[int, int, int], SeenSequences] = field(default_factory=dict)
    hashes: dict[tuple[int, int], int] = field(default_factory=dict)  # (source, hash) -> ts_event, oldest first
    hash_floor: int = -1  # the newest ts_event among hashes that were dropped

    def judge(self, events: Identities, jump_limits: dict[int, int]) -> tuple[Verdicts, npt.NDArray[np.intp]]:
        """Give each event's verdict, and the position of its first occurrence in this batch.

        `jump_limits` maps a source id to how far ahead a sequence may be. Changes nothing.
        """
        verdicts = np.zeros(len(events), np.uint8)
        first = np.arange(len(events))
        for group in _groups(events):
            members = group.members
            first[members] = members[_first_occurrence(events.sequence[members])]
            if group.channel <= UNNUMBERED:
                verdicts[members] = self._judge_hashes(group, events)
                continue
            seen = self.channels.get((group.source_id, group.channel, group.session), _UNSEEN)
            verdicts[members] = seen.judge(events.sequence[members], jump_limits.get(group.source_id, 2**62))
        verdicts[first != np.arange(len(events))] = KNOWN
        return verdicts, first

    def adopt(self, events: Identities) -> None:
        """Remember events that a committed transaction has stored, rejected or parked."""
        for group in _groups(events):
            sequences = events.sequence[group.members]
            if group.channel <= UNNUMBERED:
                times = events.ts_event[group.members].tolist()
                self.hashes.update(zip(((group.source_id, h) for h in sequences.tolist()), times, strict=True))
                self._drop_oldest_hashes()
            else:
                key = (group.source_id, group.channel, group.session)
                seen = self.channels.pop(key, None) or SeenSequences()
                seen.add(sequences)
                self.channels[key] = seen  # at the end: the one used longest ago is first
        self._drop_oldest_blocks()

    def dump(self) -> bytes:
        """Write everything to bytes that `load` reads back; equal states give equal bytes."""
        parts = [_HEADER.pack(_MAGIC, len(self.channels), len(self.hashes)), struct.pack("<q", self.hash_floor)]
        for (source_id, channel, session), seen in sorted(self.channels.items()):
            parts.append(_CHANNEL.pack(source_id, channel, session, seen.high, seen.floor, len(seen.blocks)))
            parts.extend(struct.pack("<q", number) + block.tobytes() for number, block in sorted(seen.blocks.items()))
        parts.extend(struct.pack("<iqq", source_id, digest, ts) for (source_id, digest), ts in self.hashes.items())
        return zlib.compress(b"".join(parts), 1)

    @classmethod
    def load(cls, data: bytes) -> "KnownIdentities":
        """Read what `dump` wrote; empty bytes are an empty state. ValueError on anything else."""
        known = cls()
        if not data:
            return known
        view = zlib.decompress(data)
        magic, channel_count, hash_count = _HEADER.unpack_from(view)
        if magic != _MAGIC:
            raise ValueError(f"not a snapshot of identities, was {magic!r}")
        (known.hash_floor,) = struct.unpack_from("<q", view, _HEADER.size)
        at = _HEADER.size + 8
        for _ in range(channel_count):
            source_id, channel, session, high, floor, block_count = _CHANNEL.unpack_from(view, at)
            at += _CHANNEL.size
            seen = known.channels[source_id, channel, session] = SeenSequences(high, floor)
            for _ in range(block_count):
                (number,) = struct.unpack_from("<q", view, at)
                seen.blocks[number] = np.frombuffer(view, np.uint8, _BLOCK_BYTES, at + 8).copy()
                at += 8 + _BLOCK_BYTES
        for source_id, digest, ts in struct.iter_unpack("<iqq", view[at : at + 20 * hash_count]):
            known.hashes[source_id, digest] = ts
        return known

    def _judge_hashes(self, group: "_Group", events: Identities) -> Verdicts:
        digests = events.sequence[group.members].tolist()
        known = np.fromiter(((group.source_id, digest) in self.hashes for digest in digests), np.bool_, len(digests))
        # Bytes that cannot be read carry no time: only the quarantine can tell whether they came before.
        unsure = events.ts_event[group.members] <= self.hash_floor if group.channel != UNREADABLE else np.bool_(True)
        return np.where(known, KNOWN, np.where(unsure, UNSURE, NEW)).astype(np.uint8)

    def _drop_oldest_blocks(self) -> None:
        excess = sum(len(seen.blocks) for seen in self.channels.values()) - MAX_PARTITION_BLOCKS
        for seen in self.channels.values():
            if excess <= 0:
                return
            excess -= len(seen.blocks)
            seen.forget()

    def _drop_oldest_hashes(self) -> None:
        for key in list(self.hashes)[: max(0, len(self.hashes) - MAX_HASHES)]:
            self.hash_floor = max(self.hash_floor, self.hashes.pop(key))


@dataclass(slots=True, frozen=True)
class _Group:
    source_id: int
    channel: int
    session: int
    members: npt.NDArray[np.intp]


def _groups(events: Identities) -> list[_Group]:
    """Split a batch by (source, channel, session); most batches are one group."""
    groups: list[_Group] = []
    left = np.arange(len(events))
    while len(left):
        head = left[0]
        source_id, channel, session = int(events.source_id[head]), int(events.channel[head]), int(events.session[head])
        same = (
            (events.source_id[left] == source_id)
            & (events.channel[left] == channel)
            & (events.session[left] == session)
        )
        groups.append(_Group(source_id, channel, session, left[same]))
        left = left[~same]
    return groups


def _first_occurrence(sequences: Column) -> npt.NDArray[np.intp]:
    """Give, for each position, the position at which its value occurs first."""
    if len(sequences) < 2 or bool((sequences[1:] > sequences[:-1]).all()):
        return np.arange(len(sequences))
    _, index, inverse = np.unique(sequences, return_index=True, return_inverse=True)
    return index[inverse]
