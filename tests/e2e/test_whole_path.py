"""The whole path on real servers: four forms in, numbered ticks and bars out, over restarts and a takeover; the canary's echo."""

import time
from collections.abc import Iterator
from pathlib import Path

import pulsar
import pytest

from integration.market.events import CONTENT_TYPE
from integration.models import Batch, OutgoingMessage
from tests.e2e.events import SECOND, arrow, distributed, normalized, quote, trade
from tests.e2e.indicator import Indicator
from tests.e2e.world import World, build_world, until
from tests.faults.account import stored_count
from tests.faults.processes import Runner, environment
from tests.faults.trial import warm_up
from tests.stack import PulsarNamespace

CHANNEL = 3


class Service:
    """A running service on its own namespace, with a producer and a client behind it."""

    def __init__(self, space: PulsarNamespace, world: World, log: Path) -> None:
        self.space, self.world = space, world
        self.variables = environment(space.name, space.name)
        self.consumer = Runner("consume_ticks", self.variables, log)
        self.sequencer = Runner("sequence_ticks", self.variables, log)
        self.standby = Runner("sequence_ticks", self.variables, log)
        self.producer = space.client().create_producer(space.topic("equities"))
        self.indicator = Indicator(space.client(), space.topic("ticks"), space.topic("bars"))
        self.sent = 0

    def stop(self) -> None:
        for runner in (self.consumer, self.sequencer, self.standby):
            runner.stop()

    def send(self, count: int, ts: int) -> None:
        """Send trades one by one, twice each: the second is a repeat."""
        for number in range(self.sent + 1, self.sent + count + 1):
            for _ in range(2):
                self.producer.send(
                    trade(number, channel=CHANNEL, ts=ts + number, price=f"{number}"), partition_key="AAA.SIMX"
                )
        self.sent += count

    def is_published(self) -> bool:
        return not (
            Batch.objects.filter(pub_seq=None).exists() or OutgoingMessage.objects.filter(sent_at=None).exists()
        )


@pytest.fixture
def service(transactional_db: None, pulsar_namespace: PulsarNamespace, tmp_path: Path) -> Iterator[Service]:
    world = build_world(pulsar_namespace.topic("equities"))
    warm_up()
    made = Service(pulsar_namespace, world, tmp_path / "processes.log")
    yield made
    made.stop()


def test_four_forms_come_out_as_numbered_ticks_and_bars_over_restarts(service: Service) -> None:
    minute = 60 * SECOND
    start = time.time_ns() // minute * minute - 2 * minute
    service.consumer.start()
    service.sequencer.start()
    forms = [
        (trade(1, ts=start + 1, price="10"), {}),
        (distributed(2, ts=start + 2, price=12, volume=2), {}),
        (normalized(3, "trade", ts=start + 3, price="9", volume=3), {}),
        (quote(4, "8", "9", ts=start + 4), {}),
        (arrow([5, 6], ts=start), {"content-type": CONTENT_TYPE}),
    ]
    for data, properties in forms:
        service.producer.send(data, partition_key="AAA.SIMX", properties=properties)
    until(lambda: stored_count() == 5 and service.is_published(), 60)
    service.indicator.poll()
    aaa = service.world.instruments["AAA.SIMX"]
    assert service.indicator.ticks == {aaa: 6}
    bar = service.indicator.bars[aaa, 0, "1m", start]
    assert (bar.open, bar.high, bar.low, bar.trade_count) == (10 * SECOND, 12 * SECOND, 9 * SECOND, 5)
    assert bar.volume == 8 * SECOND
    for runner in (service.consumer, service.sequencer, service.consumer, service.sequencer):
        service.send(30, start)
        runner.kill()
        runner.has_died()
        runner.start()
        service.send(30, start)
    until(lambda: stored_count() == 5 + service.sent and service.is_published(), 90)
    service.indicator.poll()
    assert service.indicator.faults == []
    assert service.indicator.repeats == 0
    assert service.indicator.ticks == {aaa: 6 + service.sent}
    bar = service.indicator.bars[aaa, 0, "1m", start]
    assert (bar.trade_count, bar.high, bar.close) == (5 + service.sent, service.sent * SECOND, service.sent * SECOND)


def test_standby_takes_over_from_a_killed_sequencer(service: Service) -> None:
    service.consumer.start()
    service.sequencer.start()
    service.send(20, time.time_ns())
    until(lambda: stored_count() == 20 and service.is_published(), 60)
    service.standby.start()
    until(lambda: service.standby.is_working, 60)
    service.sequencer.kill()
    killed = time.monotonic()
    service.send(20, time.time_ns())
    until(lambda: stored_count() == 40 and service.is_published(), 30)
    # Two seconds without a renewal, then at once: five is the promise, the rest is what this machine is busy with.
    print(f"took over after {time.monotonic() - killed:.1f} s")
    service.indicator.poll()
    assert service.indicator.faults == []
    assert service.indicator.ticks.total() == 40


def test_large_streams_come_out_whole(service: Service) -> None:
    """Batches of several full streams are more than one message of the broker can hold."""
    now = time.time_ns()
    rows = 50_000
    for at in range(3):
        data = arrow(range(at * rows + 1, (at + 1) * rows + 1), ts=now)
        service.producer.send(data, partition_key="AAA.SIMX", properties={"content-type": CONTENT_TYPE})
    service.consumer.start()
    service.sequencer.start()
    until(lambda: stored_count() == 3 * rows and service.is_published(), 90)
    service.indicator.poll()
    assert service.indicator.faults == []
    assert service.indicator.ticks.total() == 3 * rows


def test_canary_travels_the_whole_path_and_is_in_no_stream(service: Service, embedded: object) -> None:
    from django.conf import settings
    from django.core.cache import cache

    from integration.canary import CACHE_KEY, canary_topic
    from integration.models import Source, SourceBinding, Subscription

    cache.delete(CACHE_KEY)
    source = Source.objects.create(code="mdi-canary", name="canary")
    SourceBinding.objects.create(source=source, topic=canary_topic())
    Subscription.objects.create(topic=canary_topic(), name=f"canary-{service.space.name}")
    echoes = service.space.client().subscribe(settings.CANARY_ECHO_TOPIC, service.space.name)
    for runner in (service.consumer, service.sequencer):
        runner.variables = {**runner.variables, "MDI_CANARY_INTERVAL_MS": "200"}
        runner.start()
    assert b'"ts_event"' in echoes.receive(timeout_millis=60_000).data()
    until(lambda: cache.get(CACHE_KEY) is not None, 30)
    service.consumer.kill()
    service.consumer.has_died()
    service.consumer.start()
    assert b'"ts_event"' in echoes.receive(timeout_millis=60_000).data()
    assert stored_count() == 0
    with pytest.raises(pulsar.Timeout):
        service.indicator.consumers[service.indicator.ticks_topic].receive(timeout_millis=500)
