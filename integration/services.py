"""Writes of data operations. Each is one transaction and leaves an audit row (django LogEntry) that names who, what and how many.

Reference data is written by the admin's forms, ticks by `integration.storage`; neither passes here. `actor` is None where the
service itself acts (alerts that open and close): then a log line is the audit.
"""

from collections.abc import Iterable
from typing import Any, Final

import structlog
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.db import models, transaction
from django.db.models import QuerySet
from django.utils import timezone
from redis.exceptions import RedisError

from integration import alerts, selectors
from integration.models import Alert, Gap, Job, QuarantinedEvent, Subscription
from integration.reasons import NOT_RELEASABLE

log = structlog.get_logger(__name__)

State = QuarantinedEvent.State
RELEASABLE: Final = (State.QUARANTINED, State.PARKED)
OPERATOR: Final = "operator"
DESK: Final = "desk"
# One audit row per object up to here; above it one row that says how many, since a million rows explain nothing.
_AUDITED_ONE_BY_ONE: Final = 200
_NOTICED_KEY: Final = "alerts:noticed"
_NOTICED_SECONDS: Final = 45  # four rounds of `watch_alerts`


@transaction.atomic
def pause_subscription(*, subscription: Subscription, actor: AbstractBaseUser) -> bool:
    """Stop reading a topic within two seconds; the broker keeps what comes. False when it was paused already."""
    return _set_paused(subscription, True, actor)


@transaction.atomic
def resume_subscription(*, subscription: Subscription, actor: AbstractBaseUser) -> bool:
    """Read a topic again from its stored position. False when it was not paused."""
    return _set_paused(subscription, False, actor)


def _set_paused(subscription: Subscription, is_paused: bool, actor: AbstractBaseUser) -> bool:
    changed = Subscription.objects.filter(pk=subscription.pk, is_paused=not is_paused).update(
        is_paused=is_paused, pause_reason=""
    )
    if not changed:
        return False
    _audit(actor, Subscription.objects.filter(pk=subscription.pk), "Paused." if is_paused else "Resumed.")
    log.info("subscription paused" if is_paused else "subscription resumed", topic=subscription.topic)
    return True


@transaction.atomic
def pause_for(*, topic: str, reason: str) -> bool:
    """Pause a topic for a reason that the service itself has found; an operator resumes it. False when it was paused already."""
    changed = Subscription.objects.filter(topic=topic, is_paused=False).update(
        is_paused=True, pause_reason=reason[:200]
    )
    if changed:
        log.error("subscription paused", topic=topic, reason=reason)
    return bool(changed)


@transaction.atomic
def request_release(*, events: QuerySet[QuarantinedEvent], actor: AbstractBaseUser, note: str = "") -> int:
    """Ask the owning consumers to send events through the pipeline again, in order. Returns how many were waiting.

    Events that were released or confirmed bad before are left alone, and so are those whose reason allows no release.
    """
    return _move(
        events.filter(state__in=RELEASABLE).exclude(code__in=NOT_RELEASABLE),
        State.RELEASE_REQUESTED,
        actor,
        "Release requested",
        note,
    )


def request_release_of_reason(*, code: str, actor: AbstractBaseUser, note: str = "") -> int:
    """Ask for the release of every event that waits for one reason code; returns how many."""
    return request_release(events=QuarantinedEvent.objects.filter(code=code), actor=actor, note=note)


@transaction.atomic
def confirm_bad(*, events: QuerySet[QuarantinedEvent], actor: AbstractBaseUser, note: str = "") -> int:
    """Say that events are wrong and must never flow; the bytes stay until their retention. Returns how many were waiting.

    A release that no consumer has carried out yet is withdrawn by it.
    """
    return _move(
        events.filter(state__in=(*RELEASABLE, State.RELEASE_REQUESTED)),
        State.CONFIRMED_BAD,
        actor,
        "Confirmed bad",
        note,
    )


def _move(events: QuerySet[QuarantinedEvent], state: str, actor: AbstractBaseUser, words: str, note: str) -> int:
    # Locked in order of id, as the consumers lock them, so that the two never wait for each other in a circle.
    ids = list(events.select_for_update().order_by("id").values_list("id", flat=True))
    if not ids:
        return 0
    moved = QuarantinedEvent.objects.filter(id__in=ids)
    values: dict[str, Any] = {"state": state, "updated_at": timezone.now()}
    if note:
        values["note"] = note
    moved.update(**values)
    _audit(actor, moved, f"{words}. {note}".strip(), count=len(ids))
    log.info("quarantine decision", decision=state, events=len(ids), first_id=ids[0], last_id=ids[-1])
    return len(ids)


@transaction.atomic
def acknowledge_alert(*, alert: Alert, actor: AbstractBaseUser) -> bool:
    """Say that somebody looks after an alert; it stays open until its cause is gone. False when somebody did before."""
    now = timezone.now()
    changed = Alert.objects.filter(pk=alert.pk, acknowledged_at=None).update(
        acknowledged_by=actor.get_username(), acknowledged_at=now
    )
    if changed:
        _audit(actor, Alert.objects.filter(pk=alert.pk), "Acknowledged.")
    return bool(changed)


