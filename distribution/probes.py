"""`/livez`, `/readyz`, `/metrics`: is the process alive, does the whole path work, and the figures behind that.

Everybody may ask whether; details and metrics are for the loopback and for bearers of MDI_METRICS_TOKEN, since they name the
topics, the lag and what is broken.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any, Final

import psycopg
import redis
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from integration import alerts, broker, selectors, watermark
from integration.canary import canary_age
from integration.metrics import SCRAPED
from integration.models import Alert, Job, Subscription

_PROBE_TIMEOUT_S: Final = 2
_KEPT_S: Final = 1.0  # however many probes come, the dependencies are asked once a second
_JOB_LIMIT_S: Final = 60.0

OK: Final = "ok"
LATE: Final = "late"
DOWN: Final = "down"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Part:
    """One dependency or stage: its state, the age (seconds) or lag that it is judged by, and words. Not required: only told."""

    name: str
    state: str
    detail: str = ""
    age_s: float | None = None
    lag: int | None = None
    is_required: bool = True


def is_trusted(request: HttpRequest) -> bool:
    """Say whether a request comes from this machine itself, or bears the metrics token.

    A request that was forwarded is never local: behind a proxy every client has the proxy's address.
    """
    token = settings.MDI.metrics_token
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if token and scheme.lower() == "bearer" and constant_time_compare(given.strip().encode(), token.encode()):
        return True
    if any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP")):
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


@never_cache
@require_safe
def livez(_request: HttpRequest) -> HttpResponse:
    """Answer that this process answers; asks nobody else."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 when every part of the path works, else 503; the parts are told to whom may know them."""
    parts = _current_parts()
    is_ready = all(part.state == OK for part in parts if part.is_required)
    body: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
    if is_trusted(request):
        body["parts"] = [asdict(part) for part in parts]
    response = JsonResponse(body, status=200 if is_ready else 503)
    # A probe asks every few seconds: the alert tells once, the log need not tell each time. Django has no public switch.
    response._has_been_logged = True  # type: ignore[attr-defined]  # noqa: SLF001
    return response


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Give all metrics in Prometheus' text format to whom may know them."""
    if not is_trusted(request):
        return HttpResponse(
            "metrics are for the loopback and for bearers of MDI_METRICS_TOKEN\n", status=403, content_type="text/plain"
        )
    text = generate_latest(_process_registry()) + generate_latest(_database_registry())
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)


# -- readiness ---------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_kept: tuple[float, list[Part]] = (0.0, [])


def _current_parts() -> list[Part]:
    global _kept  # noqa: PLW0603 - one answer for all callers of this process
    with _lock:
        asked_at, parts = _kept
        if not parts or time.monotonic() - asked_at > _KEPT_S:
            parts = list(examine())
            _kept = (time.monotonic(), parts)
        return parts


def examine() -> Iterator[Part]:
    """Ask every dependency, then judge the path by what PostgreSQL knows of it."""
    postgres = _postgres()
    yield postgres
    yield _valkey()
    yield _disk()
    problem = broker.health()
    yield Part("pulsar", DOWN if problem else OK, problem)
    if postgres.state == OK:
        now_ns = time.time_ns()
        for judge in (_consumers, _sequencer, _publisher, _canary, _jobs):
            try:
                yield judge(now_ns)
            except DatabaseError as failure:
                yield Part(judge.__name__.removeprefix("_"), UNKNOWN, _first_line(failure))
    else:
        yield from (
            Part(name, UNKNOWN, "PostgreSQL knows, and is down")
            for name in ("consumers", "sequencer", "publisher", "canary")
        )


def _postgres() -> Part:
    # A connection of its own: the pool would wait ten seconds for a server that is gone.
    try:
        with psycopg.connect(settings.DATABASE_URL, connect_timeout=_PROBE_TIMEOUT_S) as probe:
            probe.execute("SELECT 1")
    except psycopg.Error as failure:
        return Part("postgres", DOWN, _first_line(failure))
    return Part("postgres", OK)


def _valkey() -> Part:
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=_PROBE_TIMEOUT_S, socket_connect_timeout=_PROBE_TIMEOUT_S
    )
    try:
        client.ping()
    except (redis.RedisError, OSError) as failure:
        return Part("valkey", DOWN, _first_line(failure))
    finally:
        client.close()
    return Part("valkey", OK)


def _disk() -> Part:
    full = watermark.full_disks()
    return Part("disk", LATE if full else OK, "; ".join(words for _, words in full))


def _consumers(now_ns: int) -> Part:
    facts = selectors.partition_facts(now_ns)
    if not facts:
        return Part("consumers", LATE, "no partition has ever been consumed")
    stale = [fact for fact in facts if fact.is_stale]
    ages = [fact.lease_age_s for fact in facts if fact.lease_age_s is not None and not fact.is_paused]
    waiting = sum(fact.waiting or 0 for fact in stale)
    if stale:
        return Part(
            "consumers",
            LATE,
            f"{len(stale)} of {len(facts)} partitions have messages and no consumer",
            max(ages, default=None),
            waiting,
        )
    return Part("consumers", OK, f"{len(facts)} partitions", min(ages, default=None), waiting)


