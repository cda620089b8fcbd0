"""What a consumer reads from its partition: messages in order, decoded while PostgreSQL still works on the batch before them.

Knows the source and the decoder, and notes what is being decoded (`poison`). Stores nothing and judges nothing.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from integration.market.errors import RetriableError
from integration.market.ticks import Decoded, Decoder, Message
from integration.poison import InFlight
from integration.sources import BATCH_BYTES, TickSource

log = structlog.get_logger(__name__)

# So many are read in one go beside a working PostgreSQL: about the time that it takes to store a piece of a batch.
_AHEAD_MESSAGES: Final = 2_048
_FEW: Final = 32
_LINGER_S: Final = 0.02


@dataclass(slots=True)
class Chunk:
    """Messages that were read together. `decoded` is None when decoding them raised, or must be done anew."""

    messages: list[Message]
    decoded: Decoded | None = None
    is_suspect: bool = False  # decoding these ended earlier processes; it has not been tried again

    @property
    def events(self) -> int:
        """How many events these are; an Arrow message holds many."""
        return max(len(self.messages), len(self.decoded.ticks) if self.decoded else 0)

    def forget(self) -> None:
        """Have it decoded anew: what has been through the flow carries marks of it."""
        self.decoded = None


@dataclass(slots=True)
class ReadAhead:
    """Reads one partition. Nothing that it has handed out is acknowledged before `acknowledge`."""

    source: TickSource
    decode: Decoder
    in_flight: InFlight
    limit: int
    waiting: list[Chunk] = field(default_factory=list)
    _messages: int = 0  # of what is waiting, and its bytes
    _bytes: int = 0

    def read(self, wait_s: float) -> None:
        """Wait up to `wait_s` for a first message and read what has arrived. Raises RetriableError when the broker is away."""
        self._read(self.limit, 0 if self.waiting else wait_s)
        if 0 < sum(chunk.events for chunk in self.waiting) < _FEW:
            # A transaction costs more than this wait for the companions of a lone event; a busy partition never waits.
            time.sleep(_LINGER_S)
            self._read(self.limit, 0)

    def read_more(self) -> None:
        """Read what has arrived, not waiting, while something else is under way that must not fail for it."""
        try:
            self._read(_AHEAD_MESSAGES, 0)
        except RetriableError as problem:
            log.warning("reading ahead failed", error=str(problem))  # the next `read` meets it again, and says so

    def take(self) -> list[Chunk]:
        """Hand out all that was read."""
        taken = self.waiting
        self._clear()
        return taken

    def acknowledge(self, chunks: Sequence[Chunk]) -> None:
        """Acknowledge chunks that were handed out, in the order in which they were."""
        self.source.acknowledge(chunks[-1].messages[-1])

    def reopen(self) -> None:
        """Give back everything that is not acknowledged."""
        self._clear()
        self.source.reopen()

    def rewind(self, published_ns: int) -> None:
        """Read everything again that was published since a time; acknowledged or not."""
        self._clear()
        self.source.rewind(published_ns)

    def close(self) -> None:
        """Stop reading."""
        self._clear()
        self.source.close()
        self.in_flight.close()

    def _clear(self) -> None:
        self.waiting, self._messages, self._bytes = [], 0, 0

    def _read(self, limit: int, wait_s: float) -> None:
        room = self.limit - self._messages
        # Nothing is read past a suspect, so that its note stands until it has been taken apart.
        if room <= 0 or self._bytes >= BATCH_BYTES or (self.waiting and self.waiting[-1].is_suspect):
            return
        messages = self.source.receive(min(limit, room), wait_s)
        if messages:
            self.waiting.append(self._decoded(messages))
            self._messages += len(messages)
            self._bytes += sum([len(message.data) for message in messages])

    def _decoded(self, messages: list[Message]) -> Chunk:
        if self.in_flight.begin(messages):
            return Chunk(messages, is_suspect=True)
        try:
            return Chunk(messages, self.decode(messages))
        except Exception:  # noqa: BLE001 - whoever takes the chunk decodes it again, and finds the message to blame
            return Chunk(messages)
        finally:
            # An exception is an answer too; only a sudden death leaves the note behind.
            self.in_flight.done()


def count_messages(chunks: Iterable[Chunk]) -> int:
    """Count the messages of chunks."""
    return sum(len(chunk.messages) for chunk in chunks)
