"""Backup, wipe, restore, continue: nothing lost and nothing twice; what is damaged, unfinished or in use is refused with nothing changed."""

import json
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from integration.market.events import decode_numbered_ticks
from integration.models import Batch, Lease, Position, QuarantinedEvent, SequencerState, Slice, Trade
from integration.reconciliation import reconcile
from tests.e2e.events import SECOND, TS, trade
from tests.e2e.test_whole_path import CHANNEL, Service, service
from tests.e2e.world import World, sequences, until
from tests.faults.account import published
from tests.integration.test_consumer import ALL_FORMS
from tests.integration.test_sequencing import Broker, consume, loop
from tests.integration.test_sequencing import settle as settle_sequencer

__all__ = ["service"]


@pytest.fixture
def lake(tmp_path: Path, settings: Any) -> Path:
    """A lake of this test's own: that of the data folder is shared with tests that run at the same time."""
    folder = tmp_path / "lake"
    settings.MDI = replace(settings.MDI, lake_url=str(folder))
    (folder / "trade" / "_delta_log").mkdir(parents=True)
    (folder / "trade" / "_delta_log" / "0.json").write_text("{}")
    (folder / "trade" / "part-0.parquet").write_bytes(b"columns")
    return folder


def everything() -> dict[str, list[tuple[object, ...]]]:
    """Give every row of every table of the flow, but what a restore changes on purpose."""
    found = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname LIKE 'integration%' AND NOT relispartition"
        )
        for (table,) in cursor.fetchall():
            if table in ("integration_lease", "integration_referenceversion", "integration_sequencerstate"):
                continue
            columns = "*" if table not in ("integration_position", "integration_slice") else "id"
            cursor.execute(f"SELECT {columns} FROM {table} t ORDER BY t::text")  # noqa: S608 - names of our own
            found[table] = [
                tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()
            ]
    return found


def wipe() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'integration_trade'::regclass"
        )
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP TABLE {name}")
        cursor.execute("TRUNCATE integration_position, integration_source, integration_instrument, auth_user CASCADE")


def test_all_comes_back_as_it_was(world: World, lake: Path, tmp_path: Path) -> None:
    consume(world, *ALL_FORMS)
    sequencer = loop(Broker())
    settle_sequencer(sequencer)
    sequencer.close()
    before = everything()
    folder = tmp_path / "backup"
    call_command("backup", str(folder), stdout=StringIO())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.copy")} == {0o600}
    consume(world, trade(70))
    world.workers.pop().close()
    wipe()
    (lake / "trade" / "part-1.parquet").write_bytes(b"newer")
    call_command("restore", str(folder), replace=True, stdout=StringIO())
    assert everything() == before
    assert sorted(path.name for path in lake.rglob("*.*")) == ["0.json", "part-0.parquet"]
    assert [path.name for path in lake.parent.glob("lake.before-*/trade/part-1.parquet")] == ["part-1.parquet"]
    assert Position.objects.get().timeline.startswith("backup ")
    assert not Lease.objects.exclude(holder="").exists()
    assert not Slice.objects.exclude(indexed_at=None).exists()
    consume(world, *ALL_FORMS, trade(70))
    assert reconcile(now_ns=TS + 3_600 * SECOND).is_even
    assert sequences().count(70) == 1
    assert QuarantinedEvent.objects.count() == len(before["integration_quarantinedevent"])
    # a second restore of the same backup must not use the first one's epoch at the broker
    world.workers.pop().close()
    SequencerState.objects.all().delete()
    call_command("restore", str(folder), replace=True, stdout=StringIO())
    assert SequencerState.objects.get().epoch == 2


def test_what_cannot_be_restored_changes_nothing(world: World, tmp_path: Path) -> None:
    consume(world, trade(1))
    folder = tmp_path / "backup"
    call_command("backup", str(folder), stdout=StringIO())
    consume(world, trade(2))

    def refused(words: str) -> None:
        with pytest.raises(CommandError, match=words):
            call_command("restore", str(folder), replace=True, stdout=StringIO())
        assert sequences() == [1, 2]

    with pytest.raises(CommandError, match="--replace"):
        call_command("restore", str(folder), stdout=StringIO())
    with pytest.raises(CommandError, match="new or empty"):
        call_command("backup", str(folder), stdout=StringIO())
    refused("stop the service first")  # the consumer holds its lease
    world.workers.pop().close()
    copy, manifest = folder / "integration_trade.copy", folder / "manifest.json"
    sound, told = copy.read_bytes(), manifest.read_text()
    for damaged in (sound[:-1], sound[:60] + bytes([sound[60] ^ 1]) + sound[61:]):
        copy.write_bytes(damaged)
        refused("damaged")
    copy.write_bytes(sound)
    other = json.loads(told) | {"migrations": [["integration", "0001_initial"]]}
    manifest.write_text(json.dumps(other))
    refused("another schema")
    manifest.write_text("{")
    refused("cannot be read")
    manifest.write_text(json.dumps(json.loads(told) | {"version": 2}))
    refused("version")
    manifest.unlink()
    refused("not finished")


def test_with_a_real_broker_nothing_is_lost_and_nothing_twice(service: Service, tmp_path: Path) -> None:
    start = time.time_ns() - 10 * SECOND
    runners = (service.consumer, service.sequencer)
    for runner in runners:
        runner.start()
    service.send(200, start)
    until(lambda: Trade.objects.count() == 200 and service.is_published(), 60)
    folder = tmp_path / "backup"
    call_command("backup", str(folder), stdout=StringIO())  # while it works
    service.send(200, start)
    until(lambda: Trade.objects.count() == 400 and service.is_published(), 60)
    for runner in runners:
        runner.stop()
    wipe()
    call_command("restore", str(folder), replace=True, stdout=StringIO())
    assert Trade.objects.count() == 200
    for runner in runners:
        runner.start()
    until(lambda: Trade.objects.count() == 400, 60)
    service.send(100, start)
    until(lambda: Trade.objects.count() == 500 and service.is_published(), 60)
    assert sequences() == list(range(1, 501))
    assert set(Trade.objects.values_list("channel", flat=True)) == {CHANNEL}
    seen: dict[tuple[int, int], set[int]] = {}
    for data in published(service.space.client(), service.space.topic("ticks")):
        columns = decode_numbered_ticks(data).columns
        for epoch, sequence, ts in zip(
            *(columns[name].tolist() for name in ("epoch", "sequence", "ts_event")), strict=True
        ):
            seen.setdefault((epoch, ts), set()).add(sequence)
    assert {ts for _, ts in seen} == {start + number for number in range(1, 501)}
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert {epoch for epoch, _ in seen} == {1, 2}
    time.sleep(2.1)  # what was committed just now is settled
    assert reconcile(now_ns=time.time_ns()).is_even
    assert Batch.objects.filter(pub_seq=None).count() == 0
