"""The Pulsar source against a real broker: what is acknowledged does not come again, what is given up does, in order."""

from integration.market.ticks import Message
from integration.sources import PulsarSource
from tests.stack import PulsarNamespace


def receive(source: PulsarSource, count: int) -> list[Message]:
    """Receive until `count` messages are there, in as many answers as it takes."""
    received: list[Message] = []
    for _ in range(20):
        received += source.receive(count - len(received), 1.0)
        if len(received) == count:
            break
    return received


def test_acknowledged_once_given_up_comes_again(pulsar_namespace: PulsarNamespace) -> None:
    client = pulsar_namespace.client()
    topic = client.get_topic_partitions(pulsar_namespace.topic("equities"))[0]
    producer = client.create_producer(topic)
    for number in range(5):
        producer.send(b"%d" % number)
    source = PulsarSource(client, topic, "one", "reader")
    first, rest = receive(source, 2), receive(source, 3)
    assert [message.data for message in first + rest] == [b"0", b"1", b"2", b"3", b"4"]
    assert all(message.message_id for message in (first[-1], rest[-1]))
    source.acknowledge(first[-1])
    source.reopen()
    again = receive(source, 3)
    assert [message.data for message in again] == [b"2", b"3", b"4"]
    source.acknowledge(rest[-1])  # given up above: these are the ones that count now
    source.reopen()
    assert [message.data for message in receive(source, 3)] == [b"2", b"3", b"4"]
    source.close()
