"""Reads for the admin, the probes and the alerts: how far the flow is, what waits, how old it is. Nothing here writes.

Times that come out are ages in seconds (float) or aware datetimes; `now_ns` is ns UTC. Every selector costs a fixed number of
queries, whatever the number of rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from django.db import connection
from django.db.models import Count, F, Min, Q, Sum
from django.utils import timezone

from integration import alerts, broker, clock_watch, watermark
from integration.bars import Bar as StoredBar
from integration.canary import canary_age
from integration.models import (
    Alert,
    Batch,
    Gap,
    Job,
    Lease,
    OutgoingMessage,
    Position,
    QuarantinedEvent,
    Quote,
    Reconciliation,
    Slice,
    Source,
    StoredTick,
    Subscription,
    Trade,
)
from integration.records import BAR_SQL, bar_of

State = QuarantinedEvent.State
OPEN_STATES: Final = (State.QUARANTINED, State.PARKED, State.RELEASE_REQUESTED)
SEQUENCER_LEASE: Final = "sequencer"
RATE_WINDOW_S: Final = 60
# More batches than a partition commits in the window; bounds the scan where it commits very small ones.
_RATE_BATCHES: Final = 5_000
# A page of ticks reads the newest slices only: older ones hold no newer ticks.
_TICK_SLICES: Final = 3

_Tick = TypeVar("_Tick", bound=StoredTick)


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """Events of one reason and state that wait, with the time the oldest came."""

    code: str
    state: str
    count: int
    oldest_at: datetime

    @property
    def count_text(self) -> str:
        """Give the count with thousands separators."""
        return f"{self.count:,}"


@dataclass(frozen=True, slots=True)
class ParkedInstrument:
    """An instrument text that no alias covers, with what waits for it."""

    instrument: str
    count: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class PartitionFlow:
    """A partition's position, and who works on it. Ages in seconds; rate in ticks/s over the last minute.

    `lease_age_s` is None when nobody holds the lease: never taken, or given back.
    """

    subscription_id: int
    partition: str
    number: int
    clock_age_s: float | None
    ticks_per_s: float
    holder: str
    epoch: int
    lease_age_s: float | None


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What is stored and not yet sent: batches without a number, messages without an acknowledgement; age of the oldest."""

    batches: int
    messages: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True)
class TickRow:
    """A stored tick as the instrument page shows it; price and size are exact decimals, ask_* empty for a trade."""

    kind: str
    ts_event: int
    price: object
    size: object
    ask: object
    ask_size: object
    source_id: int
    flags: int


def quarantine_by_reason() -> list[ReasonCount]:
    """Count the events that wait, by reason and state; the longest waiting first."""
    rows = (
        QuarantinedEvent.objects.filter(state__in=OPEN_STATES)
        .values("code", "state")
        .annotate(n=Count("id"), oldest=Min("created_at"))
    )
    return [ReasonCount(row["code"], row["state"], row["n"], row["oldest"]) for row in rows.order_by("oldest")]


def parked_instruments(limit: int = 20) -> list[ParkedInstrument]:
    """Give the instruments that wait for an alias; the longest waiting first."""
    rows = (
        QuarantinedEvent.objects.filter(state=State.PARKED)
        .values("instrument")
        .annotate(n=Count("id"), oldest=Min("created_at"))
    )
    return [ParkedInstrument(row["instrument"], row["n"], row["oldest"]) for row in rows.order_by("oldest")[:limit]]


def open_gaps() -> list[tuple[str, int, int, datetime]]:
    """Give (source, open gaps, missing sequences, oldest) of the sources that have any."""
    rows = (
        Gap.objects.filter(state=Gap.State.OPEN)
        .values("source__code")
        .annotate(n=Count("id"), missing=Sum(F("last") - F("first") + 1), oldest=Min("detected_at"))
        .order_by("oldest")
    )
    return [(row["source__code"], row["n"], row["missing"], row["oldest"]) for row in rows]


def open_alerts() -> list[Alert]:
    """Give the alerts whose cause is not gone, the most severe and oldest first."""
    rank = {alerts.CRITICAL: 0, alerts.WARNING: 1, alerts.INFO: 2}
    return sorted(Alert.objects.filter(closed_at=None)[:500], key=lambda alert: (rank[alert.severity], alert.opened_at))


