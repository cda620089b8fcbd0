"""The sequencer's loop on a real database: numbers committed once, published until marked, taken over, fenced, rebuilt."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import OperationalError, connection, connections

from integration.market.errors import RetriableError
from integration.market.events import decode_numbered_ticks
from integration.models import Bar, Batch, Gap, Lease, OutgoingMessage, SequencerState
from integration.reference import load_reference
from integration.sequencer import Outgoing
from integration.sequencing import SequencerLoop
from integration.sources import MemorySource
from tests.e2e.events import SECOND, TS, messages, normalized, quote, trade
from tests.e2e.world import World
from tests.faults.poison import Killed

TOPICS = {"ticks": "out/ticks", "bars": "out/bars", "echo": "out/echo"}
MINUTE = 60 * SECOND


class Broker:
    """Keeps what is published as a broker that drops repeats does; may refuse."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, int], Outgoing] = {}
        self.order: list[tuple[str, int]] = []
        self.refuse = 0

    def publish(self, given: Sequence[Outgoing], epoch: int) -> None:
        for message in given:
            if self.refuse:
                self.refuse -= 1
                raise RetriableError("not certain that all were stored")
            key = (message.topic, epoch, message.number)
            assert self.kept.setdefault(key, message).payload == message.payload
            self.order.append((message.topic, message.number))

    def close(self) -> None:
        return None

    def numbers(self, topic: str) -> list[int]:
        """Give the distinct numbers of a topic in the order in which they first came."""
        return list(dict.fromkeys(number for name, number in self.order if name == topic))


def loop(broker: Broker, **changes: Any) -> SequencerLoop:
    settings: dict[str, Any] = {
        "holder": "test", "publisher": broker, "reference": load_reference, "topics": TOPICS, "grace_ns": SECOND, "standby_after_s": 0.0,
        "should_stop": lambda: False, "sleep": lambda _: None,
    }  # fmt: skip
    return SequencerLoop(**(settings | changes))


def consume(world: World, *events: bytes, published: int = TS + 5) -> None:
    worker = world.workers[0] if world.workers else world.worker()
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*messages(*events, published=published))
    while worker.source.waiting or worker.has_work:
        worker.step()


def minutes(world: World) -> None:
    """Store three minutes of events in several batches, so that bars close and one is revised."""
    consume(
        world,
        trade(1, ts=TS + 1),
        quote(2, ts=TS + 2),
        trade(3, ts=TS + 3, price="12"),
        normalized(4, "ohlc", ts=TS - MINUTE),
    )
    consume(world, trade(5, ts=TS + 61 * SECOND), published=TS + 61 * SECOND)
    consume(
        world, trade(9, ts=TS + 122 * SECOND), trade(6, ts=TS + 30 * SECOND, price="9"), published=TS + 122 * SECOND
    )
    consume(world, b"junk", published=TS + 190 * SECOND)


def settle(sequencer: SequencerLoop, rounds: int = 6) -> None:
    for _ in range(rounds):
        sequencer.step()


def facts() -> tuple[Any, ...]:
    """Give everything that the way out has stored, but times and row ids."""
    bar_columns = (
        "instrument_id",
        "source_id",
        "timeframe",
        "start",
        "revision",
        "reason",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "trade_count",
        "pub_seq",
    )
    sent = OutgoingMessage.objects.order_by("topic", "number").values_list(
        "topic", "number", "pub_seq", "key", "payload"
    )
    return (
        list(Batch.objects.order_by("id").values_list("id", "pub_seq")),
        list(
            Bar.objects.order_by("instrument_id", "source_id", "timeframe", "start", "revision").values_list(
                *bar_columns
            )
        ),
        [(*row[:-1], bytes(row[-1])) for row in sent],
        list(Gap.objects.order_by("first").values_list("first", "last", "state")),
    )


def test_batches_are_numbered_bars_written_messages_sent_and_marked(world: World) -> None:
    minutes(world)
    broker = Broker()
    settle(loop(broker))
    assert list(Batch.objects.order_by("id").values_list("pub_seq", flat=True)) == [1, 2, 3, 4]
    assert not OutgoingMessage.objects.filter(sent_at=None).exists()
    ticks = [decode_numbered_ticks(broker.kept["ticks", 1, number].payload) for number in broker.numbers("ticks")]
    assert [sequence for one in ticks for sequence in one.columns["sequence"].tolist()] == [1, 2, 3, 4, 5, 6]
    for topic in ("ticks", "bars"):
        assert broker.numbers(topic) == list(range(1, len(broker.numbers(topic)) + 1))
    revisions = (
        Bar.objects.filter(source_id=0, timeframe="1m", start=TS)
        .order_by("revision")
        .values_list("reason", "low", "trade_count")
    )
    assert [(reason, int(low), count) for reason, low, count in revisions] == [("first", 10, 2), ("late_trade", 9, 3)]
    assert Bar.objects.get(reason="delivered").source_id == -world.sources["alpha"]


