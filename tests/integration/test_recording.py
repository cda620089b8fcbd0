"""The input log run again gives the same bytes, over all forms, restarts, releases and lanes; a planted difference is named."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from integration import services, storage
from integration.consumer import PartitionWorker
from integration.market.errors import RetriableError
from integration.models import InstrumentAlias, QuarantinedEvent
from integration.recording import log_path, read_log
from integration.sources import MemorySource
from tests.e2e.events import messages, trade
from tests.e2e.world import PARTITION, World
from tests.integration import desk
from tests.integration.test_consumer import ALL_FORMS, settle
from tests.integration.test_sequencing import consume


def again(folder: Path, **options: str) -> dict[str, object]:
    out = StringIO()
    call_command("replay_hash", str(folder), json=True, stdout=out, **options)
    told: dict[str, object] = json.loads(out.getvalue())
    return told


def restarted(world: World, folder: Path) -> PartitionWorker:
    if world.workers:
        world.workers.pop().close()
    return world.worker(MemorySource(), record_folder=folder)


def record(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store all forms twice over three processes, one that could not commit, a release and a lane."""
    restarted(world, folder)
    consume(world, *ALL_FORMS)
    worker = restarted(world, folder)
    with monkeypatch.context() as failing:
        failing.setattr(storage, "_finish", lambda *_: (_ for _ in ()).throw(RetriableError("away")))
        assert isinstance(worker.source, MemorySource)
        worker.source.put(*messages(trade(50), trade(51)))
        worker.step()
    consume(world, *ALL_FORMS)
    services.request_release(events=QuarantinedEvent.objects.filter(code="price_sign"), actor=desk.operator())
    InstrumentAlias.objects.create(instrument_id=world.instruments["BBB.SIMX"], value="ZZZ.SIMX")
    settle(worker)
    restarted(world, folder)
    consume(world, trade(60, instrument="ZZZ.SIMX"), *ALL_FORMS)


def test_the_same_input_gives_the_same_bytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(world, tmp_path, monkeypatch)
    first = again(tmp_path)
    assert first["not_stored"] == 0
    assert int(str(first["batches"])) >= 5
    assert again(tmp_path, expect=str(first["hash"])) == first
    with pytest.raises(CommandError, match="expected"):
        again(tmp_path, expect="00")
    log = log_path(tmp_path, PARTITION)
    entries = len(read_log(log))
    log.write_bytes(log.read_bytes()[:-3])  # cut off by a crash
    assert len(read_log(log)) == entries - 1


def test_one_bit_of_a_price_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from config import pipeline as wiring
    from integration.market.events import decode
    from integration.market.ticks import Decoded, Message

    record(world, tmp_path, monkeypatch)

    def flipped(given: list[Message]) -> Decoded:
        decoded = decode(given)
        decoded.ticks.price = decoded.ticks.price ^ (decoded.ticks.sequence == 60)
        return decoded

    monkeypatch.setattr(wiring, "decode", flipped)
    with pytest.raises(
        CommandError, match=r"batch \d+ .*row 0, column price: stored 10000000000, again 10000000001"
    ) as ended:
        again(tmp_path)
    assert ended.value.returncode == 1


def test_nothing_is_recorded_unless_asked(world: World, tmp_path: Path) -> None:
    consume(world, trade(1))
    assert world.workers[0].record_folder is None
    assert again(tmp_path)["batches"] == 0
