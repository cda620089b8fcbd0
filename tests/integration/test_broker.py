"""What the broker says of itself: real topics, real backlogs, and an admin interface that is away."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from integration import broker
from tests.stack import PulsarNamespace


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_answers", {})


def test_waiting_messages_are_counted_by_partition(pulsar_namespace: PulsarNamespace) -> None:
    import pulsar

    topic = pulsar_namespace.topic("equities")
    client = pulsar_namespace.client()
    client.subscribe(topic, "integration", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(
        topic, message_routing_mode=pulsar.PartitionsRoutingMode.RoundRobinDistribution, batching_enabled=False
    )
    for number in range(6):
        producer.send(str(number).encode())
    found = broker.backlog(topic, "integration")
    assert found is not None
    assert sorted(found) == [f"{topic}-partition-0", f"{topic}-partition-1"]
    assert sum(found.values()) == 6
    assert broker.backlog(topic, "another") == dict.fromkeys(found, 0)


def test_a_topic_without_partitions_is_its_own(pulsar_namespace: PulsarNamespace) -> None:
    topic = pulsar_namespace.topic("ticks")
    pulsar_namespace.client().subscribe(topic, "integration")
    assert broker.backlog(topic, "integration") == {topic: 0}


def test_health(settings: Any) -> None:
    assert broker.health() == ""
    settings.PULSAR_ADMIN_URL = ""
    assert broker.health() == ""  # by its port
    settings.PULSAR_URL = "pulsar://127.0.0.1:1"
    assert "127.0.0.1:1" in broker.health()


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """Serve 403 to every question, and remember the questions."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refusal_is_not_known_and_is_asked_once(settings: Any, refusing: tuple[str, list[str]]) -> None:
    settings.PULSAR_ADMIN_URL, asked = refusing
    for _ in range(3):
        assert broker.backlog("persistent://a/b/c", "s") is None
        assert broker.backlog("persistent://a/b/d", "s") is None
    assert len(asked) == 4  # with and without partitions, once a topic
    assert "403" in broker.health()


def test_a_broker_that_is_away_is_waited_for_once(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.PULSAR_ADMIN_URL = "http://127.0.0.1:1"
    fetched = []
    fetch = broker._fetch

    def counted(path: str) -> Any:
        fetched.append(path)
        return fetch(path)

    monkeypatch.setattr(broker, "_fetch", counted)
    for name in "cdefg":
        assert broker.backlog(f"persistent://a/b/{name}", "s") is None
    assert broker.health()
    assert len(fetched) == 1