def job_counts() -> dict[str, int]:
    """Count jobs by state."""
    found = dict(Job.objects.values_list("state").annotate(n=Count("id")))
    return {state: found.get(state, 0) for state in Job.State.values}


def failed_jobs() -> list[tuple[str, int, datetime]]:
    """Give (kind, count, oldest) of the jobs that failed for good."""
    rows = Job.objects.filter(state=Job.State.FAILED).values("kind").annotate(n=Count("id"), oldest=Min("created_at"))
    return [(row["kind"], row["n"], row["oldest"]) for row in rows.order_by("oldest")]


def partition_flows(now_ns: int) -> list[PartitionFlow]:
    """Give every partition's position, rate and lease."""
    leases = {lease.name: lease for lease in Lease.objects.all()}
    rates = _rates(now_ns)
    flows = []
    for position in Position.objects.only("id", "partition", "subscription_id", "number", "clock"):
        lease = leases.get(position.partition)
        flows.append(
            PartitionFlow(
                position.subscription_id,
                position.partition,
                position.number,
                (now_ns - position.clock) / 1e9 if position.clock else None,
                rates.get(position.pk, 0) / RATE_WINDOW_S,
                lease.holder if lease else "",
                lease.epoch if lease else 0,
                _age(lease.renewed_at, now_ns) if lease and lease.holder else None,
            )
        )
    return flows


def _rates(now_ns: int) -> dict[int, int]:
    recent = Batch.objects.filter(
        number__gt=F("position__number") - _RATE_BATCHES, ts_processed__gte=now_ns - RATE_WINDOW_S * 1_000_000_000
    )
    return dict(recent.values_list("position_id").annotate(ticks=Sum("tick_count")))


def unpublished(now_ns: int) -> Unpublished:
    """Tell what is stored and not yet sent; both counts come from partial indexes that hold only the unsent."""
    batches = Batch.objects.filter(pub_seq=None).aggregate(n=Count("id"), first=Min("id"))
    messages = OutgoingMessage.objects.filter(sent_at=None).aggregate(n=Count("id"), first=Min("id"))
    ages = []
    if batches["n"]:
        stored = Batch.objects.filter(id=batches["first"]).values_list("ts_processed", flat=True).first()
        ages.append(0.0 if stored is None else (now_ns - stored) / 1e9)
    if messages["n"]:
        created = OutgoingMessage.objects.filter(id=messages["first"]).values_list("created_at", flat=True).first()
        ages.append(_age(created, now_ns) or 0.0)
    return Unpublished(batches["n"], messages["n"], max(ages, default=None))


def sequencer_age(now_ns: int) -> float | None:
    """Tell the seconds since the sequencer renewed its lease; None when nobody holds it: it never ran, or was stopped."""
    held = Lease.objects.filter(name=SEQUENCER_LEASE).exclude(holder="")
    return _age(held.values_list("renewed_at", flat=True).first(), now_ns)


def alert_facts(now_ns: int) -> alerts.Facts:
    """Read everything that the alerts are judged by."""
    waiting: dict[str, int] = {}
    for reason in quarantine_by_reason():
        waiting[reason.code] = waiting.get(reason.code, 0) + reason.count
    settled = timezone.now() - timedelta(seconds=alerts.GAP_LIMIT_S)
    return alerts.Facts(
        quarantined=sorted(waiting.items()),
        gaps=[(source, missing) for source, _, missing, oldest in open_gaps() if oldest < settled],
        failed_jobs=[(kind, count) for kind, count, _ in failed_jobs()],
        partitions=partition_facts(now_ns),
        sequencer_age_s=sequencer_age(now_ns),
        unpublished_age_s=unpublished(now_ns).oldest_age_s,
        canary_age_s=canary_age(now_ns),
        imbalances=[
            (kept.position.partition, kept.difference)
            for kept in Reconciliation.objects.exclude(difference="").select_related("position")
        ],
        clock_steps=[
            *((item.topic, item.pause_reason) for item in Subscription.objects.exclude(pause_reason="")),
            *clock_watch.skews(),
        ],
        full_disks=watermark.full_disks(),
    )


