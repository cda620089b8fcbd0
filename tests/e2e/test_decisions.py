"""What operators decide in the admin, obeyed by running processes: a release, an alias, a pause; by the pages' own POST."""

import time
from collections.abc import Iterator

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from integration import broker
from integration.market.events import decode_numbered_ticks
from integration.market.ticks import FLAG_RELEASED
from integration.models import Gap, Instrument, InstrumentAlias, Listing, Position, QuarantinedEvent, Subscription
from tests.e2e.events import SECOND, trade
from tests.e2e.test_whole_path import Service, service
from tests.e2e.world import until
from tests.faults.account import published, rows, stored_count

__all__ = ["service"]

State = QuarantinedEvent.State
Tick = tuple[int, int, int, bool]


@pytest.fixture
def admin(service: Service) -> Client:
    browser = Client()
    browser.force_login(get_user_model().objects.create_superuser("operator", password="secret"))
    return browser


@pytest.fixture
def running(service: Service) -> Iterator[Service]:
    for runner in (service.consumer, service.sequencer):
        runner.start()
    yield service
    # Nothing of all this may end a process.
    for runner in (service.consumer, service.sequencer):
        assert not runner.has_died(), runner.log.read_text()[-3000:]


def ticks(service: Service) -> list[Tick]:
    """Give (instrument, number, price, whether released) of every published tick, in order."""
    found: list[Tick] = []
    for data in published(service.space.client(), service.space.topic("ticks")):
        columns = decode_numbered_ticks(data).columns
        released = (columns["flags"] & FLAG_RELEASED) != 0
        names = ("instrument_id", "sequence", "price")
        found += zip(*(columns[name].tolist() for name in names), released.tolist(), strict=True)
    return found


def send(service: Service, *data: bytes) -> None:
    for event in data:
        service.producer.send(event, partition_key="AAA.SIMX")


def states() -> list[tuple[str, str]]:
    return list(QuarantinedEvent.objects.order_by("id").values_list("code", "state"))


def test_a_quarantined_event_that_is_released_is_stored_and_published_with_its_flag(
    running: Service, admin: Client
) -> None:
    now, aaa = time.time_ns(), running.world.instruments["AAA.SIMX"]
    send(running, *(trade(n, ts=now + n, price=str(n)) for n in (1, 2)))
    send(running, trade(3, ts=now + 3, price="0"), trade(4, ts=now + 4, price="4"))
    until(lambda: stored_count() == 3 and states() == [("price_sign", State.QUARANTINED)], 60)
    event = QuarantinedEvent.objects.get()

    answer = admin.post(reverse("admin:integration_quarantinedevent_release", args=[event.pk]), {"note": "is right"})
    assert answer.status_code == 302
    until(lambda: stored_count() == 4 and running.is_published(), 60)
    event.refresh_from_db()
    assert (event.state, event.note) == (State.RELEASED, "is right")
    assert rows("SELECT batch_id FROM integration_trade WHERE sequence = 3") == [(event.released_batch_id,)]
    expected = [(aaa, 1, 1, False), (aaa, 2, 2, False), (aaa, 3, 4, False), (aaa, 4, 0, True)]
    assert ticks(running) == [(*tick[:2], tick[2] * SECOND, tick[3]) for tick in expected]
    # Asked for again (a second click, a page that was open since): nothing comes twice.
    admin.post(reverse("admin:integration_quarantinedevent_release", args=[event.pk]))
    send(running, trade(3, ts=now + 3, price="0"), trade(5, ts=now + 5))
    until(lambda: stored_count() == 5 and running.is_published(), 60)
    assert [tick[1] for tick in ticks(running)] == [1, 2, 3, 4, 5]
    assert not Gap.objects.exists()


def test_parked_events_flow_in_order_once_their_alias_is_added(running: Service, admin: Client) -> None:
    now = time.time_ns()
    send(running, *(trade(n, ts=now + n, price=str(n), instrument="ZZZ.SIMX") for n in (1, 2, 3)))
    send(running, trade(4, ts=now + 4, price="4"))
    until(lambda: stored_count() == 1 and states() == [("unknown_instrument", State.PARKED)] * 3, 60)

    new = Instrument.objects.create(name="ZZZ", asset_class="equities")
    Listing.objects.create(instrument=new, venue_id="SIMX", currency="USD")
    form = {"instrument": new.pk, "scheme": "TICKER", "value": "ZZZ.SIMX"}
    bounds = {f"valid_{end}_{part}": "" for end in ("from", "to") for part in (0, 1)}
    answer = admin.post(reverse("admin:integration_instrumentalias_add"), form | bounds)
    assert answer.status_code == 302, answer.content.decode()
    assert InstrumentAlias.objects.filter(instrument=new).exists()
    # A newer one comes at the same time: it must not overtake those that waited.
    send(running, trade(5, ts=now + 5, price="5", instrument="ZZZ.SIMX"))
    until(lambda: stored_count() == 5 and running.is_published(), 60)
    assert states() == [("unknown_instrument", State.RELEASED)] * len(states())
    mine = [tick[1:] for tick in ticks(running) if tick[0] == new.pk]
    assert [(number, price // SECOND) for number, price, _ in mine] == [(1, 1), (2, 2), (3, 3), (4, 5)]
    assert [released for _, _, released in mine[:3]] == [True] * 3


def test_a_paused_subscription_stands_still_and_goes_on_without_loss_or_repeat(running: Service, admin: Client) -> None:
    topic = Subscription.objects.get(topic=running.space.topic("equities"))

    def press(button: str) -> None:
        assert admin.post(reverse(f"admin:integration_subscription_{button}", args=[topic.pk])).status_code == 302

    def positions() -> list[tuple[int, int]]:
        return list(Position.objects.order_by("id").values_list("id", "number"))

    now = time.time_ns()
    running.send(20, now)
    until(lambda: stored_count() == 20 and running.is_published(), 60)
    press("pause")
    # It looks once a second; three looks later it surely knows.
    time.sleep(3)
    before = positions()
    running.send(30, now)
    time.sleep(3)
    assert (positions(), stored_count()) == (before, 20)
    kept = broker.backlog(topic.topic, topic.name)
    assert kept is not None
    # Each was sent twice; what was acknowledged just before may be counted a moment longer, so at least these.
    assert sum(kept.values()) >= 60
    press("resume")
    until(lambda: stored_count() == 50 and running.is_published(), 60)
    running.send(10, now)
    until(lambda: stored_count() == 60 and running.is_published(), 60)
    running.indicator.poll()
    assert (running.indicator.faults, running.indicator.repeats) == ([], 0)
    assert running.indicator.ticks == {running.world.instruments["AAA.SIMX"]: 60}
    until(lambda: sum((broker.backlog(topic.topic, topic.name) or {"": 1}).values()) == 0, 60)
