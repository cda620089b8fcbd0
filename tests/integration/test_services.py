"""Decisions of data operations: what changes, what does not, and what the audit trail says."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.utils import timezone

from integration import alerts, services
from integration.models import Alert, Gap, Job, Lease, QuarantinedEvent, Subscription
from tests.integration import desk

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_cache(settings: Any) -> None:
    """What was noticed, and which clock was set, is kept in the cache, which tests that run at the same time share."""
    settings.CACHES = {"default": settings.CACHES["default"] | {"KEY_PREFIX": uuid4().hex}}


State = QuarantinedEvent.State


def audit() -> list[str]:
    return list(LogEntry.objects.order_by("id").values_list("change_message", flat=True))


def states() -> dict[int, str]:
    return dict(QuarantinedEvent.objects.values_list("id", "state"))


def test_pause_and_resume_say_whether_they_changed_anything() -> None:
    actor, topic = desk.operator(), desk.subscription()
    assert services.pause_subscription(subscription=topic, actor=actor)
    assert not services.pause_subscription(subscription=topic, actor=actor)
    assert Subscription.objects.get().is_paused
    assert services.resume_subscription(subscription=topic, actor=actor)
    assert not Subscription.objects.get().is_paused
    assert audit() == ["Paused.", "Resumed."]


def test_release_takes_what_waits_and_may_be_released() -> None:
    actor = desk.operator()
    waiting, parked = desk.quarantined(), desk.quarantined("unknown_instrument", state=State.PARKED)
    others = [
        desk.quarantined(state=State.RELEASED),
        desk.quarantined(state=State.CONFIRMED_BAD),
        desk.quarantined("conflict"),
        desk.quarantined("poison"),
    ]
    before = states()
    assert services.request_release(events=QuarantinedEvent.objects.all(), actor=actor, note="sender was right") == 2
    after = states()
    assert after[waiting.pk] == after[parked.pk] == State.RELEASE_REQUESTED
    assert {other.pk: after[other.pk] for other in others} == {other.pk: before[other.pk] for other in others}
    assert audit() == ["Release requested. sender was right"] * 2
    assert QuarantinedEvent.objects.get(pk=waiting.pk).note == "sender was right"
    assert services.request_release(events=QuarantinedEvent.objects.all(), actor=actor) == 0


def test_release_of_a_reason_leaves_other_reasons() -> None:
    actor = desk.operator()
    mine, other = desk.quarantined("crossed"), desk.quarantined("future")
    assert services.request_release_of_reason(code="crossed", actor=actor) == 1
    assert states() == {mine.pk: State.RELEASE_REQUESTED, other.pk: State.QUARANTINED}


def test_a_large_decision_is_one_audit_row_that_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_AUDITED_ONE_BY_ONE", 2)
    actor = desk.operator()
    for _ in range(3):
        desk.quarantined()
    services.request_release_of_reason(code="price_sign", actor=actor)
    entry = LogEntry.objects.get()
    assert entry.object_repr.startswith("3 ")
    assert entry.user_id == actor.pk


def test_confirm_bad_withdraws_a_release_that_nobody_carried_out() -> None:
    actor = desk.operator()
    event = desk.quarantined(state=State.RELEASE_REQUESTED)
    done = desk.quarantined(state=State.RELEASED)
    before = QuarantinedEvent.objects.get(pk=event.pk).updated_at
    assert services.confirm_bad(events=QuarantinedEvent.objects.all(), actor=actor) == 1
    assert states() == {event.pk: State.CONFIRMED_BAD, done.pk: State.RELEASED}
    assert QuarantinedEvent.objects.get(pk=event.pk).updated_at > before


def test_a_decision_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no audit, no decision")

    actor, event = desk.operator(), desk.quarantined()
    monkeypatch.setattr(services, "_audit", fail)
    with pytest.raises(RuntimeError):
        services.request_release(events=QuarantinedEvent.objects.all(), actor=actor)
    assert states() == {event.pk: State.QUARANTINED}


def test_gap_alert_and_job_decisions_are_taken_once() -> None:
    actor = desk.operator()
    gap = Gap.objects.create(source=desk.source(), channel=0, session=0, first=5, last=9)
    alert = Alert.objects.create(kind="gap", key="simulated", message="m")
    job = Job.objects.create(kind="retention", key="d", state=Job.State.FAILED, attempts=8)
    for _ in range(2):
        services.confirm_gap_lost(gap=gap, actor=actor)
        services.acknowledge_alert(alert=alert, actor=actor)
        services.retry_job(job=job, actor=actor)
    gap.refresh_from_db()
    alert.refresh_from_db()
    job.refresh_from_db()
    assert (gap.state, gap.closed_at is not None) == (Gap.State.LOST, True)
    assert (alert.acknowledged_by, alert.closed_at) == (actor.get_username(), None)
    assert (job.state, job.attempts) == (Job.State.PENDING, 0)
    assert len(audit()) == 3


def test_a_failed_job_is_not_retried_while_the_same_work_waits() -> None:
    job = Job.objects.create(kind="retention", key="d", state=Job.State.FAILED)
    Job.objects.create(kind="retention", key="d")
    assert not services.retry_job(job=job, actor=desk.operator())


def test_alerts_open_once_follow_the_facts_and_close() -> None:
    foreign = Alert.objects.create(kind="licence_ends", key="a", message="another app's")
    found = [
        alerts.Finding(alerts.GAP, "simulated", "3 sequences"),
        alerts.Finding(alerts.CANARY_LATE, "canary", "20 s"),
    ]
    assert services.reconcile_alerts(found=found) == (2, 0)
    found[0] = alerts.Finding(alerts.GAP, "simulated", "4 sequences")
    assert services.reconcile_alerts(found=found) == (0, 0)
    assert Alert.objects.get(kind=alerts.GAP).message == "4 sequences"
    assert services.reconcile_alerts(found=found[:1]) == (0, 1)
    assert Alert.objects.get(kind=alerts.CANARY_LATE).closed_at is not None
    assert services.reconcile_alerts(found=found) == (1, 0)
    foreign.refresh_from_db()
    assert foreign.closed_at is None


def test_what_is_in_its_grace_opens_nothing_and_closes_nothing() -> None:
    waiting = alerts.Finding(alerts.CONSUMER_STALE, "p-0", "no consumer", is_due=False)
    assert services.reconcile_alerts(found=[waiting]) == (0, 0)
    assert services.reconcile_alerts(found=[replace(waiting, is_due=True)]) == (1, 0)
    # After a restart the grace begins again; what was open is not closed by that.
    assert services.reconcile_alerts(found=[replace(waiting, message="still none")]) == (0, 0)
    assert Alert.objects.get(closed_at=None).message == "still none"
    assert services.reconcile_alerts(found=[]) == (0, 1)


def old_lease() -> None:
    """Leave the sequencer's lease as a service does that was killed an hour ago."""
    Lease.objects.create(name="sequencer", epoch=1, holder="h", renewed_at=timezone.now() - timedelta(hours=1))


