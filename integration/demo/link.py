"""The feed's connection to the broker: an ordinary producer per topic, every send accounted for. Knows bytes and keys, not events.

A send is in flight until its callback. The client reconnects and sends again by itself; what it gives up is sent again by `resend`.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pulsar

from integration.sources import pulsar_client

logger = logging.getLogger(__name__)

_QUEUE: Final = 20_000


class BrokerAwayError(RuntimeError):
    """No connection to the broker could be made."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message: the topic's short name, key, bytes and properties."""

    topic: str
    key: str
    data: bytes
    properties: Mapping[str, str] = field(default_factory=dict)


class Link:
    """Producers of the topics given by short name; used by one thread, called back by the client's."""

    def __init__(self, url: str, token: str, topics: Mapping[str, str], ca_file: str = "") -> None:
        self.url = url
        self.sent = 0
        self.refusals: Counter[str] = Counter()
        self._topics = topics
        self._token = token
        self._ca_file = ca_file
        self._client: Any = None
        self._producers: dict[str, Any] = {}
        self._again: deque[Outgoing] = deque()
        self._lock = threading.Lock()
        self._settled = 0
        self._is_closing = False

    @property
    def in_flight(self) -> int:
        """Messages sent and neither confirmed nor refused."""
        return self.sent - self._settled

    @property
    def unconfirmed(self) -> int:
        """Messages of which the broker has not said that it has them."""
        return self.in_flight + len(self._again)

    @property
    def is_connected(self) -> bool:
        return bool(self._producers) and all(producer.is_connected() for producer in self._producers.values())

    def open(self) -> None:
        """Connect all producers. Raises BrokerAwayError, which says what was tried."""
        client = pulsar_client(self.url, self._token, ca_file=self._ca_file, logger=_client_logger())
        try:
            self._producers = {name: self._producer(client, topic) for name, topic in self._topics.items()}
        except pulsar.PulsarException as problem:
            client.close()
            # A missing or wrong token looks like a time-out to the client.
            raise BrokerAwayError(f"broker unreachable or token refused at {self.url}: {problem}") from problem
        self._client = client

    def send(self, message: Outgoing) -> None:
        """Hand one message to the client; waits while its queue is full."""
        self.sent += 1
        self._producers[message.topic].send_async(
            message.data,
            partial(self._settle, message),
            partition_key=message.key,
            properties=dict(message.properties) or None,
        )

    def resend(self) -> None:
        """Send again what the client gave up."""
        for _ in range(len(self._again)):
            self.send(self._again.popleft())

    def flush(self, deadline_s: float) -> None:
        """Wait until nothing is in flight, at most so long."""
        end = time.monotonic() + deadline_s
        while self.unconfirmed and time.monotonic() < end:
            self.resend()
            time.sleep(0.005)

    def close(self) -> None:
        """Close the connection; what is in flight is given up."""
        self._is_closing = True
        if self._client is not None:
            self._client.close()
            self._client, self._producers = None, {}

    def _producer(self, client: Any, topic: str) -> Any:
        return client.create_producer(
            topic,
            send_timeout_millis=0,  # a time-out says nothing about the message; the client tries until the broker is back
            block_if_queue_full=True,
            max_pending_messages=_QUEUE,
            max_pending_messages_across_partitions=2 * _QUEUE,
            batching_enabled=True,
            batching_type=pulsar.BatchingType.KeyBased,
            batching_max_publish_delay_ms=2,
        )

    def _settle(self, message: Outgoing, result: pulsar.Result, _: pulsar.MessageId) -> None:
        with self._lock:
            self._settled += 1
            if result == pulsar.Result.Ok:
                return
            self._again.append(message)
            if not self._is_closing:
                if not self.refusals[result.name]:
                    logger.error(
                        "broker refused a message on %s: %s; it will be sent again", message.topic, result.name
                    )
                self.refusals[result.name] += 1


def _client_logger() -> logging.Logger:
    """Give the client a logger of its own, since without one it writes to stdout, and keep it quiet.

    It repeats one line per partition and attempt while the broker is away; the feed says that once.
    """
    client_logger = logging.getLogger("pulsar.feed")
    client_logger.setLevel(logging.CRITICAL)
    return client_logger
