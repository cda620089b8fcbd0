"""Job rows on real PostgreSQL: claimed once, freed by death, tried again, given up; and what each kind does."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from django.db import DatabaseError, connection, connections
from django.utils import timezone

from integration import jobs
from integration.market.errors import FatalError, RetriableError, SkippableError
from integration.models import Alert, Batch, Job, OutgoingMessage, Position, QuarantinedEvent, SequencerState, Slice
from integration.slices import SliceMap
from tests.integration import desk

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    def install(function: Callable[[str], None]) -> None:
        monkeypatch.setitem(jobs.HANDLERS, "test", function)

    return install


@pytest.fixture(autouse=True)
def no_slices() -> Iterator[None]:
    yield
    with connection.cursor() as cursor:
        for piece in Slice.objects.all():
            cursor.execute(f'DROP TABLE IF EXISTS "{piece.relation}"')
    Slice.objects.all().delete()


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_many_workers_run_each_job_once(handler: Any) -> None:
    ran: Counter[str] = Counter()
    lock = threading.Lock()

    def work(key: str) -> None:
        with lock:
            ran[key] += 1

    handler(work)
    for number in range(30):
        Job.enqueue(kind="test", key=str(number))
    for thread in [in_thread(jobs.run_due_jobs) for _ in range(4)]:
        thread.join()
    assert ran == Counter({str(number): 1 for number in range(30)})
    assert set(Job.objects.values_list("state", flat=True)) == {Job.State.DONE}


def test_the_same_work_is_one_row_while_it_waits(handler: Any) -> None:
    handler(lambda _: None)
    Job.enqueue(kind="test", key="a")
    Job.enqueue(kind="test", key="a")
    assert Job.objects.count() == 1
    jobs.run_due_jobs()
    Job.enqueue(kind="test", key="a")
    assert Job.objects.count() == 2


def test_a_job_whose_worker_lives_is_left_alone_and_one_whose_worker_died_runs_again(handler: Any) -> None:
    began, finish = threading.Event(), threading.Event()
    ran = []

    def work(key: str) -> None:
        ran.append(key)
        began.set()
        assert finish.wait(20)

    handler(work)
    Job.enqueue(kind="test", key="slow")
    thread = in_thread(jobs.run_due_jobs)
    assert began.wait(20)
    assert jobs.requeue_orphans() == 0
    assert Job.objects.get().state == Job.State.RUNNING
    finish.set()
    thread.join()
    # A worker that died leaves the row as it was and no lock.
    Job.objects.update(state=Job.State.RUNNING, finished_at=None)
    assert jobs.requeue_orphans() == 1
    job = Job.objects.get()
    assert (job.state, job.error) == (Job.State.PENDING, "its worker died")
    Job.objects.update(run_after=timezone.now())
    jobs.run_due_jobs()
    assert ran == ["slow", "slow"]
    assert Job.objects.get().state == Job.State.DONE


def test_a_job_that_kills_its_worker_each_time_is_given_up() -> None:
    Job.objects.create(kind="test", key="a", state=Job.State.RUNNING, attempts=jobs.MAX_ATTEMPTS)
    jobs.requeue_orphans()
    assert Job.objects.get().state == Job.State.FAILED


def test_no_lock_stays_behind(handler: Any) -> None:
    handler(lambda _: None)
    Job.enqueue(kind="test", key="a")
    jobs.run_due_jobs()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        assert cursor.fetchone() == (0,)


def test_a_failure_is_tried_again_later_and_given_up_in_the_end(handler: Any) -> None:
    def work(key: str) -> None:
        raise RetriableError("a server is away")

    handler(work)
    Job.enqueue(kind="test", key="a")
    for attempt in range(1, jobs.MAX_ATTEMPTS):
        assert jobs.run_due_jobs() == 1
        job = Job.objects.get()
        assert (job.state, job.attempts) == (Job.State.PENDING, attempt)
        assert job.run_after > timezone.now()
        assert "a server is away" in job.error
        assert jobs.run_due_jobs() == 0  # not due yet
        Job.objects.update(run_after=timezone.now())
    jobs.run_due_jobs()
    assert Job.objects.get().state == Job.State.FAILED


@pytest.mark.parametrize("problem", [SkippableError("never"), FatalError("never")])
def test_what_can_never_work_is_not_tried_again(handler: Any, problem: Exception) -> None:
    def work(key: str) -> None:
        raise problem

    handler(work)
    Job.enqueue(kind="test", key="a")
    jobs.run_due_jobs()
    job = Job.objects.get()
    assert (job.state, job.attempts) == (Job.State.FAILED, 1)


def test_a_kind_without_handler_fails_with_its_name() -> None:
    Job.enqueue(kind="nobody_knows", key="a")
    jobs.run_due_jobs()
    job = Job.objects.get()
    assert job.state == Job.State.FAILED
    assert "nobody_knows" in job.error


def test_a_broken_connection_is_a_failed_attempt_and_no_more(handler: Any) -> None:
    def work(key: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    handler(work)
    Job.enqueue(kind="test", key="a")
    jobs.run_due_jobs()
    job = Job.objects.get()
    assert (job.state, job.attempts) == (Job.State.PENDING, 1)


def test_a_retry_gives_way_to_a_newer_row_of_the_same_work(handler: Any) -> None:
    def work(key: str) -> None:
        Job.enqueue(kind="test", key=key)  # asked for again while it runs
        raise RetriableError("away")

    handler(work)
    Job.enqueue(kind="test", key="a")
    jobs.run_due_jobs(limit=1)
    first, second = Job.objects.order_by("id")
    assert (first.state, second.state) == (Job.State.DONE, Job.State.PENDING)
    assert "replaced" in first.error


# -- kinds ---------------------------------------------------------------------------------------------------------------


def made_slice(rows: int = 500) -> Slice:
    now = time.time_ns() - 3_600 * 1_000_000_000
    slices = SliceMap("trade")
    slices.load()
    slices.ensure(np.array([now], np.int64))
    piece = Slice.objects.filter(table="trade", start__lte=now, end__gt=now).get()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO integration_trade (ts_event, ts_publish, instrument_id, source_id, channel, session, sequence, batch_id,"
            " conditions, flags, session_date, price, size, trade_id)"
            " SELECT %s + n, 0, n %% 7, 1, 0, 0, n, 1, 0, 0, '2026-01-05', 1, 1, 0 FROM generate_series(1, %s) AS n",
            [now, rows],
        )
    return piece


def indexes(piece: Slice) -> dict[str, bool]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = to_regclass(%s)",
            [piece.relation],
        )
        return dict(cursor.fetchall())


def test_a_finished_slice_is_indexed_once_and_frozen() -> None:
    piece = made_slice()
    for _ in range(2):
        jobs.index_slice(f"trade:{piece.start}")
    piece.refresh_from_db()
    assert piece.indexed_at is not None
    assert indexes(piece)[f"{piece.relation}_idx"] is True
    with connection.cursor() as cursor:
        cursor.execute("SELECT relallfrozen > 0 FROM pg_class WHERE oid = to_regclass(%s)", [piece.relation])
        assert cursor.fetchone() == (True,)
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("30s",)


def test_what_a_crash_leaves_of_an_index_is_built_anew() -> None:
    piece = made_slice()
    with connection.cursor() as cursor, pytest.raises(DatabaseError):
        # Fails on the repeats and leaves an invalid index of that name, as a crash in the middle does.
        cursor.execute(f'CREATE UNIQUE INDEX CONCURRENTLY "{piece.relation}_idx" ON "{piece.relation}" (instrument_id)')
    assert indexes(piece)[f"{piece.relation}_idx"] is False
    jobs.index_slice(f"trade:{piece.start}")
    assert indexes(piece)[f"{piece.relation}_idx"] is True


def test_a_slice_that_is_gone_is_no_failure_and_a_strange_table_is() -> None:
    jobs.index_slice("trade:1")
    with pytest.raises(SkippableError):
        jobs.index_slice("auth_user:1")


def test_slices_are_made_ahead_of_the_data() -> None:
    jobs.make_slices("ahead")
    soon = time.time_ns() + (jobs.SLICE_HORIZON_S - 20) * 1_000_000_000
    for table in ("trade", "quote"):
        assert Slice.objects.filter(table=table, start__lte=soon, end__gt=soon).count() == 1
    count = Slice.objects.count()
    jobs.make_slices("ahead")
    assert Slice.objects.count() == count


def test_a_new_reason_opens_one_alert() -> None:
    jobs.notify_quarantine("crossed")
    assert not Alert.objects.exists()
    desk.quarantined("crossed")
    jobs.notify_quarantine("crossed")
    jobs.notify_quarantine("crossed")
    assert Alert.objects.get().key == "crossed"


def test_planning_twice_plans_once() -> None:
    piece = made_slice()
    Slice.objects.exclude(pk=piece.pk).delete()  # the one made ahead of it
    Slice.objects.filter(pk=piece.pk).update(end=time.time_ns() - jobs.SLICE_SETTLED_S * 1_000_000_000 - 1)
    for _ in range(2):
        jobs.plan_jobs()
    planned = Counter(Job.objects.values_list("kind", flat=True))
    assert planned == Counter(make_slices=1, index_slice=1, reconcile=1, plan_archive=1, retention=1)
    # A finished retention of today is not asked for again, nor is a slice whose index failed for good.
    Job.objects.filter(kind__in=("retention", "plan_archive")).update(state=Job.State.DONE)
    Job.objects.filter(kind="index_slice").update(state=Job.State.FAILED)
    jobs.plan_jobs()
    assert Counter(Job.objects.values_list("kind", flat=True)) == planned


def batch(number: int, position: Position, age_days: float, **values: Any) -> Batch:
    moment = time.time_ns() - int(age_days * 86_400 * 1e9)
    row: dict[str, Any] = {
        "id": number,
        "position": position,
        "number": number,
        "clock": moment,
        "ts_received": moment,
        "ts_processed": moment,
        "reference_version": 1,
        "pub_seq": number,
    }
    return Batch.objects.create(**row | values)


def test_retention_takes_old_batches_that_no_start_needs() -> None:
    position = desk.position()
    Position.objects.filter(pk=position.pk).update(snapshot_number=50)
    SequencerState.objects.update_or_create(pk=1, defaults={"pub_seq": 100, "checkpoint_pub_seq": 60})
    OutgoingMessage.objects.create(topic="t", epoch=1, number=1, pub_seq=40)  # not sent
    batch(10, position, 30)
    batch(20, position, 1)  # young
    batch(40, position, 30)  # its message waits
    batch(45, position, 30, pub_seq=None)  # not numbered
    batch(55, position, 30)  # after the snapshot
    batch(70, position, 30)  # after the checkpoint
    jobs.retention("today")
    assert sorted(Batch.objects.values_list("id", flat=True)) == [20, 40, 45, 55, 70]


def test_retention_never_takes_what_waits(settings: Any) -> None:
    old = timezone.now() - timedelta(days=4_000)
    State = QuarantinedEvent.State  # noqa: N806
    kept = [desk.quarantined(), desk.quarantined(state=State.PARKED), desk.quarantined(state=State.RELEASE_REQUESTED)]
    desk.quarantined(state=State.RELEASED)
    desk.quarantined(state=State.CONFIRMED_BAD)
    QuarantinedEvent.objects.update(updated_at=old, created_at=old)
    sent, unsent = (OutgoingMessage.objects.create(topic="t", epoch=1, number=n, pub_seq=n) for n in (1, 2))
    OutgoingMessage.objects.filter(pk=sent.pk).update(sent_at=old)
    for state in Job.State.values:
        Job.objects.create(kind="k", key=state, state=state, finished_at=old)
    open_alert = Alert.objects.create(kind="gap", key="a", message="m")
    Alert.objects.create(kind="gap", key="b", message="m", closed_at=old)
    jobs.retention("today")
    assert set(QuarantinedEvent.objects.values_list("id", flat=True)) == {event.pk for event in kept}
    assert list(OutgoingMessage.objects.values_list("id", flat=True)) == [unsent.pk]
    assert set(Job.objects.values_list("key", flat=True)) == {"pending", "running", "failed"}
    assert list(Alert.objects.values_list("id", flat=True)) == [open_alert.pk]


def test_retention_of_zero_days_keeps_for_ever(settings: Any) -> None:
    from dataclasses import replace

    settings.MDI = replace(settings.MDI, retention_job_days=0)
    Job.objects.create(kind="k", key="a", state=Job.State.DONE, finished_at=timezone.now() - timedelta(days=9_999))
    jobs.retention("today")
    assert Job.objects.exists()
