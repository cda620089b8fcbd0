"""Sends numbered messages to Apache Pulsar so that the broker drops every repeat: one producer name per topic and epoch,
the message number as sequence id, no batching (a batch is deduplicated as a whole or not at all).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from integration.market.errors import FatalError, RetriableError
from integration.sequencer import Outgoing

_CONTENT_TYPES: Final = {"ticks": "application/vnd.apache.arrow.stream"}
_SEND_TIMEOUT_S: Final = 30


class PulsarPublisher:
    """Publishes to one broker; `topics` maps the short name of a message's topic to the full one."""

    def __init__(self, connect: Callable[[], Any], topics: dict[str, str]) -> None:
        self._connect, self._topics = connect, topics
        self._client: Any = None
        self._producers: dict[tuple[str, int], tuple[Any, int]] = {}

    def publish(self, messages: Sequence[Outgoing], epoch: int) -> None:
        """Send in order and return when the broker has stored all.

        RetriableError when that is not certain: send the same messages again. FatalError when the broker has dropped a number
        that it cannot have seen before.
        """
        pending = _Pending(len(messages))
        for message in messages:
            producer, known = self._producer(message.topic, epoch)
            producer.send_async(
                message.payload,
                pending.callback(message, known),
                partition_key=message.key or None,
                sequence_id=message.number,
                properties={"content-type": _CONTENT_TYPES.get(message.topic, "application/json")},
            )
        try:
            pending.wait(_SEND_TIMEOUT_S)
        except RetriableError:
            self.close()
            raise
        for message in messages:
            producer, known = self._producers[message.topic, epoch]
            self._producers[message.topic, epoch] = (producer, max(known, message.number))

    def close(self) -> None:
        """Give up the producers and the connection."""
        client, self._client = self._client, None
        self._producers.clear()
        if client is not None:
            try:
                client.close()
            except Exception as problem:
                if not _is_pulsar(problem):
                    raise

    def _producer(self, topic: str, epoch: int) -> tuple[Any, int]:
        if (topic, epoch) not in self._producers:
            import pulsar

            try:
                self._client = self._client or self._connect()
                producer = self._client.create_producer(
                    self._topics[topic],
                    producer_name=f"mdi-{topic}-{epoch}",
                    batching_enabled=False,
                    block_if_queue_full=True,
                    send_timeout_millis=_SEND_TIMEOUT_S * 1000,
                    access_mode=pulsar.ProducerAccessMode.ExclusiveWithFencing,
                )
            except pulsar.PulsarException as problem:
                self.close()
                raise RetriableError(
                    f"cannot publish to {self._topics[topic]}: {problem}", code="broker_unavailable"
                ) from problem
            self._producers[topic, epoch] = (producer, producer.last_sequence_id())
        return self._producers[topic, epoch]


class _Pending:
    """Counts acknowledgements of a round of sends."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._retriable = ""
        self._fatal = ""

    def callback(self, message: Outgoing, known: int) -> Callable[[Any, Any], None]:
        def arrived(result: Any, message_id: Any) -> None:
            import pulsar

            with self._lock:
                if result != pulsar.Result.Ok:
                    self._retriable = f"{message.topic} #{message.number}: {result}"
                elif message_id.entry_id() < 0 and message.number > known:
                    self._fatal = f"the broker dropped {message.topic} #{message.number} though it knew only {known}"
                self._left -= 1
                if self._left == 0:
                    self._done.set()

        return arrived

    def wait(self, timeout_s: float) -> None:
        if not self._done.wait(timeout_s + 5):
            raise RetriableError("the broker has not acknowledged in time", code="broker_unavailable")
        if self._fatal:
            raise FatalError(self._fatal, code="deduplication")
        if self._retriable:
            raise RetriableError(f"not sent: {self._retriable}", code="broker_unavailable")


def _is_pulsar(problem: Exception) -> bool:
    import pulsar

    return isinstance(problem, pulsar.PulsarException)