def partition_facts(now_ns: int) -> list[alerts.PartitionFact]:
    """Give each partition's lease with what waits for it; the broker is asked once a topic that has a lease not fresh."""
    subscriptions = {subscription.pk: subscription for subscription in Subscription.objects.all()}
    facts, is_disk_full = [], bool(watermark.full_disks())
    for flow in partition_flows(now_ns):
        subscription = subscriptions[flow.subscription_id]
        waiting: int | None = 0
        if flow.lease_age_s is None or flow.lease_age_s > alerts.LEASE_LIMIT_S:
            backlog = broker.backlog(subscription.topic, subscription.name)
            waiting = None if backlog is None else backlog.get(flow.partition, 0)
        facts.append(
            alerts.PartitionFact(flow.partition, flow.lease_age_s, waiting, subscription.is_paused or is_disk_full)
        )
    return facts


def newest_ticks(instrument_id: int, limit: int = 20) -> list[TickRow]:
    """Give an instrument's newest trades and quotes out of the newest slices, newest first."""
    rows = [
        TickRow("trade", t.ts_event, t.price, t.size, None, None, t.source_id, t.flags)
        for t in _newest(Trade, "trade", instrument_id, limit)
    ]
    rows += [
        TickRow("quote", q.ts_event, q.bid, q.bid_size, q.ask, q.ask_size, q.source_id, q.flags)
        for q in _newest(Quote, "quote", instrument_id, limit)
    ]
    return sorted(rows, key=lambda row: row.ts_event, reverse=True)[:limit]


def _newest(model: type[_Tick], table: str, instrument_id: int, limit: int) -> Sequence[_Tick]:
    begun = Slice.objects.filter(table=table, start__lte=time.time_ns()).order_by("-start")
    starts = list(begun.values_list("start", flat=True)[:_TICK_SLICES])
    if not starts:
        return []
    found = model._default_manager.filter(instrument_id=instrument_id, ts_event__gte=starts[-1])  # noqa: SLF001 - documented
    return list(found.order_by("-ts_event")[:limit])


def releasable_of_reason(code: str) -> dict[str, int]:
    """Count the events that a release of this reason would take, by source (empty: not readable)."""
    rows = QuarantinedEvent.objects.filter(code=code, state__in=(State.QUARANTINED, State.PARKED))
    return dict(rows.values_list("source").annotate(n=Count("id")).order_by("-n"))


def source_codes() -> list[str]:
    """Give the codes of all registered sources."""
    return list(Source.objects.values_list("code", flat=True))


def parked_under(instrument: str) -> int:
    """Count the events parked under an instrument text of the wire."""
    return QuarantinedEvent.objects.filter(state=State.PARKED, instrument=instrument).count()


def oldest_parked_event(instrument: str) -> int | None:
    """Give the `ts_event` (ns) of the oldest event parked under an instrument text; an alias must cover it."""
    parked = QuarantinedEvent.objects.filter(state=State.PARKED, instrument=instrument)
    oldest: int | None = parked.aggregate(oldest=Min("ts_event"))["oldest"]
    return oldest


def waiting_count() -> int:
    """Count the events that wait for a decision."""
    return QuarantinedEvent.objects.filter(Q(state=State.QUARANTINED) | Q(state=State.PARKED)).count()


def _age(moment: datetime | None, now_ns: int) -> float | None:
    return None if moment is None else (datetime.fromtimestamp(now_ns / 1e9, UTC) - moment).total_seconds()


def bars_as(
    instrument_id: int, source_id: int, timeframe: str, start: int, end: int, *, revision: str | int = "final"
) -> list[StoredBar]:
    """Give the bars that start in [start, end) (ns), in order, as they were `first` published, as they were known at a time, or `final`.

    A time is ns UTC and is held against each revision's `timestamp` of `analysis_data_ready`. A bar that was withdrawn by then is left out, and so
    is a later start of what was not published yet. `source_id` 0 is consolidated, negative delivered. ValueError for another word.
    """
    if isinstance(revision, str) and revision not in ("first", "final"):
        raise ValueError(f"a revision is first, final or a time in ns, was {revision!r}")
    known = "AND ts_published <= %s" if isinstance(revision, int) else ""
    order = "ASC" if revision == "first" else "DESC"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {BAR_SQL} FROM (SELECT DISTINCT ON (start) * FROM integration_bar WHERE instrument_id = %s AND timeframe = %s"  # noqa: S608
            f" AND source_id = %s AND start >= %s AND start < %s AND revision > 0 {known} ORDER BY start, revision {order}) bars"
            " WHERE last_ts <> 0 ORDER BY start",
            [instrument_id, timeframe, source_id, start, end, *([revision] if known else [])],
        )
        return [bar_of(row) for row in cursor.fetchall()]
