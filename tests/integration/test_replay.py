"""Stored ticks again: in the order of their numbers, exactly as they came; a replay consumed elsewhere gives the same rows."""

import json
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from integration.market.events import decode_numbered_ticks
from integration.models import Batch, Trade
from integration.replay import Pace, Query, replayed
from tests.e2e.events import SECOND, TS, arrow, quote, trade
from tests.e2e.world import World
from tests.integration.test_sequencing import Broker, consume, loop
from tests.integration.test_sequencing import settle as settle_sequencer
from tests.stack import PulsarNamespace

ALL = ("--from", str(TS), "--to", str(TS + 1_000 * SECOND))


@pytest.fixture
def stored(world: World) -> Broker:
    consume(world, trade(1, ts=TS + 5), quote(2), trade(3, instrument="BBB.SIMX"), trade(0, event_id="x", price="3"))
    consume(
        world,
        arrow([4, 5, 6]),
        trade(7, conditions=["odd_lot"], trade_id=9, price="0.000000001"),
        trade(8, action="cancel", trade_id=9),
    )
    broker = Broker()
    settle_sequencer(loop(broker))
    return broker


def test_the_order_is_that_of_the_published_stream(world: World, stored: Broker) -> None:
    sent = [
        decode_numbered_ticks(message.payload).columns
        for (topic, _, _), message in sorted(stored.kept.items())
        if topic == "ticks"
    ]
    published = [
        pair for columns in sent for pair in zip(columns["ts_event"].tolist(), columns["price"].tolist(), strict=True)
    ]
    got = [
        pair
        for ticks in replayed(Query(0, 2**62))
        for pair in zip(ticks.ts_event.tolist(), ticks.price.tolist(), strict=True)
    ]
    assert got == published
    one = world.instruments["BBB.SIMX"]
    assert [ticks.sequence.tolist() for ticks in replayed(Query(0, 2**62, (one,)))] == [[3]]
    assert [ticks.sequence.tolist() for ticks in replayed(Query(TS + 5, TS + 6))] == [[1], [5]]


def test_a_file_holds_every_column_and_is_never_written_over(stored: Broker, tmp_path: Path) -> None:
    out, path = StringIO(), tmp_path / "ticks.arrow"
    call_command("replay_ticks", *ALL, "--output", str(path), stdout=out)
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    assert out.getvalue() == "9 ticks\n"
    assert sorted(table["price"].to_pylist()) == sorted(
        int(ticks.price[at]) for ticks in replayed(Query(0, 2**62)) for at in range(len(ticks))
    )
    with pytest.raises(CommandError, match="cannot write"):
        call_command("replay_ticks", *ALL, "--output", str(path), stdout=out)


def test_what_is_replayed_and_consumed_again_is_the_same(world: World, stored: Broker, tmp_path: Path) -> None:
    path = tmp_path / "ticks.jsonl"
    call_command("replay_ticks", *ALL, "--output", str(path), stdout=StringIO())
    lines = path.read_bytes().splitlines()
    assert len(lines) == 9
    before = Batch.objects.count()
    numbered = [line for line in lines if "sequence" in json.loads(line)["market_data"]["metadata"]]
    consume(world, *numbered)  # with content, not identity alone: any difference would be a conflict
    again = Batch.objects.order_by("-id")[0]
    assert (Batch.objects.count(), again.duplicate_count, again.rejected_count, again.tick_count) == (
        before + 1,
        8,
        0,
        0,
    )


def test_rows_whose_batch_is_gone_still_come(stored: Broker) -> None:
    whole = [
        row
        for ticks in replayed(Query(0, 2**62))
        for row in zip(ticks.sequence.tolist(), ticks.price.tolist(), ticks.session_date.tolist(), strict=True)
    ]
    Batch.objects.filter(pub_seq=1).delete()
    partly = [
        row
        for ticks in replayed(Query(0, 2**62))
        for row in zip(ticks.sequence.tolist(), ticks.price.tolist(), ticks.session_date.tolist(), strict=True)
    ]
    assert sorted(partly) == sorted(whole)


def test_a_topic_gets_them_in_order(world: World, stored: Broker, pulsar_namespace: PulsarNamespace) -> None:
    topic = pulsar_namespace.add_topic("replayed")
    reader = pulsar_namespace.client().subscribe(topic, "test")
    call_command(
        "replay_ticks", *ALL, "--to-topic", topic, "--instrument", "AAA.SIMX", "--speed", "1000000", stdout=StringIO()
    )
    got = [json.loads(reader.receive(timeout_millis=10_000).data()) for _ in range(8)]
    assert [event["market_data"]["metadata"].get("sequence") for event in got] == [1, 2, None, 4, 5, 6, 7, 8]
    assert got[6]["market_data"]["price_data"] == {"price": "0.000000001"}
    assert Trade.objects.count() == 8


def test_what_makes_no_replay_is_refused(stored: Broker, tmp_path: Path) -> None:
    live = settings.NORMALIZED_TOPICS["equities"]
    for wrong in (
        ("--to-topic", live),
        ("--output", str(tmp_path / "x.csv")),
        ("--output", str(tmp_path / "x.arrow"), "--instrument", "NO.SIMX"),
    ):
        with pytest.raises(CommandError):
            call_command("replay_ticks", *ALL, *wrong, stdout=StringIO())
    with pytest.raises(CommandError, match="a time is"):
        call_command(
            "replay_ticks", "--from", "noon", "--to", "1", "--output", str(tmp_path / "x.arrow"), stdout=StringIO()
        )


def test_the_pace_is_that_of_the_events_divided() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    pace = Pace(10.0, lambda: now[0], sleep)
    for ts in (0, 10 * SECOND, 5 * SECOND, 20 * SECOND):
        pace.wait(TS + ts)
    assert slept == [1.0, 1.0]