def _sequencer(now_ns: int) -> Part:
    age = selectors.sequencer_age(now_ns)
    lag = selectors.unpublished(now_ns).batches
    if age is None:
        return Part("sequencer", LATE, "none has ever run, or it was stopped", None, lag)
    return Part("sequencer", OK if age <= alerts.LEASE_LIMIT_S else LATE, "age of its lease", age, lag)


def _publisher(now_ns: int) -> Part:
    pending = selectors.unpublished(now_ns)
    age = pending.oldest_age_s or 0.0
    return Part(
        "publisher",
        OK if age <= alerts.UNPUBLISHED_LIMIT_S else LATE,
        "age of the oldest unpublished batch",
        age,
        pending.messages,
    )


def _canary(now_ns: int) -> Part:
    if not settings.MDI.canary_interval_ms:
        return Part("canary", UNKNOWN, "switched off by MDI_CANARY_INTERVAL_MS", is_required=False)
    age = canary_age(now_ns)
    limit = alerts.CANARY_LIMIT_S + 2 * settings.MDI.canary_interval_ms / 1000
    if age is None:
        return Part("canary", LATE, "none has reached the end of the path yet")
    return Part("canary", OK if age <= limit else LATE, "age of the newest at the end of the path", age)


def _jobs(_now_ns: int) -> Part:
    """Tell of jobs that are due and not run: Celery is away. Ticks flow without it."""
    due = Job.objects.filter(state=Job.State.PENDING, run_after__lte=timezone.now())
    oldest = due.order_by("run_after").values_list("run_after", flat=True).first()
    age = (timezone.now() - oldest).total_seconds() if oldest else 0.0
    return Part(
        "jobs", OK if age <= _JOB_LIMIT_S else LATE, "age of the oldest due job", age, due.count(), is_required=False
    )


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


# -- metrics -----------------------------------------------------------------------------------------------------------


def _process_registry() -> CollectorRegistry:
    """Give the counters of this process, or of all processes that share PROMETHEUS_MULTIPROC_DIR."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def _database_registry() -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DatabaseGauges())
    return registry


class DatabaseGauges(Collector):
    """Gauges that are read from PostgreSQL at the moment of the scrape, so that they are right whoever died."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give one family per name of `SCRAPED`; only `mdi_database_up` 0 when PostgreSQL does not answer."""
        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in SCRAPED.items()}
        is_up = _postgres().state == OK
        if is_up:
            try:
                for read in (_read_partitions, _read_path, _read_quarantine, _read_counts):
                    read(families, time.time_ns())
            except DatabaseError:
                is_up = False
                connection.close()
        if not is_up:
            families = {"mdi_database_up": GaugeMetricFamily("mdi_database_up", SCRAPED["mdi_database_up"][0])}
        families["mdi_database_up"].add_metric([], float(is_up))
        yield from families.values()


Families = dict[str, GaugeMetricFamily]


def _add(families: Families, name: str, value: float | None, *labels: str) -> None:
    if value is not None:
        families[name].add_metric(labels, value)


def _read_partitions(families: Families, now_ns: int) -> None:
    for flow in selectors.partition_flows(now_ns):
        _add(families, "mdi_partition_stored_age_seconds", flow.clock_age_s, flow.partition)
        _add(families, "mdi_partition_lease_age_seconds", flow.lease_age_s, flow.partition)
        _add(families, "mdi_partition_batches", flow.number, flow.partition)
    for subscription in Subscription.objects.all():
        for partition, waiting in (broker.backlog(subscription.topic, subscription.name) or {}).items():
            _add(families, "mdi_partition_waiting_messages", waiting, partition)


def _read_path(families: Families, now_ns: int) -> None:
    pending = selectors.unpublished(now_ns)
    _add(families, "mdi_sequencer_lease_age_seconds", selectors.sequencer_age(now_ns))
    _add(families, "mdi_unnumbered_batches", pending.batches)
    _add(families, "mdi_unsent_messages", pending.messages)
    _add(families, "mdi_unpublished_age_seconds", pending.oldest_age_s or 0.0)
    _add(families, "mdi_canary_age_seconds", canary_age(now_ns))


def _read_quarantine(families: Families, now_ns: int) -> None:
    for found in selectors.quarantine_by_reason():
        _add(families, "mdi_quarantine_waiting_events", found.count, found.code, found.state)
        _add(
            families,
            "mdi_quarantine_oldest_age_seconds",
            now_ns / 1e9 - found.oldest_at.timestamp(),
            found.code,
            found.state,
        )


def _read_counts(families: Families, _now_ns: int) -> None:
    for source, count, _, _ in selectors.open_gaps():
        _add(families, "mdi_open_gaps", count, source)
    open_now = [alert.severity for alert in selectors.open_alerts()]
    for severity in Alert.Severity.values:
        _add(families, "mdi_open_alerts", open_now.count(severity), severity)
    for state, count in selectors.job_counts().items():
        _add(families, "mdi_jobs", count, state)
    _add(families, "mdi_paused_subscriptions", Subscription.objects.filter(is_paused=True).count())


urlpatterns = [
    path("livez", livez, name="livez"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]