@transaction.atomic
def confirm_gap_lost(*, gap: Gap, actor: AbstractBaseUser, note: str = "") -> bool:
    """Close an open gap as lost at the source: the sequences will never come. False when it was closed before."""
    changed = Gap.objects.filter(pk=gap.pk, state=Gap.State.OPEN).update(state=Gap.State.LOST, closed_at=timezone.now())
    if changed:
        _audit(actor, Gap.objects.filter(pk=gap.pk), f"Confirmed lost at the source. {note}".strip())
    return bool(changed)


@transaction.atomic
def retry_job(*, job: Job, actor: AbstractBaseUser) -> bool:
    """Let a failed job run again from its first attempt. False when it has not failed, or the same work waits already."""
    failed = Job.objects.select_for_update().filter(pk=job.pk, state=Job.State.FAILED)
    if not failed.exists() or Job.objects.filter(kind=job.kind, key=job.key, state=Job.State.PENDING).exists():
        return False
    failed.update(state=Job.State.PENDING, attempts=0, run_after=timezone.now(), finished_at=None)
    _audit(actor, Job.objects.filter(pk=job.pk), "Retry requested.")
    return True


def watch_alerts(*, now_ns: int) -> tuple[int, int]:
    """Open and close alerts by the facts of `now_ns`; returns (opened, closed).

    Since when the path has been ill is kept in the cache, for every worker, and for less than a minute: a service that was
    stopped begins its grace period anew. Without the cache there is no grace.
    """
    found = list(alerts.findings(selectors.alert_facts(now_ns)))
    try:
        found, noticed = alerts.with_grace(found, cache.get(_NOTICED_KEY) or {}, now_ns / 1e9)
        cache.set(_NOTICED_KEY, noticed, _NOTICED_SECONDS)
    except (RedisError, OSError) as problem:
        log.warning("alerts without grace", error=str(problem))
    return reconcile_alerts(found=found)


@transaction.atomic
def reconcile_alerts(*, found: Iterable[alerts.Finding]) -> tuple[int, int]:
    """Open an alert for each due finding that has none, refresh the words of the others, close what is over.

    Returns (opened, closed). Only kinds of `alerts.SEVERITIES` are touched: other apps own theirs.
    """
    wanted = {(finding.kind, finding.key): finding for finding in found}
    open_now = Alert.objects.select_for_update().filter(closed_at=None, kind__in=alerts.SEVERITIES).order_by("id")
    over: list[int] = []
    for alert in open_now:
        finding = wanted.pop((alert.kind, alert.key), None)
        if finding is None:
            over.append(alert.pk)
        elif finding.message != alert.message:
            Alert.objects.filter(pk=alert.pk).update(message=finding.message[:400])
    due = [finding for finding in wanted.values() if finding.is_due]
    for finding in due:
        open_alert(kind=finding.kind, key=finding.key, severity=finding.severity, message=finding.message)
    Alert.objects.filter(pk__in=over).update(closed_at=timezone.now())
    return len(due), len(over)


@transaction.atomic
def open_alert(*, kind: str, key: str, severity: str, message: str) -> Alert:
    """Open an alert, or give the one that is open for this (kind, key)."""
    alert, is_new = Alert.objects.get_or_create(
        kind=kind, key=key[:200], closed_at=None, defaults={"severity": severity, "message": message[:400]}
    )
    if is_new:
        log.warning("alert opened", kind=kind, key=key, severity=severity, message_text=message)
    return alert


@transaction.atomic
def ensure_operators(*, operator_password: str) -> None:
    """Make the superuser `operator` and the viewer `desk` (who has no password and enters by this run's link) exist.

    The operator's password is set only when the account is new or `operator_password` differs from what it has.
    """
    users = get_user_model()
    operator, _ = users.objects.get_or_create(username=OPERATOR, defaults={"is_staff": True, "is_superuser": True})
    if operator_password and not operator.check_password(operator_password):
        operator.set_password(operator_password)
        operator.save(update_fields=["password"])
    desk, is_new = users.objects.get_or_create(username=DESK)
    if is_new:
        desk.set_unusable_password()
        desk.save(update_fields=["password"])


def _audit(actor: AbstractBaseUser, objects: QuerySet[Any], message: str, *, count: int = 1) -> None:
    if count <= _AUDITED_ONE_BY_ONE:
        LogEntry.objects.log_actions(actor.pk, objects, CHANGE, message)
        return
    model: type[models.Model] = objects.model
    LogEntry.objects.create(
        user_id=actor.pk,
        content_type=ContentType.objects.get_for_model(model),
        object_repr=f"{count:,} {model._meta.verbose_name_plural}"[:200],  # noqa: SLF001 - Django's documented API
        action_flag=CHANGE,
        change_message=message,
    )
