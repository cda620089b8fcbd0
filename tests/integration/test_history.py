"""One way to read: ranges, columns, order, whole streams; and what consumers ask of archived days."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from django.db import connection, transaction

from integration import archive, history, lake, slices
from integration.market.ticks import Ticks
from integration.models import LakeDay, Slice
from tests.e2e.events import SECOND, TS, messages, trade
from tests.e2e.world import World, empty_tables, quarantined, sequences
from tests.integration.ticks import DAY, HOUR, START, add_batch, make_ticks, read_all, rows_in, rows_of, store

pytestmark = pytest.mark.django_db(transaction=True)
EVER = 2**63 - 1


@pytest.fixture(autouse=True)
def place(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.MDI = replace(settings.MDI, lake_url=str(tmp_path / "lake"))
    monkeypatch.setattr(slices, "_FIRST_WIDTH_NS", 6 * HOUR)
    empty_tables()
    lake.forget_versions()
    yield
    empty_tables()


def three_days() -> Ticks:
    """Give ticks of three days, the first of them in the lake with a late tick beside it."""
    early, late = make_ticks(900, span=3 * 24 * HOUR), make_ticks(20, span=24 * HOUR, seed=2)
    store(early)
    archive.archive_day("trade", DAY)
    store(late)
    return Ticks.concatenate([early, late])


@pytest.mark.parametrize("instrument", [None, 3, 99])
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, EVER), (START + 5 * HOUR, START + 30 * HOUR), (START + HOUR, START + 2 * HOUR), (START, START), (5, 2)],
)
def test_any_range_of_any_instrument(instrument: int | None, start: int, end: int) -> None:
    ticks = three_days()
    mask = (ticks.ts_event >= start) & (ticks.ts_event < end)
    if instrument is not None:
        mask &= ticks.instrument_id == instrument
    found = history.read_ticks("trade", instrument, start, end)
    assert rows_in(found) == (rows_of(ticks.take(mask)) if mask.any() else [])
    if instrument is not None:
        times = found["ts_event"].to_pylist()
        assert times == sorted(times)


def test_the_bounds_are_from_inclusive_to_exclusive() -> None:
    ticks = make_ticks(3)
    ticks.ts_event[:] = (START + 10, START + 11, START + 12)
    store(ticks)
    for _ in range(2):
        found = history.read_ticks("trade", None, START + 10, START + 12, ["ts_event"])
        assert sorted(found["ts_event"].to_pylist()) == [START + 10, START + 11]
        archive.archive_day("trade", DAY)


def test_columns_come_as_asked_and_strange_ones_are_refused() -> None:
    three_days()
    found = history.read_ticks("trade", 3, 0, EVER, ["size", "ts_processed", "session_date"])
    assert found.schema.names == ["size", "ts_processed", "session_date"]
    assert found.schema.field("session_date").type == pa.date32()
    with pytest.raises(ValueError, match="'colour'"):
        history.read_ticks("trade", 3, 0, EVER, ["colour"])
    with pytest.raises(ValueError, match="'bars'"):
        history.read_ticks("bars", 3, 0, EVER)


def test_times_of_the_batch_outlive_it_in_the_lake() -> None:
    batch = add_batch(1, received=11, processed=22)
    store(make_ticks(10))
    archive.archive_day("trade", DAY)
    batch.delete()
    found = history.read_ticks("trade", None, 0, EVER, ["ts_received", "ts_processed"])
    assert set(zip(*(column.to_pylist() for column in found.columns), strict=True)) == {(11, 22)}


def test_rows_beyond_what_memory_should_hold_wait_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_HELD_BYTES", 0)
    monkeypatch.setattr(history, "_PAGES_A_READ", 2)
    monkeypatch.setattr(history, "_SLICES_A_READ", 1)
    ticks = three_days()
    assert read_all() == rows_of(ticks)
    one = history.read_ticks("trade", 3, 0, EVER)
    assert rows_in(one) == rows_of(ticks.take(ticks.instrument_id == 3))


def test_a_caller_inside_a_transaction_reads_what_is_committed() -> None:
    ticks = make_ticks(10)
    store(ticks)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM integration_trade")
        assert read_all() == rows_of(ticks)


def step_through(worker: Any, *data: bytes) -> None:
    worker.source.put(*messages(*data))
    while worker.source.waiting or worker.has_work:
        worker.step()


def test_a_repeat_of_an_archived_tick_is_a_repeat_and_another_content_a_conflict(world: World) -> None:
    step_through(world.worker(), trade(1, ts=TS), trade(2, ts=TS + SECOND))
    archive.archive_day("trade", lake.day_of(TS))
    assert sequences() == []
    worker = world.worker()
    step_through(worker, trade(1, ts=TS), trade(2, ts=TS + SECOND, price="99"))
    assert quarantined() == [("conflict", "quarantined")]
    assert sequences() == []
    assert history.read_ticks("trade", None, 0, EVER).num_rows == 2


def test_a_late_tick_finds_a_slice_though_its_own_was_dropped_behind_the_consumer(world: World) -> None:
    worker = world.worker()
    step_through(worker, trade(1, ts=TS))
    archive.archive_day("trade", lake.day_of(TS))
    assert not Slice.objects.filter(table="trade", start__lte=TS, end__gt=TS).exists()
    step_through(worker, trade(2, ts=TS + 1))  # the worker's map still has the slice
    assert quarantined() == []
    assert sequences() == [2]
    assert history.read_ticks("trade", None, 0, EVER).num_rows == 2
    archive.archive_day("trade", lake.day_of(TS))
    assert LakeDay.objects.get().row_count == 2
