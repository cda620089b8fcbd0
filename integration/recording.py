"""The input log and its replay: what decided each batch is written beside it, and the pipeline run again over it must give the same bytes.

One append-only file a partition, and one of each version of the reference data. A batch that was tried again has several entries:
the last one counts. The replay knows no database: only what it is compared with is read from there.
"""

import hashlib
import pickle
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from integration.market import errors
from integration.market.identity import Identities, KnownIdentities
from integration.market.reference import Reference
from integration.market.ticks import TRADE, UNREADABLE, Decoded, Message, Rejection, Ticks
from integration.pipeline import (
    CONTENT_COLUMNS,
    Outcome,
    PartitionState,
    Request,
    Slots,
    Stored,
    StoredBytes,
    StoredTick,
    adopt,
    process,
)
from integration.rows import PAYLOAD_COLUMNS, pack_payload
from integration.storage import pack_extras

_LENGTH: Final = struct.Struct("<I")
_FORCED: Final = (errors.POISON, errors.INTERNAL)


class Entry(msgspec.Struct, array_like=True):
    """What decided one batch. `forced` is (code, words) where every message was refused without being decoded."""

    number: int
    topic: str
    trust_time: bool
    is_release: bool
    waived: list[str]
    lanes: list[tuple[str, str]]
    reference_version: int
    forced: tuple[str, str] | None
    messages: list[tuple[bytes, int, int]]


class BatchBytes(msgspec.Struct):
    """What the pipeline gave for a batch: the payload and the extras of its row."""

    number: int
    payload: bytes
    extras: bytes


class Recorder:
    """Appends entries to a partition's log, flushed before the batch is committed; `folder` None records nothing."""

    def __init__(self, folder: Path | None, partition: str) -> None:
        self._folder, self._partition = folder, partition

    def write(self, number: int, request: Request, lanes: set[tuple[str, str]], outcome: Outcome) -> None:
        """Write what decided the batch `number`, with the reference data if its version is new."""
        if self._folder is None or not request.messages:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keep_reference(self._folder, request.reference)
        refused = [item.rejection for item in outcome.refused]
        is_forced = bool(refused) and not len(outcome.ticks) and all(item.code in _FORCED for item in refused)
        entry = Entry(
            number, request.topic, request.trust_time, request.is_release, sorted(request.waived), sorted(lanes),
            request.reference.version, (refused[0].code, refused[0].detail) if is_forced else None,
            [(bytes(message.data), message.ts_publish, message.ts_received) for message in request.messages],
        )  # fmt: skip
        packed = msgspec.msgpack.encode(entry)
        with log_path(self._folder, self._partition).open("ab") as file:
            file.write(_LENGTH.pack(len(packed)) + packed)

    def _keep_reference(self, folder: Path, reference: Reference) -> None:
        path = folder / f"reference-{reference.version}.pickle"
        if not path.exists():
            draft = path.with_suffix(f".{hashlib.sha256(self._partition.encode()).hexdigest()[:8]}")
            draft.write_bytes(pickle.dumps(reference))
            draft.replace(path)


def log_path(folder: Path, partition: str) -> Path:
    """Give the log of a partition."""
    return folder / f"{partition.removeprefix('persistent://').replace('/', '~')}.log"


def read_log(path: Path) -> list[Entry]:
    """Read a log, the last entry of each batch, in order; what a crash has cut off at its end was never committed."""
    data, at, found = path.read_bytes(), 0, {}
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        packed = data[at + _LENGTH.size : at + _LENGTH.size + size]
        at += _LENGTH.size + size
        if len(packed) == size:
            entry = msgspec.msgpack.decode(packed, type=Entry)
            found[entry.number] = entry
    return [found[number] for number in sorted(found)]


def run_again(folder: Path, path: Path, slots: Slots) -> Iterator[BatchBytes]:
    """Run the pipeline over a log from its beginning, which must be the partition's; the same log gives the same bytes."""
    state = PartitionState(KnownIdentities(), slots.new_screen_state())
    known: dict[tuple[int, int, int, int], Stored] = {}
    references: dict[int, Reference] = {}
    for entry in read_log(path):
        version = entry.reference_version
        if version not in references:
            kept = (folder / f"reference-{version}.pickle").read_bytes()
            references[version] = pickle.loads(kept)  # noqa: S301 - a file of ours, in a folder that only we may write
        state.lanes = set(entry.lanes)
        outcome = _decide(entry, references[version], state, slots, known)
        adopt(state, outcome)
        _remember(known, outcome)
        yield BatchBytes(entry.number, pack_payload(outcome.ticks), pack_extras(outcome))


def _decide(
    entry: Entry,
    reference: Reference,
    state: PartitionState,
    slots: Slots,
    known: dict[tuple[int, int, int, int], Stored],
) -> Outcome:
    messages = [Message(*parts) for parts in entry.messages]
    request = Request(
        entry.topic,
        messages,
        reference,
        trust_time=entry.trust_time,
        is_release=entry.is_release,
        waived=frozenset(entry.waived),
    )
    if entry.forced is not None:
        slots = replace(slots, decode=lambda given: _all_refused(given, slots, *entry.forced))  # type: ignore[misc]
    return process(request, state, slots, lambda wanted: [known.get(key) for key in _keys(wanted)])


def _all_refused(messages: Sequence[Message], slots: Slots, code: str, words: str) -> Decoded:
    none = np.zeros(0, np.int32)
    rejections = [
        Rejection(at, code, words, channel=UNREADABLE, session=UNREADABLE, sequence=slots.digest(message.data))
        for at, message in enumerate(messages)
    ]
    return Decoded(Ticks.zeros(0), none, none, none, [], [], [], rejections=rejections)


def _keys(events: Identities) -> list[tuple[int, int, int, int]]:
    columns = (events.source_id, events.channel, events.session, events.sequence)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _remember(known: dict[tuple[int, int, int, int], Stored], outcome: Outcome) -> None:
    """Keep what `storage.find_stored` would find: ticks by content, everything else by its bytes."""
    ticks = outcome.ticks
    names = _keys(Identities(ticks.source_id, ticks.channel, ticks.session, ticks.sequence, ticks.ts_event))
    for at, key in enumerate(names):
        content = tuple(int(getattr(ticks, name)[at]) for name in CONTENT_COLUMNS)
        known[key] = StoredTick(content if content[0] == TRADE else (*content[:-1], 0))
    others: list[tuple[Any, int, bytes]] = [(side.event, side.source_id, side.raw) for side in outcome.sides]
    others += [(item.rejection, item.source_id, item.raw) for item in outcome.refused + outcome.parked]
    for event, source_id, raw in others:
        known.setdefault((source_id, event.channel, event.session, event.sequence), StoredBytes(raw))


def first_difference(ours: BatchBytes, payload: bytes, extras: bytes) -> str:
    """Name the first field in which a batch differs from what is stored: row, column, both values; empty when none does."""
    from integration.rows import unpack_payload

    here, there = unpack_payload(ours.payload), unpack_payload(payload)
    for row in range(min(len(here), len(there))):
        for name in PAYLOAD_COLUMNS:
            again, stored = int(getattr(here, name)[row]), int(getattr(there, name)[row])
            if again != stored:
                return f"row {row}, column {name}: stored {stored}, again {again}"
    if len(here) != len(there):
        return f"stored {len(there)} ticks, again {len(here)}"
    if ours.payload != payload:
        return "the same ticks in other bytes"
    return "" if ours.extras == extras else f"beside the ticks: stored {extras[:200]!r}, again {ours.extras[:200]!r}"
