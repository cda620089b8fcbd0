"""Publishing through the real broker: in order, repeats dropped, a number the broker cannot have seen is never called a success."""

import pulsar
import pytest

from distribution.publishers import PulsarPublisher
from integration.market.errors import FatalError, RetriableError
from integration.sequencer import Outgoing
from integration.sources import pulsar_client
from tests.faults.account import published
from tests.stack import PulsarNamespace


def outgoing(number: int, topic: str = "ticks", body: bytes = b"") -> Outgoing:
    return Outgoing(topic, number, "7", body or str(number).encode())


def publisher(space: PulsarNamespace) -> PulsarPublisher:
    topics = {"ticks": space.topic("ticks"), "bars": space.topic("bars")}
    return PulsarPublisher(lambda: pulsar_client(space.endpoints.pulsar_url, space.endpoints.pulsar_token), topics)


def read(space: PulsarNamespace, topic: str = "ticks") -> list[bytes]:
    return list(published(space.client(), space.topic(topic)))


def test_messages_arrive_in_order_with_key_and_content_type(pulsar_namespace: PulsarNamespace) -> None:
    sender = publisher(pulsar_namespace)
    sender.publish([outgoing(1), outgoing(1, "bars"), outgoing(2)], epoch=1)
    sender.close()
    assert read(pulsar_namespace) == [b"1", b"2"]
    consumer = pulsar_namespace.client().subscribe(
        pulsar_namespace.topic("bars"), "s", initial_position=pulsar.InitialPosition.Earliest
    )
    message = consumer.receive(timeout_millis=10_000)
    assert (message.partition_key(), message.properties()) == ("7", {"content-type": "application/json"})


def test_repeats_are_dropped_over_connections_and_said_to_be_sent(pulsar_namespace: PulsarNamespace) -> None:
    for numbers in ((1, 2, 3), (2, 3, 4), (1, 2, 3, 4, 5)):
        sender = publisher(pulsar_namespace)
        sender.publish([outgoing(number) for number in numbers], epoch=1)
        sender.publish([outgoing(number) for number in numbers], epoch=1)
        sender.close()
    assert read(pulsar_namespace) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_new_epoch_numbers_anew(pulsar_namespace: PulsarNamespace) -> None:
    sender = publisher(pulsar_namespace)
    sender.publish([outgoing(1), outgoing(2)], epoch=1)
    sender.publish([outgoing(1, body=b"new")], epoch=2)
    sender.close()
    assert read(pulsar_namespace) == [b"1", b"2", b"new"]


def test_number_dropped_that_the_broker_cannot_have_seen_is_fatal(pulsar_namespace: PulsarNamespace) -> None:
    sender = publisher(pulsar_namespace)
    sender.publish([outgoing(1)], epoch=1)
    # Somebody else takes numbers under our producer's name on our own connection's back.
    sender._producers["ticks", 1][0].send(b"stolen", sequence_id=9)
    with pytest.raises(FatalError, match="dropped ticks #5 though it knew only"):
        sender.publish([outgoing(5)], epoch=1)
    sender.close()


def test_second_publisher_takes_the_topic_over_and_the_first_hears_so(pulsar_namespace: PulsarNamespace) -> None:
    first, second = publisher(pulsar_namespace), publisher(pulsar_namespace)
    first.publish([outgoing(1)], epoch=1)
    second.publish([outgoing(1), outgoing(2)], epoch=1)
    with pytest.raises(RetriableError):
        first.publish([outgoing(2), outgoing(3)], epoch=1)
    first.close()
    second.close()
    assert read(pulsar_namespace)[:2] == [b"1", b"2"]


def test_broker_that_is_away_is_retriable() -> None:
    sender = PulsarPublisher(
        lambda: pulsar_client("pulsar://127.0.0.1:1", "x"), {"ticks": "persistent://market-data/none/ticks"}
    )
    with pytest.raises(RetriableError):
        sender.publish([outgoing(1)], epoch=1)
    sender.close()


def test_message_over_the_brokers_limit_is_an_error_of_ours_not_a_silence(pulsar_namespace: PulsarNamespace) -> None:
    sender = publisher(pulsar_namespace)
    with pytest.raises(RetriableError):
        sender.publish([outgoing(1, body=b"x" * (6 * 1024 * 1024))], epoch=1)
    sender.close()
