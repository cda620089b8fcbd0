"""Where messages come from: the `TickSource` port, Apache Pulsar behind it, and the fake in memory that tests and replays use."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from integration.market.errors import RetriableError
from integration.market.ticks import Message

_OPERATION_TIMEOUT_S: Final = 5
_RECEIVER_QUEUE: Final = 5_000
# Memory of one batch stays bounded whatever the size of the messages.
_BATCH_BYTES: Final = 16 * 1024 * 1024
_MILLISECOND_NS: Final = 1_000_000
_FEW: Final = 32
_LINGER_S: Final = 0.02


class TickSource(Protocol):
    """One topic partition, read in order. Nothing is forgotten by the other side before it is acknowledged."""

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        """Wait up to `wait_s` for a first message, then take what has arrived, at most `limit`."""
        ...

    def acknowledge(self) -> None:
        """Acknowledge every message received so far; may be lost, so identity must recognise what comes again."""
        ...

    def reopen(self) -> None:
        """Give up what was received and not acknowledged; it will be delivered again, here or to another process."""
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


def pulsar_client(url: str, token: str, **options: Any) -> Any:
    """Connect to a broker with a token. Made after any fork, in a process of its own: the client is not fork-safe."""
    import pulsar

    authentication = pulsar.AuthenticationToken(token) if token else None
    return pulsar.Client(
        url,
        authentication=authentication,
        operation_timeout_seconds=_OPERATION_TIMEOUT_S,
        tls_validate_hostname=True,
        logger=options.pop("logger", None) or pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
        **options,
    )


class PulsarSource:
    """A Failover subscription on one topic partition."""

    def __init__(self, client: Any, topic: str, subscription: str, name: str) -> None:
        self._client, self._topic, self._subscription, self._name = client, topic, subscription, name
        self._consumer: Any = None
        self._last: Any = None
        self._stopped: list[type[Exception]] = []

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        received: list[Message] = []
        self._drain(received, limit, int(wait_s * 1000))
        if 0 < len(received) < _FEW:
            # A transaction costs more than this wait for the companions of a lone message; a busy partition never waits.
            time.sleep(_LINGER_S)
            self._drain(received, limit, 0)
        return _with_message_ids(received, self._last)

    def _drain(self, into: list[Message], limit: int, wait_ms: int) -> None:
        """Wait for a first message, then take what is there; appends to `into`."""
        import pulsar

        consumer, size = self._open(), 0
        while len(into) < limit and size < _BATCH_BYTES:
            try:
                raw = consumer.receive(timeout_millis=wait_ms)
            except pulsar.Timeout:
                return
            except pulsar.PulsarException as problem:
                self.reopen()
                raise RetriableError(
                    f"cannot receive from {self._topic}: {problem}", code="broker_unavailable"
                ) from problem
            data = raw.data()
            into.append(Message(data, raw.publish_timestamp() * _MILLISECOND_NS, time.time_ns()))
            size += len(data)
            self._last, wait_ms = raw, 0

    def acknowledge(self) -> None:
        if self._last is not None:
            self._open().acknowledge_cumulative(self._last)

    def reopen(self) -> None:
        self.close()

    def close(self) -> None:
        import pulsar

        consumer, self._consumer, self._last = self._consumer, None, None
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


def _with_message_ids(received: list[Message], last: Any) -> list[Message]:
    """Give the last message its id; asking every message for its own costs a microsecond each."""
    if received:
        head = received[-1]
        received[-1] = Message(head.data, head.ts_publish, head.ts_received, last.message_id().serialize())
    return received


class MemorySource:
    """A partition in memory: delivers what was put in, delivers again what was not acknowledged before `reopen`."""

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.waiting = deque(messages)
        self.unacknowledged: list[Message] = []
        self.acknowledged = 0

    def put(self, *messages: Message) -> None:
        """Add messages at the end."""
        self.waiting.extend(messages)

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        taken = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.unacknowledged += taken
        return taken

    def acknowledge(self) -> None:
        self.acknowledged += len(self.unacknowledged)
        self.unacknowledged.clear()

    def reopen(self) -> None:
        self.waiting.extendleft(reversed(self.unacknowledged))
        self.unacknowledged.clear()

    def close(self) -> None:
        self.reopen()
