"""The embedded broker as a client sees it: topics, roles, tokens."""

from pathlib import Path

import pulsar
import pytest

from config.embedded import EmbeddedServerError
from config.embedded.pulsar import Pulsar
from config.embedded.runtime import VarFolder
from tests.stack import PulsarNamespace


@pytest.mark.parametrize("name", ["my data", "daten-ü", "50%", "a#b"])
def test_a_data_folder_that_the_broker_cannot_name_is_refused_before_anything_starts(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    with pytest.raises(EmbeddedServerError, match=rf"may hold ASCII letters.* was {tmp_path / name} \(choose another"):
        Pulsar(VarFolder(tmp_path / name), partitions=1).start(said.append)
    assert said == []


def test_message_arrives_once_with_its_properties(pulsar_namespace: PulsarNamespace) -> None:
    client = pulsar_namespace.client()
    consumer = client.subscribe(
        pulsar_namespace.topic("equities"), "s", initial_position=pulsar.InitialPosition.Earliest
    )
    client.create_producer(pulsar_namespace.topic("equities")).send(b"one", properties={"form": "trade"})
    message = consumer.receive(timeout_millis=10_000)
    assert (message.data(), message.properties()) == (b"one", {"form": "trade"})
    with pytest.raises(pulsar.Timeout):
        consumer.receive(timeout_millis=200)


def test_repeat_of_a_sequence_id_is_dropped(pulsar_namespace: PulsarNamespace) -> None:
    client, topic = pulsar_namespace.client(), pulsar_namespace.topic("ticks")
    consumer = client.subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest)
    producer = client.create_producer(topic, producer_name="p", batching_enabled=False)
    for sequence_id, body in ((1, b"one"), (1, b"one again"), (2, b"two")):
        producer.send(body, sequence_id=sequence_id)
    assert [consumer.receive(timeout_millis=10_000).data() for _ in range(2)] == [b"one", b"two"]


def test_feed_may_not_read(pulsar_namespace: PulsarNamespace) -> None:
    client = pulsar_namespace.client(pulsar_namespace.endpoints.pulsar_feed_token)
    client.create_producer(pulsar_namespace.topic("equities")).send(b"allowed")
    with pytest.raises(pulsar.AuthorizationError):
        client.subscribe(pulsar_namespace.topic("equities"), "s")


def test_unknown_topic_is_refused(pulsar_namespace: PulsarNamespace) -> None:
    with pytest.raises(pulsar.PulsarException):
        pulsar_namespace.client().create_producer(pulsar_namespace.topic("equity"))


def test_more_partitions_only_grow(pulsar_namespace: PulsarNamespace) -> None:
    for wanted, present in ((4, 4), (1, 4)):
        topic = pulsar_namespace.add_topic("equities", wanted)
        assert len(pulsar_namespace.client().get_topic_partitions(topic)) == present
