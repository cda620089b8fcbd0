"""Where messages come from: the `TickSource` port, Apache Pulsar behind it, and the fake in memory that tests and replays use."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from integration.market.errors import RetriableError
from integration.market.ticks import Message

_OPERATION_TIMEOUT_S: Final = 5
_RECEIVER_QUEUE: Final = 1_000
# Memory of one batch stays bounded whatever the size of the messages.
BATCH_BYTES: Final = 16 * 1024 * 1024
_MILLISECOND_NS: Final = 1_000_000


class TickSource(Protocol):
    """One topic partition, read in order. Nothing is forgotten by the other side before it is acknowledged."""

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """Wait up to `wait_s` for a first message, then take what has arrived, at most `limit`."""
        ...

    def acknowledge(self, last: Message) -> None:
        """Acknowledge everything up to `last`, the last message of an answer of `receive`; nothing when it was given up since.

        May be lost, so identity must recognise what comes again.
        """
        ...

    def reopen(self) -> None:
        """Give up what was received and not acknowledged; it will be delivered again, here or to another process."""
        ...

    def rewind(self, published_ns: int) -> None:
        """Have everything delivered again that was published at or after a time and is still kept by the other side."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class PulsarLogger:
    """Receives the client library's log lines, which it would print to stdout otherwise."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def log(self, level: str, message: str) -> None:
        """Pass on warnings and errors."""
        self._say(f"{level} {message}")


def pulsar_client(url: str, token: str, *, ca_file: str = "", **options: Any) -> Any:
    """Connect to a broker with a token, and over TLS with the authority that signed its certificate (empty: the system's).

    Made after any fork, in a process of its own: the client is not fork-safe. Other options are those of `pulsar.Client`.
    """
    import pulsar

    defaults: dict[str, Any] = {
        "authentication": pulsar.AuthenticationToken(token) if token else None,
        "operation_timeout_seconds": _OPERATION_TIMEOUT_S,
        "tls_validate_hostname": True,
        "logger": pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
    }
    if ca_file:
        defaults["tls_trust_certs_file_path"] = ca_file
    return pulsar.Client(url, **(defaults | options))


class PulsarSource:
    """A Failover subscription on one topic partition."""

    def __init__(self, client: Any, topic: str, subscription: str, name: str) -> None:
        self._client, self._topic, self._subscription, self._name = client, topic, subscription, name
        self._consumer: Any = None
        # The last message of each answer: ours, and the client's.
        self._received: deque[tuple[Message, Any]] = deque()
        self._stopped: list[type[Exception]] = []

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        import pulsar

        consumer, size, wait_ms = self._open(), 0, int(wait_s * 1000)
        received: list[Message] = []
        last: Any = None
        while len(received) < limit and size < BATCH_BYTES:
            try:
                raw = consumer.receive(timeout_millis=wait_ms)
            except pulsar.Timeout:
                break
            except pulsar.PulsarException as problem:
                self.reopen()
                raise RetriableError(
                    f"cannot receive from {self._topic}: {problem}", code="broker_unavailable"
                ) from problem
            data = raw.data()
            received.append(Message(data, raw.publish_timestamp() * _MILLISECOND_NS, time.time_ns()))
            size += len(data)
            last, wait_ms = raw, 0
        if received:
            # Asking every message for its id costs a microsecond each.
            received[-1] = replace(received[-1], message_id=last.message_id().serialize())
            self._received.append((received[-1], last))
        return received

    def acknowledge(self, last: Message) -> None:
        for count, (ours, raw) in enumerate(self._received, start=1):
            if ours is last:
                self._open().acknowledge_cumulative(raw)
                for _ in range(count):
                    self._received.popleft()
                return

    def reopen(self) -> None:
        self.close()

    def rewind(self, published_ns: int) -> None:
        import pulsar

        try:
            # By time and not by message id: those begin again at 0 when a topic is made anew.
            self._open().seek(max(published_ns, 0) // _MILLISECOND_NS)
        except pulsar.PulsarException as problem:
            raise RetriableError(f"cannot rewind {self._topic}: {problem}", code="broker_unavailable") from problem
        finally:
            self.reopen()

    def close(self) -> None:
        import pulsar

        consumer, self._consumer = self._consumer, None
        self._received.clear()
        if consumer is not None:
            try:
                consumer.close()
            except pulsar.PulsarException:
                # The connection is gone, and the subscription with it.
                return

    def _open(self) -> Any:
        import pulsar

        if self._consumer is None:
            try:
                self._consumer = self._client.subscribe(
                    self._topic,
                    self._subscription,
                    consumer_type=pulsar.ConsumerType.Failover,
                    consumer_name=self._name,
                    initial_position=pulsar.InitialPosition.Earliest,
                    receiver_queue_size=_RECEIVER_QUEUE,
                )
            except pulsar.Timeout as problem:
                raise RetriableError(
                    f"cannot subscribe to {self._topic}: broker unreachable or token refused", code="broker_unavailable"
                ) from problem
            except pulsar.PulsarException as problem:
                raise RetriableError(
                    f"cannot subscribe to {self._topic}: {problem}", code="broker_unavailable"
                ) from problem
        return self._consumer


class MemorySource:
    """A partition in memory: delivers what was put in, delivers again what was not acknowledged before `reopen`."""

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.waiting = deque(messages)
        self.unacknowledged: list[Message] = []
        self.kept: list[Message] = []
        self.acknowledged = 0

    def put(self, *messages: Message) -> None:
        """Add messages at the end."""
        self.waiting.extend(messages)

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        taken = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.unacknowledged += taken
        return taken

    def acknowledge(self, last: Message) -> None:
        count = next((at for at, message in enumerate(self.unacknowledged, 1) if message is last), 0)
        self.acknowledged += count
        self.kept += self.unacknowledged[:count]
        del self.unacknowledged[:count]

    def reopen(self) -> None:
        self.waiting.extendleft(reversed(self.unacknowledged))
        self.unacknowledged.clear()

    def rewind(self, published_ns: int) -> None:
        self.reopen()
        again = [message for message in self.kept if message.ts_publish >= published_ns]
        self.waiting.extendleft(reversed(again))
        self.kept = [message for message in self.kept if message.ts_publish < published_ns]

    def close(self) -> None:
        self.reopen()
