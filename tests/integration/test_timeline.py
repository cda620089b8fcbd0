"""The database goes on with another history: positions read again once, the sequencer begins an epoch, old messages keep theirs."""

import pytest
from django.db import connection

from integration.models import OutgoingMessage, Position, SequencerState, Trade
from integration.sources import MemorySource
from integration.timeline import current_timeline
from tests.e2e.events import SECOND, TS, messages, trade
from tests.e2e.world import World, sequences
from tests.faults.poison import Killed
from tests.integration.test_sequencing import Broker, consume, loop, settle

MINUTE = 60 * SECOND


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the history, to be changed by the test."""
    name = ["1/00000001"]
    for module in ("consumer", "sequencing"):
        monkeypatch.setattr(f"integration.{module}.current_timeline", lambda: name[0])
    return name


def lose_the_last_batch() -> None:
    """Take back what the newest batch wrote, as when its commit never reached the standby."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM integration_trade WHERE batch_id = (SELECT max(id) FROM integration_batch)")
        cursor.execute("DELETE FROM integration_batch WHERE id = (SELECT max(id) FROM integration_batch)")
        cursor.execute(
            "UPDATE integration_position SET number = number - 1, clock = %s, snapshot = '', snapshot_number = 0", [TS]
        )


def test_the_timeline_names_cluster_and_history(transactional_db: None) -> None:
    system, _, timeline = current_timeline().partition("/")
    assert int(system) > 0
    assert int(timeline, 16) >= 1


@pytest.mark.parametrize("dies", [False, True])
def test_a_position_reads_again_what_the_other_history_lost(world: World, history: list[str], dies: bool) -> None:
    source = MemorySource()
    worker = world.worker(source)
    source.put(*messages(trade(1, ts=TS - 3 * MINUTE), published=TS - 2 * MINUTE))
    worker.step()
    source.put(*messages(trade(2), published=TS))
    worker.step()
    source.put(*messages(trade(3), published=TS + 5))
    worker.step()
    assert (sequences(), source.acknowledged) == ([1, 2, 3], 3)
    worker.close()
    lose_the_last_batch()
    history[0] = "1/00000002"

    def die(point: str) -> None:
        if dies and point == "after_rewind":
            raise Killed

    worker = world.worker(source, reached=die)
    source.put(*messages(trade(4), published=TS + 9))
    if dies:
        with pytest.raises(Killed):
            worker.step()
        assert Position.objects.get().timeline == "1/00000001"
        worker = world.worker(source)
    while source.waiting or worker.has_work:
        worker.step()
    assert sequences() == [1, 2, 3, 4]
    assert Position.objects.get().timeline == "1/00000002"
    # What was published long before the position's clock was not read again.
    assert source.kept[0].ts_publish == TS - 2 * MINUTE
    assert len(source.kept) == 4
    worker.step()
    assert Trade.objects.count() == 4


def test_a_new_history_begins_an_epoch_and_numbers_from_one(world: World, history: list[str]) -> None:
    broker = Broker()
    sequencer = loop(broker)
    consume(world, trade(1), trade(2))
    settle(sequencer)
    broker.refuse = 100
    consume(world, trade(3))
    sequencer.step()
    assert OutgoingMessage.objects.filter(sent_at=None).count() == 1
    sequencer.close()
    history[0] = "1/00000002"
    consume(world, trade(4))
    broker.refuse = 0
    settle(loop(broker))
    sent = [key for key in broker.kept if key[0] == "ticks"]
    # The one that waited goes out under the number that it had.
    assert sent == [("ticks", 1, 1), ("ticks", 1, 2), ("ticks", 2, 1)]
    state = SequencerState.objects.get()
    assert (state.epoch, state.timeline) == (2, "1/00000002")
    assert OutgoingMessage.objects.filter(sent_at=None).count() == 0


def test_the_same_history_after_a_restart_begins_nothing(world: World, history: list[str]) -> None:
    broker = Broker()
    for number in (1, 2):
        sequencer = loop(broker)
        consume(world, trade(number))
        settle(sequencer)
        sequencer.close()
    assert [key[1:] for key in broker.kept if key[0] == "ticks"] == [(1, 1), (1, 2)]