def test_a_service_that_starts_with_old_leases_is_given_time() -> None:
    cache.delete(services._NOTICED_KEY)
    old_lease()
    now, grace = time.time_ns(), round(alerts.GRACE_S[alerts.SEQUENCER_STALE] * 1e9)
    assert services.watch_alerts(now_ns=now) == (0, 0)
    assert services.watch_alerts(now_ns=now + grace // 2) == (0, 0)
    assert services.watch_alerts(now_ns=now + grace) == (1, 0)
    assert services.watch_alerts(now_ns=now + 2 * grace) == (0, 0)
    assert Alert.objects.get().kind == alerts.SEQUENCER_STALE
    # Stopped for so long that the cache has forgotten: what was open stays, and stays one.
    cache.delete(services._NOTICED_KEY)
    assert services.watch_alerts(now_ns=now + 99 * grace) == (0, 0)
    assert Alert.objects.filter(closed_at=None).count() == 1


def test_without_the_cache_alerts_open_at_once(settings: Any) -> None:
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    old_lease()
    assert services.watch_alerts(now_ns=time.time_ns()) == (1, 0)


def test_operators_are_made_once_and_the_password_is_set_when_it_differs() -> None:
    services.ensure_operators(operator_password="first")
    operator = get_user_model().objects.get(username=services.OPERATOR)
    viewer = get_user_model().objects.get(username=services.DESK)
    assert operator.check_password("first")
    assert operator.is_superuser
    assert not viewer.has_usable_password()
    assert not viewer.is_staff
    kept = operator.password
    services.ensure_operators(operator_password="first")
    services.ensure_operators(operator_password="")
    operator.refresh_from_db()
    assert operator.password == kept
    services.ensure_operators(operator_password="second")
    operator.refresh_from_db()
    assert operator.check_password("second")
