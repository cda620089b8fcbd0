"""Work that is not per tick: job rows are claimed, run, retried. Celery (or a test) only calls `run_due_jobs` and `plan_jobs`.

A running job is held by a session-level advisory lock on its id, so that a worker's death frees it at once and no timeout
guesses. Handlers are idempotent: any of them may run twice. Needs session pooling, not a transaction-pooling proxy.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Final

import numpy as np
import structlog
from django.db import Error as DatabaseError
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from integration import alerts, archive, reconciliation, services
from integration.display import counted
from integration.market.errors import FatalError, SkippableError
from integration.metrics import record_job
from integration.models import Job, QuarantinedEvent, Slice
from integration.retention import run as delete_old
from integration.slices import NS, WIDTHS_NS, SliceMap

log = structlog.get_logger(__name__)

Handler = Callable[[str], None]
MAX_ATTEMPTS: Final = 8  # with the back-off below: about 35 minutes
_LOCK_SPACE: Final = 0x4D4A  # "MJ"; the first half of the advisory lock's two numbers
_BACK_OFF_S: Final = (5, 10, 20, 60, 120, 300, 600, 900)
# Slices are made this far ahead, once a minute; not further, since their width follows the rate of the last minutes.
SLICE_HORIZON_S: Final = 300
SLICE_SETTLED_S: Final = 15 * 60  # a slice is finished when its end lies this far back: late ticks are rare then
_SLICES_PER_PLAN: Final = 50
TABLES: Final = {"trade": "price, size", "quote": "bid, ask"}

HANDLERS: Final[dict[str, Handler]] = {}


def handles(kind: str) -> Callable[[Handler], Handler]:
    """Register the handler of a kind of job; it is called with the job's key and must be idempotent."""

    def register(handler: Handler) -> Handler:
        if kind in HANDLERS:
            raise ValueError(f"a handler for this kind exists already, was {kind!r}")
        HANDLERS[kind] = handler
        return handler

    return register


# -- running -----------------------------------------------------------------------------------------------------------


def run_due_jobs(limit: int = 50) -> int:
    """Run jobs that are due, one after the other, until none is or `limit` is reached; returns how many ran."""
    requeue_orphans()
    ran = 0
    while ran < limit and (job := claim_job()) is not None:
        run_job(job)
        ran += 1
    return ran


def claim_job() -> Job | None:
    """Take the oldest due job that nobody else holds; the caller must pass it to `run_job`, which frees it."""
    with transaction.atomic():
        due = Job.objects.select_for_update(skip_locked=True).filter(
            state=Job.State.PENDING, run_after__lte=timezone.now()
        )
        job = due.order_by("run_after", "id").first()
        if job is None or not _hold(job.pk):
            return None
        job.state, job.started_at, job.attempts = Job.State.RUNNING, timezone.now(), job.attempts + 1
        job.save(update_fields=["state", "started_at", "attempts"])
    return job


def run_job(job: Job) -> None:
    """Run a claimed job to done, to a later attempt, or to failed; its failure never raises here."""
    began = time.monotonic()
    with structlog.contextvars.bound_contextvars(job_id=job.pk, job_kind=job.kind):
        try:
            outcome = _attempt(job)
        finally:
            _free(job.pk)
        record_job(job.kind, outcome, time.monotonic() - began)


def _attempt(job: Job) -> str:
    try:
        _handler(job.kind)(job.key)
    except Exception as problem:  # noqa: BLE001 - the one table from class to action of this loop is `_settle_failure`
        connection.close_if_unusable_or_obsolete()
        return _settle_failure(job, problem)
    Job.objects.filter(pk=job.pk).update(state=Job.State.DONE, finished_at=timezone.now(), error="")
    return "done"


def _handler(kind: str) -> Handler:
    if kind not in HANDLERS:
        raise SkippableError(f"no handler for this kind, was {kind!r}", code="job_kind")
    return HANDLERS[kind]


def _settle_failure(job: Job, problem: Exception) -> str:
    text = f"{type(problem).__name__}: {problem}"[:2_000]
    if isinstance(problem, FatalError | SkippableError) or job.attempts >= MAX_ATTEMPTS:
        log.error("job failed for good", key=job.key, attempts=job.attempts, error=text)
        Job.objects.filter(pk=job.pk).update(state=Job.State.FAILED, finished_at=timezone.now(), error=text)
        return "failed"
    log.warning("job failed, will be tried again", key=job.key, attempts=job.attempts, error=text)
    _back_to_waiting(job.pk, job.attempts, text)
    return "retried"


def _back_to_waiting(job_id: int, attempts: int, text: str) -> None:
    delay = _BACK_OFF_S[min(attempts, len(_BACK_OFF_S)) - 1]
    try:
        with transaction.atomic():
            Job.objects.filter(pk=job_id).update(
                state=Job.State.PENDING, run_after=timezone.now() + timedelta(seconds=delay), error=text
            )
    except IntegrityError:
        # The same work was asked for again meanwhile; that row does it.
        Job.objects.filter(pk=job_id).update(
            state=Job.State.DONE, finished_at=timezone.now(), error=f"replaced by a newer row of the same work; {text}"
        )


def requeue_orphans() -> int:
    """Put jobs back whose worker died: marked as running, but held by nobody. Returns how many."""
    found = 0
    for job_id, attempts in list(Job.objects.filter(state=Job.State.RUNNING).values_list("id", "attempts")):
        if not _hold(job_id):
            continue
        try:
            # Looked at again under the lock: it may have ended between the two statements.
            if Job.objects.filter(pk=job_id, state=Job.State.RUNNING).exists():
                log.warning("job had lost its worker", job_id=job_id, attempts=attempts)
                _settle_orphan(job_id, attempts)
                found += 1
        finally:
            _free(job_id)
    return found


