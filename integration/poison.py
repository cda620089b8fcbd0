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
_NOTE_BYTES: Final = 17  # a digest and a count


class InFlight:
    """Remembers, across a sudden death, which batch of a partition was being decoded and how often."""

    def __init__(self, folder: Path, partition: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Kept open: this is written before every batch. The page cache outlives the process, which is enough.
        self._file = os.open(folder / _digest(partition.encode()).hex(), os.O_RDWR | os.O_CREAT, 0o600)

    def begin(self, messages: Sequence[Message]) -> bool:
        """Note an attempt on these messages; true when earlier attempts on the same first message never ended."""
        name = _digest(messages[0].data)
        noted = os.pread(self._file, _NOTE_BYTES, 0)
        attempts = noted[-1] + 1 if noted[:-1] == name else 1
        os.pwrite(self._file, name + bytes([min(attempts, 255)]), 0)
        return attempts >= MAX_ATTEMPTS

    def done(self) -> None:
        """Note that decoding came back, with whatever answer."""
        os.pwrite(self._file, bytes(_NOTE_BYTES), 0)

    def close(self) -> None:
        """Let go of the file; again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


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
