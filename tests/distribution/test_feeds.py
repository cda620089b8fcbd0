"""The desk's readers: a broker that is away is said and waited for, holes and new instruments make the state be read again."""

import asyncio
import threading
import time
from typing import Any

from distribution.feeds import Desk
from integration.market.units import NANOS
from integration.models import Venue
from tests.distribution.conftest import Publisher, Site, make_market, until
from tests.stack import PulsarNamespace


async def soon(condition: Any) -> None:
    await asyncio.to_thread(until, condition, 40)


def test_a_broker_that_is_away_is_said_and_waited_for(
    transactional_db: None, settings: Any, pulsar_namespace: PulsarNamespace
) -> None:
    market = make_market()
    settings.INTEGRATED_TOPICS = {name: pulsar_namespace.topic(name) for name in ("ticks", "bars")}
    address, settings.PULSAR_URL = settings.PULSAR_URL, "pulsar://127.0.0.1:1"
    publisher = Publisher(pulsar_namespace)
    apple = market.ids["AAPL.SIMX"]

    async def play() -> None:
        desk = Desk.current()
        assert desk is Desk.current()
        assert desk.state[0] == "starting"
        try:
            await soon(lambda: desk.state[:2] == ("reconnecting", "broker unreachable or token refused"))
            settings.PULSAR_URL = address
            await soon(lambda: desk.state[0] == "live")
            publisher.trade(apple, 5 * NANOS)
            await soon(lambda: desk.board.instruments[apple].last == 5 * NANOS)
        finally:
            await desk.stop()
        assert Desk.running() is None
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reader-")]

    asyncio.run(play())


def test_a_new_instrument_is_found_when_its_first_tick_comes(site: Site) -> None:
    desk = Desk.running()
    assert desk is not None
    instrument = site.market.add("NEW", "New Corp.", Venue.objects.get(mic="SIMX"))
    site.publisher.trade(instrument.pk, 3 * NANOS)
    until(lambda: instrument.pk in desk.board.instruments)
    assert desk.hub.directory["NEW.SIMX"] == instrument.pk
    site.publisher.trade(instrument.pk, 4 * NANOS)
    until(lambda: desk.board.instruments[instrument.pk].last == 4 * NANOS)


def test_after_a_hole_the_stored_state_replaces_what_was_folded(site: Site) -> None:
    desk, apple = Desk.running(), site.market.ids["AAPL.SIMX"]
    assert desk is not None
    site.publisher.trade(apple, 3 * NANOS)
    until(lambda: desk.board.instruments[apple].volume == NANOS)
    site.publisher.ticks({"instrument_id": apple, "price": 4 * NANOS}, skip=2)
    # Nothing of this is stored in PostgreSQL, so that reading the state again shows.
    until(lambda: desk.board.holes == 2 and desk.board.instruments[apple].volume == 0)


def test_the_canary_is_neither_shown_nor_a_reason_to_read_again(site: Site) -> None:
    desk, canary, apple = Desk.running(), site.market.ids["CANARY.MDIX"], site.market.ids["AAPL.SIMX"]
    assert desk is not None
    until(lambda: desk.board.ignored == {canary})
    site.publisher.trade(canary, NANOS)
    site.publisher.trade(apple, NANOS)
    until(lambda: desk.board.instruments[apple].last == NANOS)
    time.sleep(0.1)
    assert canary not in desk.board.instruments
    assert desk.board.unknown_ticks == 0


def test_a_message_that_breaks_the_contract_is_skipped(site: Site, pulsar_namespace: PulsarNamespace) -> None:
    desk, apple = Desk.running(), site.market.ids["AAPL.SIMX"]
    assert desk is not None
    for topic in ("ticks", "bars"):
        pulsar_namespace.client().create_producer(pulsar_namespace.topic(topic)).send(b"\xff\xff\xff\xffnonsense")
    site.publisher.trade(apple, 7 * NANOS)
    until(lambda: desk.board.instruments[apple].last == 7 * NANOS)
    assert desk.state[0] == "live"
