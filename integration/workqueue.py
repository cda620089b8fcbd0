"""The admin's first page: what needs a decision, and whether the path is well; joins selectors with links, writes nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from integration import alerts, selectors
from integration.canary import canary_age
from integration.display import age_text, counted, rate_text, since_text, topic_text
from integration.models import QuarantinedEvent, Subscription
from integration.reasons import reason

State = QuarantinedEvent.State


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the queue: what waits, how many, since when, where to decide, and how urgent (critical, warning, info)."""

    tone: str
    kind: str
    title: str
    detail: str
    count: int
    age: str
    url: str
    step: str
    title_full: str = ""

    @property
    def count_text(self) -> str:
        """Give the count with thousands separators."""
        return f"{self.count:,}"


@dataclass(frozen=True, slots=True)
class Vital:
    """One figure of the path: its name, its value with unit, and whether it is well, watch or bad."""

    name: str
    value: str
    tone: str
    detail: str


def dashboard(_request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the work queue and the vital signs to the index page (Unfold's DASHBOARD_CALLBACK)."""
    now_ns = time.time_ns()
    context |= {
        "work": list(work_items(timezone.now())),
        "vitals": list(vitals(now_ns)),
        "groups": _groups(context["app_list"]),
    }
    return context


def waiting_badge(_request: HttpRequest) -> str:
    """Give the number beside the sidebar's quarantine link; empty when nothing waits."""
    count = selectors.waiting_count()
    return f"{count:,}" if count else ""


def work_items(now: datetime) -> Iterator[Item]:
    """Give everything that waits for a person, the most urgent kinds first."""
    yield from _alert_items(now)
    yield from _quarantine_items(now)
    yield from _parked_items(now)
    yield from _gap_items(now)
    yield from _job_items(now)
    for subscription in Subscription.objects.filter(is_paused=True):
        url = reverse("admin:integration_subscription_change", args=[subscription.pk])
        title = topic_text(subscription.topic)
        yield Item(
            "info",
            "Paused",
            title,
            "The broker keeps what comes until it is resumed.",
            1,
            "",
            url,
            "Resume",
            subscription.topic,
        )


def _alert_items(now: datetime) -> Iterator[Item]:
    # The alerts of quarantine, gaps and jobs have lines of their own below, with the place to decide.
    told_below = {alerts.QUARANTINE, alerts.GAP, alerts.JOB_FAILED}
    for alert in selectors.open_alerts():
        if alert.kind not in told_below:
            by = f" Acknowledged by {alert.acknowledged_by}." if alert.acknowledged_by else ""
            url = reverse("admin:integration_alert_change", args=[alert.pk])
            yield Item(
                alert.severity,
                "Alert",
                alert.kind,
                f"{alert.message}.{by}",
                1,
                since_text(alert.opened_at, now),
                url,
                "Open",
            )


def _quarantine_items(now: datetime) -> Iterator[Item]:
    for found in selectors.quarantine_by_reason():
        if found.state == State.PARKED:
            continue
        url = _list("quarantinedevent", code=found.code, state=found.state)
        if found.state == State.RELEASE_REQUESTED:
            words = "Their consumer has not taken them up yet: is it running, or its topic paused?"
            yield Item("info", "Release", found.code, words, found.count, since_text(found.oldest_at, now), url, "Look")
        else:
            yield Item(
                "warning",
                "Quarantine",
                found.code,
                reason(found.code).words,
                found.count,
                since_text(found.oldest_at, now),
                url,
                "Decide",
            )


def _parked_items(now: datetime) -> Iterator[Item]:
    for parked in selectors.parked_instruments():
        url = alias_url(parked.instrument)
        words = "No alias covers it. Its events wait, in order, and flow when one is added."
        yield Item(
            "warning",
            "Parked",
            parked.instrument,
            words,
            parked.count,
            since_text(parked.oldest_at, now),
            url,
            "Add alias",
        )


def _gap_items(now: datetime) -> Iterator[Item]:
    for source, count, missing, oldest in selectors.open_gaps():
        url = _list("gap", state__exact="open", q=source)
        yield Item(
            "warning",
            "Gap",
            source,
            f"{counted(missing, 'sequence has', 'sequences have')} not come, in {counted(count, 'gap', 'gaps')}.",
            missing,
            since_text(oldest, now),
            url,
            "Decide",
        )


def _job_items(now: datetime) -> Iterator[Item]:
    for kind, count, oldest in selectors.failed_jobs():
        url = _list("job", state__exact="failed", kind=kind)
        yield Item(
            "warning",
            "Job",
            kind,
            "Failed for good; the row has the error.",
            count,
            since_text(oldest, now),
            url,
            "Look",
        )


def vitals(now_ns: int) -> Iterator[Vital]:
    """Give the figures that say whether the path works, from the way in to the way out."""
    flows = selectors.partition_flows(now_ns)
    rate = sum(flow.ticks_per_s for flow in flows)
    yield Vital("Stored", f"{rate_text(rate)} ticks/s", "well", "over the last minute")
    facts = selectors.partition_facts(now_ns)
    held = sum(fact.lease_age_s is not None and fact.lease_age_s <= alerts.LEASE_LIMIT_S for fact in facts)
    stale = sum(fact.is_stale for fact in facts)
    words = (
        f"{stale} with messages waiting and no consumer" if stale else "by a consumer; the others have nothing waiting"
    )
    yield Vital("Partitions", f"{held} of {len(facts)} held", "bad" if stale else "well" if facts else "watch", words)
    yield _aged(
        "Sequencer", selectors.sequencer_age(now_ns), alerts.LEASE_LIMIT_S, "since it renewed its lease", "never ran"
    )
    pending = selectors.unpublished(now_ns)
    words = f"{pending.batches:,} batches without number, {pending.messages:,} messages not sent"
    age = pending.oldest_age_s
    yield Vital(
        "Unpublished",
        age_text(age) if age is not None else "nothing",
        "bad" if (age or 0) > alerts.UNPUBLISHED_LIMIT_S else "well",
        words,
    )
    yield _aged("Canary", canary_age(now_ns), alerts.CANARY_LIMIT_S, "old at the end of the path", "never seen")


def _aged(name: str, age: float | None, limit: float, words: str, never: str) -> Vital:
    if age is None:
        return Vital(name, never, "watch", "")
    return Vital(name, age_text(age), "bad" if age > limit else "well", words)


def alias_url(instrument: str) -> str:
    """Link to the form for a new alias of an instrument text of the wire, filled in."""
    scheme, colon, value = instrument.partition(":")
    query = {"scheme": scheme, "value": value} if colon else {"scheme": "TICKER", "value": instrument}
    return f"{reverse('admin:integration_instrumentalias_add')}?{urlencode(query)}"


def _list(model: str, **query: str) -> str:
    return f"{reverse(f'admin:integration_{model}_changelist')}?{urlencode(query)}"


_GROUPS = {
    "Reference": ("Venue", "Issuer", "Instrument", "InstrumentAlias", "Source"),
    "Flow": ("Subscription", "Batch", "OutgoingMessage", "Gap", "Job", "Alert"),
    "Quarantine": ("QuarantinedEvent",),
}


def _groups(apps: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    models = {model["object_name"]: model for app in apps for model in app["models"]}
    named = [(title, [models.pop(name) for name in names if name in models]) for title, names in _GROUPS.items()]
    return [(title, found) for title, found in [*named, ("Access and other", list(models.values()))] if found]
