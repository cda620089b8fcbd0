"""Messages that end the process when they are decoded: counted across restarts, then found by bisection in child processes.

The count is a file per partition, written before decoding and removed after; it outlives the process, which is all that is needed.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from integration.market.errors import RetriableError
from integration.market.ticks import Decoder, Message

MAX_ATTEMPTS: Final = 3
_CHILD_TIMEOUT_S: Final = 60
_DIGEST_BYTES: Final = 16
# A suspect that has not come again after so many messages never will.
_LOOK_FOR: Final = 100_000


class InFlight:
    """Remembers, across a sudden death, which messages of a partition were being decoded and how often that ended a process.

    The file holds the suspect and its count of deaths, then the first message of what is decoded now and whether that is under
    way. What comes again after a death may be cut in other places: a suspect is looked for among all messages, not only first.
    """

    def __init__(self, folder: Path, partition: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Kept open: this is written before every decoding. The page cache outlives the process, which is enough.
        self._file = os.open(folder / _digest(partition.encode()).hex(), os.O_RDWR | os.O_CREAT, 0o600)
        self._looked = 0

    def begin(self, messages: Sequence[Message]) -> bool:
        """Note an attempt on these messages; true when one of them was the first of what ended earlier processes."""
        suspect, deaths, current, is_open = self._read()
        if is_open:
            suspect, deaths = current, deaths + 1 if current == suspect else 1
        is_here = deaths > 0 and any(_digest(message.data) == suspect for message in messages)
        self._looked = 0 if is_here else self._looked + len(messages)
        if self._looked > _LOOK_FOR:
            suspect, deaths = bytes(_DIGEST_BYTES), 0
        self._write(suspect, deaths, suspect if is_here else _digest(messages[0].data), is_open=True)
        return is_here and deaths + 1 >= MAX_ATTEMPTS

    def done(self) -> None:
        """Note that decoding came back, with whatever answer."""
        suspect, deaths, current, _ = self._read()
        if current == suspect:
            suspect, deaths = bytes(_DIGEST_BYTES), 0
        self._write(suspect, deaths, bytes(_DIGEST_BYTES), is_open=False)

    def close(self) -> None:
        """Let go of the file; again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> tuple[bytes, int, bytes, bool]:
        noted = os.pread(self._file, 2 * (_DIGEST_BYTES + 1), 0).ljust(2 * (_DIGEST_BYTES + 1), b"\0")
        suspect, current = noted[: _DIGEST_BYTES + 1], noted[_DIGEST_BYTES + 1 :]
        return suspect[:-1], suspect[-1], current[:-1], bool(current[-1])

    def _write(self, suspect: bytes, deaths: int, current: bytes, *, is_open: bool) -> None:
        os.pwrite(self._file, suspect + bytes([min(deaths, 255)]) + current + bytes([is_open]), 0)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def find_poison(messages: Sequence[Message], decode: Decoder) -> list[int]:
    """Give the positions of messages whose decoding ends a child process or never ends; `decode` must be importable.

    Raises RetriableError when a child cannot even decode nothing.
    """
    if not _survives([], decode):
        # An import that fails, no memory: no message is to blame.
        raise RetriableError("a child process cannot decode anything", code="child_process")
    return _bisect(messages, decode)


def _bisect(messages: Sequence[Message], decode: Decoder) -> list[int]:
    if _survives(messages, decode):
        return []
    if len(messages) == 1:
        return [0]
    half = len(messages) // 2
    return _bisect(messages[:half], decode) + [half + at for at in _bisect(messages[half:], decode)]


def _survives(messages: Sequence[Message], decode: Decoder) -> bool:
    # Spawned, not forked: the broker's client has threads that a fork would not copy.
    child = multiprocessing.get_context("spawn").Process(target=_decode, args=(list(messages), decode), daemon=True)
    child.start()
    child.join(_CHILD_TIMEOUT_S)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def _decode(messages: list[Message], decode: Decoder) -> None:
    # An exception is an answer: the loop has its own rule for those.
    with suppress(Exception):
        decode(messages)
