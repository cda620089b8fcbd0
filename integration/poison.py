"""Messages that end the process when they are decoded: counted across restarts, then found by bisection in child processes.

The count is a file per partition, written before decoding and removed after; it outlives the process, which is all that is needed.
"""

import hashlib
import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from integration.market.errors import RetriableError
from integration.market.ticks import Decoder, Message

MAX_ATTEMPTS: Final = 3
_CHILD_TIMEOUT_S: Final = 60


class InFlight:
    """Remembers, across a sudden death, which batch of a partition was being decoded and how often."""

    def __init__(self, folder: Path, partition: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / hashlib.blake2b(partition.encode(), digest_size=8).hexdigest()

    def begin(self, messages: Sequence[Message]) -> bool:
        """Note an attempt on these messages; true when earlier attempts on the same first message never ended."""
        name = hashlib.blake2b(messages[0].data, digest_size=16).hexdigest()
        attempts = 1
        if self._path.exists():
            before, _, count = self._path.read_text().partition(" ")
            attempts = int(count) + 1 if before == name else 1
        self._path.write_text(f"{name} {attempts}")
        return attempts >= MAX_ATTEMPTS

    def done(self) -> None:
        """Note that decoding came back, with whatever answer."""
        self._path.unlink(missing_ok=True)


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