@pytest.mark.parametrize(
    "point", ["before_numbering", "before_sequencer_commit", "after_sequencer_commit", "after_publish"]
)
@pytest.mark.parametrize("error", [OperationalError("away"), RetriableError("busy"), Killed()])
def test_an_error_at_any_point_changes_nothing_in_the_end(world: World, point: str, error: BaseException) -> None:
    minutes(world)
    undisturbed = Broker()
    settle(loop(undisturbed))
    expected = facts()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE integration_batch SET pub_seq = NULL")
        for table in (Bar, Gap, OutgoingMessage):
            table.objects.all().delete()
        cursor.execute("UPDATE integration_sequencerstate SET pub_seq = 0, checkpoint = '', checkpoint_pub_seq = 0")
    broker, calls = Broker(), list[str]()

    def reached(here: str) -> None:
        calls.append(here)
        if here == point and calls.count(point) == 1:
            raise error

    first = loop(broker, reached=reached)
    try:
        settle(first)
    except Killed:
        connection.close()
        settle(loop(broker, holder="second"))
    assert facts() == expected
    assert {key: one.payload for key, one in broker.kept.items()} == {
        key: one.payload for key, one in undisturbed.kept.items()
    }
    assert not OutgoingMessage.objects.filter(sent_at=None).exists()


def test_what_was_sent_and_not_marked_is_sent_again_byte_for_byte(world: World) -> None:
    minutes(world)
    broker = Broker()
    settle(loop(broker))
    OutgoingMessage.objects.update(sent_at=None)
    before = len(broker.order)
    settle(loop(broker))
    # `Broker.publish` compares the bytes of repeats.
    assert len(broker.order) == 2 * before
    assert not OutgoingMessage.objects.filter(sent_at=None).exists()


def test_broker_that_refuses_for_a_while_gets_all_in_order(world: World) -> None:
    minutes(world)
    broker = Broker()
    broker.refuse = 5
    settle(loop(broker), 12)
    for topic in ("ticks", "bars"):
        assert broker.numbers(topic) == list(range(1, OutgoingMessage.objects.filter(topic=TOPICS[topic]).count() + 1))
    assert not OutgoingMessage.objects.filter(sent_at=None).exists()


def test_standby_waits_for_a_living_holder_and_takes_over_from_a_silent_one(world: World) -> None:
    active, standby = loop(Broker(), holder="active"), loop(Broker(), holder="standby", standby_after_s=60.0)
    active.step()
    standby.step()
    assert Lease.objects.get(name="sequencer").holder == "active"
    standby.standby_after_s = 0.0
    standby.step()
    assert Lease.objects.get(name="sequencer").holder == "standby"
    consume(world, trade(1))
    active.step()  # learns that it is fenced, and has written nothing
    assert SequencerState.objects.get().pub_seq == 0
    standby.step()
    assert SequencerState.objects.get().pub_seq == 1


def test_holder_that_stops_leaves_at_once(world: World) -> None:
    active = loop(Broker(), holder="active")
    active.step()
    active.close()
    loop(Broker(), holder="next", standby_after_s=1000.0).step()
    assert Lease.objects.get(name="sequencer").holder == "next"


def test_two_sequencers_never_number_a_batch_twice(world: World) -> None:
    broker = Broker()
    one, two = loop(broker, holder="one"), loop(broker, holder="two")
    for number in range(1, 16):
        consume(world, trade(number, ts=TS + number), published=TS + number)
        (one if number % 2 else two).step()
    settle(one)
    pub_seqs = list(Batch.objects.order_by("pub_seq").values_list("pub_seq", flat=True))
    assert pub_seqs == list(range(1, len(pub_seqs) + 1))
    assert broker.numbers("ticks") == list(range(1, len(broker.numbers("ticks")) + 1))


def test_session_that_is_ended_while_it_waits_for_work_is_opened_again(world: World) -> None:
    """As a takeover or a restart of PostgreSQL does."""
    active = loop(Broker())
    settle(active, 2)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (waiting,) = cursor.fetchone()

    def end_session() -> None:
        time.sleep(0.1)
        with connections["default"].cursor() as other:
            other.execute("SELECT pg_terminate_backend(%s)", [waiting])
        connections.close_all()

    thread = threading.Thread(target=end_session)
    thread.start()
    settle(active, 2)
    thread.join()
    consume(world, trade(1))
    settle(active)
    assert SequencerState.objects.get().pub_seq == 1
