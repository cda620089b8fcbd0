"""A clock that was set: a source's step pauses its topic with nothing lost; our own closes no bar by itself."""

import pytest
from django.core.cache import cache

from integration import alerts, clock_watch, selectors, services
from integration.clock_watch import LEAST, WINDOW, ClockWatch
from integration.consumer import PartitionWorker
from integration.market.ticks import Message
from integration.models import Batch, QuarantinedEvent, Source, Subscription, Trade
from integration.sources import MemorySource
from tests.e2e.events import SECOND, TOPIC, TS, messages, trade
from tests.e2e.world import World, sequences
from tests.integration import desk
from tests.integration.test_consumer import settle

HOUR = 3_600 * SECOND


def steps(watch: ClockWatch, *batches: tuple[int, int]) -> list[str]:
    return [watch.stepping({"alpha": batch}) for batch in batches]


def doubts(watch: ClockWatch) -> bool:
    return watch.in_doubt


def put(worker: PartitionWorker, *given: Message) -> MemorySource:
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*given)
    return worker.source


def test_a_few_mistakes_are_no_step_and_half_a_window_is() -> None:
    assert steps(ClockWatch(), *[(1, 1)] * LEAST) == [""] * (LEAST - 1) + ["alpha"]
    assert steps(ClockWatch(), *[(2, 1)] * 100)[-1] == "alpha"
    assert not any(steps(ClockWatch(), *[(3, 1)] * 1_000))
    assert not any(steps(ClockWatch(), (1_000, 64), (1_000, 64)))  # six in a hundred, though a window's worth of them
    assert steps(ClockWatch(), (1_000, 900)) == ["alpha"]
    assert ClockWatch().stepping({"alpha": (WINDOW, 0), "beta": (WINDOW, WINDOW)}) == "beta"
    assert ClockWatch().stepping({"alpha": (0, 0)}) == ""


def test_what_an_operator_lets_through_is_not_stopped_again_until_it_was_sound() -> None:
    watch = ClockWatch()
    assert steps(watch, (WINDOW, WINDOW)) == ["alpha"]
    watch.resumed()
    assert steps(watch, (WINDOW, WINDOW), (WINDOW, WINDOW)) == ["", ""]
    assert steps(watch, (WINDOW, 0), (WINDOW, WINDOW)) == ["", "alpha"]


@pytest.mark.parametrize("step", [HOUR, -HOUR, 6 * SECOND])
def test_our_clock_is_held_against_one_that_cannot_be_set(step: int) -> None:
    watch = ClockWatch()
    assert not watch.look(TS, 0)
    assert not watch.look(TS + 60 * SECOND, 60 * SECOND)
    assert not watch.look(TS + 124 * SECOND, 120 * SECOND)  # slewed, not set
    assert watch.look(TS + 125 * SECOND + step, 121 * SECOND)
    assert watch.in_doubt
    now = TS + 126 * SECOND + step
    assert watch.agrees(now - HOUR, now)
    assert doubts(watch)  # an old message says nothing
    assert watch.agrees(now - SECOND, now)
    assert not doubts(watch)
    assert not watch.agrees(now + 6 * SECOND, now)


@pytest.fixture
def quiet_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integration.broker.backlog", lambda topic, _: {f"{topic}-partition-0": 0})
    cache.delete(clock_watch._KEY)


def test_a_source_that_steps_is_paused_and_nothing_is_lost(world: World, quiet_broker: None) -> None:
    worker = world.worker(batch_messages=8)
    sound = [trade(at) for at in range(1, 41)]
    ahead = [trade(at, ts=TS + HOUR) for at in range(41, 141)]
    source = put(worker, *messages(*sound, *ahead))
    for _ in range(20):
        worker.step()
    subscription = Subscription.objects.get(topic=TOPIC)
    assert subscription.is_paused
    assert "alpha" in subscription.pause_reason
    refused = QuarantinedEvent.objects.count()
    assert 0 < refused < LEAST  # before it was plain, events were turned away one by one
    settle(worker)
    assert worker.is_paused
    assert len(source.waiting) == 140 - 40 - refused
    assert source.unacknowledged == []
    found = [item for item in alerts.findings(selectors.alert_facts(TS)) if item.kind == alerts.CLOCK_STEP]
    assert [(item.key, item.severity) for item in found] == [(TOPIC, "critical")]
    # The source was right and our limit wrong: the operator says so and lets it flow.
    Source.objects.filter(code="alpha").update(future_limit_ms=7_200_000)
    services.resume_subscription(subscription=subscription, actor=desk.operator())
    services.request_release(events=QuarantinedEvent.objects.all(), actor=desk.operator())
    settle(worker)
    while source.waiting or worker.has_work:
        settle(worker)
    settle(worker)
    assert sequences() == list(range(1, 141))
    assert Subscription.objects.get(topic=TOPIC).pause_reason == ""
    assert [item for item in alerts.findings(selectors.alert_facts(TS)) if item.kind == alerts.CLOCK_STEP] == []


def test_resumed_with_the_wrong_clock_its_events_are_turned_away_and_it_is_not_paused_again(
    world: World, quiet_broker: None
) -> None:
    worker = world.worker(batch_messages=100)
    put(worker, *messages(*[trade(at, ts=TS + HOUR) for at in range(1, 101)], trade(101), trade(102, source="beta")))
    worker.step()
    assert Batch.objects.count() == 0
    settle(worker)
    services.resume_subscription(subscription=Subscription.objects.get(), actor=desk.operator())
    for _ in range(4):
        settle(worker)
    assert QuarantinedEvent.objects.filter(code="future").count() == 100
    assert sequences() == [101, 102]
    assert not Subscription.objects.get().is_paused


def test_an_own_clock_that_was_set_closes_no_bar_and_alarms(world: World, quiet_broker: None) -> None:
    clock = [TS + SECOND]
    worker = world.worker(now_ns=lambda: clock[0])
    put(worker, *messages(trade(1)))
    settle(worker)
    assert (Batch.objects.count(), Trade.objects.count()) == (1, 1)
    clock[0] += HOUR
    settle(worker)
    settle(worker)
    assert Batch.objects.count() == 1  # an hour's end has not passed just because somebody set a clock
    found = [item for item in alerts.findings(selectors.alert_facts(TS)) if item.kind == alerts.CLOCK_STEP]
    assert [item.key for item in found] == ["our clock"]
    put(worker, *messages(trade(2, ts=clock[0]), published=clock[0]))
    settle(worker)
    clock[0] += 4 * SECOND
    settle(worker)
    assert Batch.objects.count() >= 2
    assert not worker.clocks.in_doubt


def test_a_broker_ahead_of_us_only_flags_and_alarms(world: World, quiet_broker: None) -> None:
    worker = world.worker()
    put(worker, *messages(trade(1, ts=TS + HOUR), published=TS + 100 * SECOND))
    settle(worker)
    assert sequences() == [1]
    assert "98 s ahead" in clock_watch.skews()[0][1] or "99 s ahead" in clock_watch.skews()[0][1]
