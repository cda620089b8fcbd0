"""The canary: an event by the contract, its reference data, and its age at the end of the path."""

import time
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command

from config.pipeline import build
from integration import canary
from integration.market.events import decode
from integration.market.identity import KnownIdentities
from integration.market.ticks import Message
from integration.models import Batch, Instrument, Position, Source, SourceBinding, Subscription
from integration.pipeline import PartitionState, Request, process
from integration.reference import load_reference

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a mark of its own: parallel tests share one Valkey."""
    monkeypatch.setattr(canary, "CACHE_KEY", f"canary-{uuid4()}")


def message(sequence: int = 1) -> Message:
    now = time.time_ns()
    return Message(canary.canary_event(now, now, sequence), now, now)


def test_it_keeps_the_contract() -> None:
    decoded = decode([message(1), message(2)])
    assert decoded.rejections == []
    assert decoded.instruments == [canary.INSTRUMENT]
    assert decoded.sources == [canary.SOURCE]
    assert decoded.ticks.sequence.tolist() == [1, 2]


def test_bootstrap_makes_it_flow_and_can_be_repeated() -> None:
    for _ in range(2):
        call_command("bootstrap", verbosity=0)
    reference, slots = load_reference(), build()
    request = Request(canary.canary_topic(), [message()], reference)
    outcome = process(
        request, PartitionState(KnownIdentities(), slots.new_screen_state()), slots, lambda wanted: [None] * len(wanted)
    )
    assert (len(outcome.ticks), outcome.refused, outcome.parked) == (1, [], [])
    assert reference.canary[outcome.ticks.instrument_id].all()
    assert Instrument.objects.count() == Source.objects.count() == 1
    assert Subscription.objects.filter(topic=canary.canary_topic()).count() == 1


def test_bootstrap_respects_what_an_operator_took_away() -> None:
    call_command("bootstrap", verbosity=0)
    SourceBinding.objects.all().delete()
    Subscription.objects.update(is_paused=True)
    call_command("bootstrap", verbosity=0)
    assert not SourceBinding.objects.exists()
    assert not Subscription.objects.filter(is_paused=False).exists()


def test_its_age_is_that_of_the_newest_mark() -> None:
    now = time.time_ns()
    assert canary.canary_age(now) is None
    canary.mark_canary(now - 3 * 10**9)
    assert canary.canary_age(now) == 3.0
    canary.mark_canary(now + 10**9)  # a clock that runs ahead is not an age below zero
    assert canary.canary_age(now) == 0.0


def test_without_valkey_the_newest_published_batch_tells(settings: Any) -> None:
    call_command("bootstrap", verbosity=0)
    now = time.time_ns()
    topic = Subscription.objects.get(topic=canary.canary_topic())
    position = Position.objects.create(partition=topic.topic, subscription=topic)
    values = {"position": position, "ts_received": 1, "ts_processed": 1, "reference_version": 1, "message_count": 1}
    Batch.objects.create(id=1, number=1, clock=now - 5 * 10**9, pub_seq=1, **values)
    Batch.objects.create(id=2, number=2, clock=now - 1 * 10**9, pub_seq=None, **values)  # stored, not published
    settings.CACHES = settings.CACHES | {"default": settings.CACHES["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    canary.mark_canary(now)  # does not raise: ticks flow on without Valkey
    assert canary.canary_age(now) == 5.0
