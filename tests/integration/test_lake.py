"""Days move to the lake: each tick once for every reader, whatever crashes, comes late, or reads meanwhile."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import connection, connections, transaction

from integration import archive, history, jobs, lake, slices
from integration.lake import DAY_NS, Tally
from integration.market.errors import FatalError, RetriableError
from integration.models import LakeDay, Slice
from tests.e2e.world import empty_tables
from tests.integration.ticks import (
    DAY,
    HOUR,
    START,
    add_batch,
    crashing_at,
    make_ticks,
    read_all,
    rows_of,
    store,
)

pytestmark = pytest.mark.django_db(transaction=True)
POINTS = ("held", "read", "written", "verified", "before_commit", "moved", "dropping")


@pytest.fixture(autouse=True)
def place(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    settings.MDI = replace(settings.MDI, lake_url=str(tmp_path / "lake"), hot_days=3)
    monkeypatch.setattr(slices, "_FIRST_WIDTH_NS", 6 * HOUR)
    empty_tables()
    lake.forget_versions()
    yield tmp_path / "lake"
    empty_tables()


def count_in_slices(table: str = "trade") -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM integration_{table}")  # noqa: S608
        return int(cursor.fetchone()[0])


def relations() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'integration_trade'::regclass"
        )
        return {name for (name,) in cursor.fetchall()}


@pytest.mark.parametrize("table", ["trade", "quote"])
def test_a_day_moves_whole_and_every_column_comes_back(table: str) -> None:
    add_batch(1, received=111, processed=222)
    ticks = make_ticks(3_000, table=table)
    store(ticks)
    expected = rows_of(ticks, times=(111, 222))
    assert read_all(table) == expected
    done = archive.archive_day(table, DAY)
    assert done is not None
    assert (done.rows, done.moved, done.generation) == (3_000, 3_000, 1)
    assert count_in_slices(table) == 0
    assert not Slice.objects.filter(table=table, start__gte=START, end__lte=START + DAY_NS).exists()
    assert read_all(table) == expected
    assert archive.archive_day(table, DAY) is None


def test_the_lake_is_sorted_by_instrument_and_time() -> None:
    store(make_ticks(5_000))
    archive.archive_day("trade", DAY)
    (row,) = LakeDay.objects.all()
    found = [
        pair
        for part in lake.read_day(lake.version_at("trade", row.delta_version), DAY, ("instrument_id", "ts_event"))
        for pair in zip(*(column.to_pylist() for column in part.columns), strict=True)
    ]
    assert len(found) == 5_000
    assert found == sorted(found)


def test_parts_are_cut_inside_an_instrument_and_between_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_ROWS_A_PART", 100)
    ticks = make_ticks(2_000)
    ticks.instrument_id[:1_500] = 4
    ticks.ts_event[:300] = START + 5  # three parts' rows of one time stay together
    store(ticks)
    archive.archive_day("trade", DAY)
    assert read_all() == rows_of(ticks)
    one = history.read_ticks("trade", 4, START, START + DAY_NS, ["ts_event"])["ts_event"].to_pylist()
    assert one == sorted(ticks.ts_event[ticks.instrument_id == 4].tolist())


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("has_moved_before", [False, True], ids=["first", "merge"])
def test_a_crash_at_any_point_loses_and_doubles_nothing(point: str, has_moved_before: bool) -> None:
    expected = []
    if has_moved_before:
        early = make_ticks(1_000, seed=1)
        store(early)
        archive.archive_day("trade", DAY)
        expected += rows_of(early)
    late = make_ticks(1_000, seed=2)
    store(late)
    expected = sorted(expected + rows_of(late))
    with crashing_at(point) as reached:
        archive.archive_day("trade", DAY, reached)
    assert read_all() == expected
    archive.archive_day("trade", DAY)
    assert read_all() == expected
    assert count_in_slices() == 0
    assert relations() == {piece.relation for piece in Slice.objects.filter(table="trade")}


def test_crash_after_crash_and_late_ticks_between() -> None:
    expected = []
    for at, point in enumerate(POINTS):
        ticks = make_ticks(200, seed=at)
        store(ticks)
        expected += rows_of(ticks)
        with crashing_at(point) as reached:
            archive.archive_day("trade", DAY, reached)
        assert read_all() == sorted(expected)
    archive.archive_day("trade", DAY)
    assert read_all() == sorted(expected)
    assert count_in_slices() == 0


def test_a_late_tick_of_an_archived_day_is_seen_at_once_and_merged_by_the_next_run() -> None:
    first, late = make_ticks(500, seed=1), make_ticks(3, seed=2)
    store(first)
    archive.archive_day("trade", DAY)
    store(late)
    both = sorted(rows_of(first) + rows_of(late))
    assert read_all() == both
    one = history.read_ticks("trade", int(late.instrument_id[0]), START, START + DAY_NS, ["ts_event"])
    assert one["ts_event"].to_pylist() == sorted(one["ts_event"].to_pylist())
    assert int(late.ts_event[0]) in one["ts_event"].to_pylist()
    done = archive.archive_day("trade", DAY)
    assert done is not None
    assert (done.generation, done.rows, done.moved) == (2, 503, 3)
    assert read_all() == both


def test_a_tick_that_comes_while_the_day_moves_stops_the_move() -> None:
    first, late = make_ticks(500, seed=1), make_ticks(1, seed=2)
    late.ts_event[:] = first.ts_event[0]  # into a slice that was read
    store(first)

    def reached(point: str) -> None:
        if point == "verified":
            store(late)

    with pytest.raises(RetriableError, match="came while it moved"):
        archive.archive_day("trade", DAY, reached)
    both = sorted(rows_of(first) + rows_of(late))
    assert read_all() == both
    assert not LakeDay.objects.exists()
    archive.archive_day("trade", DAY)
    assert read_all() == both


def test_a_tick_in_a_slice_made_while_the_day_moves_stays_where_it_is() -> None:
    first = make_ticks(500, seed=1, span=HOUR)
    late = make_ticks(1, seed=2, start=START + 20 * HOUR, span=HOUR)
    store(first)

    def reached(point: str) -> None:
        if point == "read":
            store(late)

    archive.archive_day("trade", DAY, reached)
    assert read_all() == sorted(rows_of(first) + rows_of(late))
    assert count_in_slices() == 1


def test_a_slice_across_midnight_gives_only_the_days_rows() -> None:
    start, end = START - HOUR, START + HOUR
    Slice.objects.create(table="trade", start=start, end=end)
    with connection.cursor() as cursor:
        cursor.execute(
            f'CREATE TABLE "integration_trade_{start}" PARTITION OF integration_trade FOR VALUES FROM ({start}) TO ({end})'
        )
    ticks = make_ticks(400, start=start, span=2 * HOUR)
    store(ticks)
    archive.archive_day("trade", DAY)
    assert count_in_slices() == int((ticks.ts_event < START).sum())
    assert read_all() == rows_of(ticks)
    archive.archive_day("trade", DAY - timedelta(days=1))
    assert count_in_slices() == 0
    assert read_all() == rows_of(ticks)


def test_readers_in_a_loop_see_every_tick_once_while_days_move() -> None:
    ticks = make_ticks(4_000, start=START - DAY_NS, span=3 * DAY_NS)
    store(ticks)
    expected = rows_of(ticks)
    wanted = int(ticks.instrument_id[0])
    times = sorted(ticks.ts_event[ticks.instrument_id == wanted].tolist())
    stop, faults, reads = threading.Event(), list[str](), 0

    def read() -> None:
        nonlocal reads
        try:
            while not stop.is_set():
                if read_all() != expected[: len(expected)] and not more:
                    faults.append("all")
                one = history.read_ticks("trade", wanted, 0, 2**63 - 1, ["ts_event"])["ts_event"].to_pylist()
                if not more and one != times:
                    faults.append("one")
                reads += 1
        finally:
            connections.close_all()

    more: list[int] = []
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for day in (DAY - timedelta(days=1), DAY, DAY + timedelta(days=1)):
        archive.archive_day("trade", day)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert reads > 2
    assert LakeDay.objects.count() == 3
    assert read_all() == expected


def test_a_stream_goes_on_over_a_move_and_does_not_hold_it_up() -> None:
    ticks = make_ticks(2_000)
    store(ticks)
    stream = history.stream_ticks("trade", None, 0, 2**63 - 1)
    parts = [next(stream)]
    archive.archive_day("trade", DAY)
    parts += list(stream)
    assert sum(part.num_rows for part in parts) == 2_000


def test_two_runs_of_one_day_exclude_each_other() -> None:
    store(make_ticks(300))
    other: list[RetriableError] = []

    def run_too() -> None:
        try:
            archive.archive_day("trade", DAY)
        except RetriableError as problem:
            other.append(problem)
        finally:
            connections.close_all()

    def reached(point: str) -> None:
        if point == "read":
            thread = threading.Thread(target=run_too)
            thread.start()
            thread.join()

    archive.archive_day("trade", DAY, reached)
    assert [problem.code for problem in other] == ["day_held"]


def test_a_run_that_lost_its_session_cannot_move_what_another_run_has() -> None:
    ticks = make_ticks(300)
    store(ticks)

    def reached(point: str) -> None:
        if point == "verified":
            connection.close()  # the lock is gone, and another run does the whole work
            archive.archive_day("trade", DAY)

    with pytest.raises(RetriableError):
        archive.archive_day("trade", DAY, reached)
    assert read_all() == rows_of(ticks)


def test_a_second_writer_from_an_older_handle_is_refused_by_the_lake() -> None:
    ticks = make_ticks(300)
    store(ticks)
    zombie = lake.DayWriter("trade", DAY)
    archive.archive_day("trade", DAY)
    with pytest.raises(Exception, match=r"(?i)transaction|concurrent|conflict"):
        zombie.write(1, [lake.batch_of("trade", {name: np.zeros(1, np.int64 if lake.width_of("trade", name) == 8 else np.int32) for name in lake.columns_of("trade")})])  # fmt: skip
    assert read_all() == rows_of(ticks)


def test_what_the_lake_holds_is_compared_with_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = make_ticks(300)
    store(ticks)
    honest = archive._Runs.sorted_batches

    def damaged(self: Any) -> Iterator[Any]:
        for batch in honest(self):
            yield batch.slice(1)

    monkeypatch.setattr(archive._Runs, "sorted_batches", damaged)
    with pytest.raises(FatalError, match="does not hold"):
        archive.archive_day("trade", DAY)
    assert read_all() == rows_of(ticks)
    assert count_in_slices() == 300


def test_a_lake_that_was_changed_from_outside_is_not_merged_into(place: Path) -> None:
    from deltalake import DeltaTable

    store(make_ticks(300))
    archive.archive_day("trade", DAY)
    lake.forget_versions()
    DeltaTable(str(place / "trade")).delete("sequence = 7")
    store(make_ticks(1, seed=2))
    with pytest.raises(FatalError, match="has changed"):
        archive.archive_day("trade", DAY)


def test_a_lake_of_another_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store(make_ticks(300))
    archive.archive_day("trade", DAY)
    LakeDay.objects.all().delete()
    store(make_ticks(10, seed=2))
    monkeypatch.setattr(lake, "database_name", lambda: "another")
    with pytest.raises(FatalError, match="another database"):
        archive.archive_day("trade", DAY)


def test_any_change_of_rows_changes_the_tally() -> None:
    ticks = make_ticks(100)
    store(ticks)
    (batch,) = history.read_ticks("trade", None, 0, 2**63 - 1).combine_chunks().to_batches()
    columns = lake.columns_in(batch)

    def tally(changed: lake.Columns) -> Tally:
        made = Tally()
        made.add("trade", changed)
        return made

    whole = tally(columns)
    shuffled = np.random.default_rng(0).permutation(100)
    assert tally({name: column[shuffled] for name, column in columns.items()}) == whole
    halves = [
        tally({name: column[half] for name, column in columns.items()}) for half in (slice(0, 50), slice(50, 100))
    ]
    assert halves[0] + halves[1] == whole
    for name, column in columns.items():
        changed = column.copy()
        changed[3] += 1
        assert tally({**columns, name: changed}).checksum != whole.checksum
    twice = np.r_[np.arange(99), 0]
    assert tally({name: column[twice] for name, column in columns.items()}) != whole


def test_closed_days_are_those_older_than_the_setting() -> None:
    now = START + 10 * DAY_NS + 5
    for age in (2, 3, 4):
        store(make_ticks(10, start=START + (10 - age) * DAY_NS, span=HOUR, seed=age))
    days = {day for table, day in archive.closed_days(now) if table == "trade"}
    assert days == {date(2026, 1, 11)}


def test_a_busy_reader_of_a_slice_only_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = make_ticks(100)
    store(ticks)
    monkeypatch.setattr(archive, "_MOVE_PAUSE_S", 0.05)
    begun, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM integration_trade")
                begun.set()
                time.sleep(1)
        finally:
            done.set()
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    assert archive.archive_day("trade", DAY) is not None
    assert done.is_set()
    thread.join()
    assert read_all() == rows_of(ticks)


def test_duckdb_reads_the_lake_as_it_lies(place: Path) -> None:
    import duckdb

    ticks = make_ticks(1_000)
    store(ticks)
    archive.archive_day("trade", DAY)
    # Plain Parquet, by the files that the newest version names: no extension of DuckDB has to be fetched.
    version = lake.version_at("trade", LakeDay.objects.get().delta_version)
    files = [str(place / "trade" / file.path) for file in version.files[DAY]]
    with duckdb.connect() as db:
        rows = db.execute(
            "SELECT count(*), sum(price::hugeint), min(ts_event), max(day) FROM read_parquet(?, hive_partitioning = true)",
            [files],
        ).fetchone()
    assert rows == (1_000, sum(ticks.price.tolist()), int(ticks.ts_event.min()), DAY)


def test_jobs_archive_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = make_ticks(100)
    store(ticks)
    jobs.HANDLERS["plan_archive"]("today")
    while jobs.run_due_jobs():
        pass
    assert LakeDay.objects.get().row_count == 100
    assert read_all() == rows_of(ticks)
