"""Retention takes nothing that is needed: a start after it gives the same, bars keep their time, quarantine goes to the lake once."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from integration import archive, lake, retention, slices, storage
from integration.market.identity import KnownIdentities
from integration.models import Bar, Batch, LakeDay, OutgoingMessage, Position, QuarantinedEvent, SequencerState
from integration.storage import load_state
from tests.e2e.events import TS, messages, trade
from tests.e2e.world import World, empty_tables
from tests.integration import desk
from tests.integration.ticks import DAY, HOUR, add_batch, make_ticks, read_all, rows_of, store

pytestmark = pytest.mark.django_db(transaction=True)
LATER = timezone.now() + timedelta(days=4_000)


@pytest.fixture(autouse=True)
def place(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    settings.MDI = replace(settings.MDI, lake_url=str(tmp_path / "lake"), hot_days=3)
    monkeypatch.setattr(slices, "_FIRST_WIDTH_NS", 6 * HOUR)
    empty_tables()
    lake.forget_versions()
    yield tmp_path / "lake"
    empty_tables()


def test_a_consumer_knows_after_retention_what_it_knew_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SNAPSHOT_EVERY", 2)
    worker = world.worker()
    for number in range(1, 8):
        worker.source.put(*messages(trade(number)))  # type: ignore[attr-defined]
        while worker.source.waiting or worker.has_work:  # type: ignore[attr-defined]
            worker.step()
    for number, batch in enumerate(Batch.objects.order_by("number"), start=1):
        Batch.objects.filter(pk=batch.pk).update(pub_seq=number, ts_processed=TS)
    SequencerState.objects.update(pub_seq=7, checkpoint_pub_seq=7)
    position = Position.objects.get()
    before = load_state(position, worker.references.current(), worker.slots)
    count = Batch.objects.count()
    retention.run(LATER)
    assert 0 < Batch.objects.count() < count
    after = load_state(position, worker.references.current(), worker.slots)
    assert isinstance(after.identities, KnownIdentities)
    assert after.identities.dump() == before.identities.dump()
    assert worker.slots.pack_screen_state(after.screen) == worker.slots.pack_screen_state(before.screen)


def test_batches_of_bars_keep_their_row_and_lose_their_payload() -> None:
    for number in (1, 2, 3):
        add_batch(number)
        Batch.objects.filter(pk=number).update(pub_seq=number, payload=b"p", extras=b"{}")
    Position.objects.update(snapshot_number=9)
    SequencerState.objects.update(pub_seq=9, checkpoint_pub_seq=9)
    Bar.objects.create(
        instrument_id=1, timeframe="1m", start=0, end=60, revision=1, reason="first", session_date=DAY, open=1, high=1, low=1, close=1,
        volume=1, turnover=1, trade_count=1, first_ts=0, last_ts=0, pub_seq=2,
    )  # fmt: skip
    retention.run(LATER)
    assert [(row.pk, bytes(row.payload), row.ts_processed) for row in Batch.objects.all()] == [(2, b"", 8)]
    assert retention.run(LATER)["batches"] == 0


def test_an_unsent_message_keeps_its_batch_and_all_after_it() -> None:
    for number in (1, 2, 3):
        add_batch(number)
        Batch.objects.filter(pk=number).update(pub_seq=number)
    Position.objects.update(snapshot_number=9)
    SequencerState.objects.update(pub_seq=9, checkpoint_pub_seq=9)
    OutgoingMessage.objects.create(topic="t", epoch=1, number=1, pub_seq=2)
    retention.run(LATER)
    assert sorted(Batch.objects.values_list("pk", flat=True)) == [2, 3]
    assert OutgoingMessage.objects.exists()


def test_batches_wait_until_their_ticks_have_moved(settings: Any) -> None:
    settings.MDI = replace(settings.MDI, hot_days=30, retention_batch_days=7)
    add_batch(1, processed=int((timezone.now() - timedelta(days=31)).timestamp() * 1e9))
    Batch.objects.update(pub_seq=1)
    Position.objects.update(snapshot_number=9)
    SequencerState.objects.update(pub_seq=9, checkpoint_pub_seq=9)
    retention.run()
    assert Batch.objects.exists()
    retention.run(timezone.now() + timedelta(days=2))
    assert not Batch.objects.exists()


def quarantine_in_lake() -> list[dict[str, Any]]:
    table = lake.open_table(retention.QUARANTINE)
    rows: list[dict[str, Any]] = table.to_pyarrow_table().to_pylist() if table else []
    return sorted(rows, key=lambda row: int(row["id"]))


def test_decided_events_go_to_the_lake_once_and_waiting_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = desk.quarantined()
    decided = [desk.quarantined(state=state, raw=b"\x00raw") for state in ("released", "confirmed_bad")]

    honest = lake.append_once

    def die(*words: Any) -> None:
        honest(*words)
        raise RuntimeError("the process ends after the lake has them")

    monkeypatch.setattr(lake, "append_once", die)
    with pytest.raises(RuntimeError):
        retention.run(LATER)
    assert QuarantinedEvent.objects.count() == 3
    monkeypatch.setattr(lake, "append_once", honest)
    retention.run(LATER)
    assert list(QuarantinedEvent.objects.values_list("pk", flat=True)) == [waiting.pk]
    found = quarantine_in_lake()
    assert [row["id"] for row in found] == [event.pk for event in decided]
    assert {row["raw"] for row in found} == {b"\x00raw"}
    assert found[0]["created_at"] == decided[0].created_at


def test_days_of_the_lake_go_only_when_the_setting_says_so(settings: Any) -> None:
    ticks = make_ticks(50)
    store(ticks)
    archive.archive_day("trade", DAY)
    retention.run(LATER)
    assert read_all() == rows_of(ticks)
    settings.MDI = replace(settings.MDI, retention_lake_days=100)
    retention.run(LATER)
    assert not LakeDay.objects.exists()
    assert read_all() == []