def _settle_orphan(job_id: int, attempts: int) -> None:
    if attempts >= MAX_ATTEMPTS:
        Job.objects.filter(pk=job_id).update(
            state=Job.State.FAILED, finished_at=timezone.now(), error="its worker died each time"
        )
    else:
        _back_to_waiting(job_id, 1, "its worker died")


def _hold(job_id: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [_LOCK_SPACE, job_id & 0x7FFFFFFF])
        return bool(cursor.fetchone()[0])


def _free(job_id: int) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_LOCK_SPACE, job_id & 0x7FFFFFFF])
    except DatabaseError:
        connection.close()  # a lost connection has lost its locks too


# -- planning ----------------------------------------------------------------------------------------------------------


def plan_jobs() -> None:
    """Write the rows of work that only time makes necessary: slices ahead, finished slices, retention."""
    now = timezone.now()
    Job.enqueue(kind="make_slices", key="ahead")
    Job.enqueue(kind="reconcile", key="new batches")
    for table, start in _finished_slices(time.time_ns() - SLICE_SETTLED_S * NS):
        Job.enqueue(kind="index_slice", key=f"{table}:{start}")
    day = f"{now:%Y-%m-%d}"
    for kind in ("plan_archive", "retention"):
        if not Job.objects.filter(kind=kind, key=day).exists():
            Job.enqueue(kind=kind, key=day)


def _finished_slices(before_ns: int) -> list[tuple[str, int]]:
    failed = Job.objects.filter(kind="index_slice", state=Job.State.FAILED).values_list("key", flat=True)
    stuck = set(failed)
    finished = Slice.objects.filter(indexed_at=None, end__lte=before_ns).order_by("end").values_list("table", "start")
    return [(table, start) for table, start in finished[:_SLICES_PER_PLAN] if f"{table}:{start}" not in stuck]


# -- handlers ----------------------------------------------------------------------------------------------------------


@handles("make_slices")
def make_slices(_key: str) -> None:
    """Make the slices of the next minutes, so that no consumer has to wait for one."""
    now = time.time_ns()
    ahead = np.arange(now, now + SLICE_HORIZON_S * NS, min(WIDTHS_NS), dtype=np.int64)
    for table in TABLES:
        slices = SliceMap(table)
        slices.load()
        slices.ensure(ahead)


@handles("index_slice")
def index_slice(key: str) -> None:
    """Index a finished slice without stopping its writers, then freeze it; `key` is TABLE:START."""
    table, _, start = key.partition(":")
    if table not in TABLES:
        raise SkippableError(f"no table of slices, was {table!r}", code="job_key")
    piece = Slice.objects.filter(table=table, start=start).first()
    if piece is None:
        return  # dropped by retention meanwhile
    relation, index = connection.ops.quote_name(piece.relation), connection.ops.quote_name(f"{piece.relation}_idx")
    with _unlimited_statements():
        if _is_invalid(f"{piece.relation}_idx"):
            _execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")  # what a crash in the middle leaves
        _execute(
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {relation} (instrument_id, ts_event) INCLUDE ({TABLES[table]})"
        )
        if table == "trade":
            # Corrections name trades by id: a hundredth of a tree's size, and enough to pass over all pages but one or two.
            named = connection.ops.quote_name(f"{piece.relation}_id")
            if _is_invalid(f"{piece.relation}_id"):
                _execute(f"DROP INDEX CONCURRENTLY IF EXISTS {named}")
            _execute(
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {named} ON {relation} USING brin (trade_id int8_bloom_ops)"
                " WITH (pages_per_range = 32)"
            )
        _execute(f"VACUUM (FREEZE, ANALYZE) {relation}")
    Slice.objects.filter(pk=piece.pk).update(indexed_at=timezone.now())


def _is_invalid(index: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [connection.ops.quote_name(index)]
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@contextmanager
def _unlimited_statements() -> Iterator[None]:
    _execute("SET statement_timeout = 0")
    try:
        yield
    finally:
        if connection.connection is not None and not connection.connection.closed:
            _execute("RESET statement_timeout")


@handles("reconcile")
def reconcile(_key: str) -> None:
    """Hold the batches since the last time against the tables; a difference opens an alert and stays until a person has looked."""
    balance = reconciliation.reconcile(now_ns=time.time_ns())
    if not balance.is_even:
        log.error("does not add up", differences=balance.differences, more=balance.more)


@handles("notify_quarantine")
def notify_quarantine(code: str) -> None:
    """Open the alert of a reason code that has just appeared; `watch_alerts` keeps its count and closes it."""
    waiting = QuarantinedEvent.objects.filter(code=code, state__in=("quarantined", "parked")).count()
    if waiting:
        words = f"{counted(waiting, 'event waits', 'events wait')} in quarantine for the reason {code}"
        found = alerts.Finding(alerts.QUARANTINE, code, words)
        services.open_alert(kind=found.kind, key=found.key, severity=found.severity, message=found.message)


@handles("retention")
def retention(_key: str) -> None:
    """Delete what is older than the settings allow; nothing that is still needed or waits goes."""
    delete_old()


@handles("plan_archive")
def plan_archive(_key: str) -> None:
    """Ask for the move of every closed day that has ticks in PostgreSQL."""
    for table, day in archive.closed_days(time.time_ns()):
        Job.enqueue(kind="archive_day", key=f"{table}:{day}")


@handles("archive_day")
def archive_day(key: str) -> None:
    """Move a closed day to the lake; `key` is TABLE:DAY."""
    table, _, day = key.partition(":")
    if table not in TABLES:
        raise SkippableError(f"no table of ticks, was {table!r}", code="job_key")
    archive.archive_day(table, date.fromisoformat(day))
