"""What came is what is stored: over all forms, restarts, releases and repeats; every planted loss or double is named."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from integration import alerts, jobs, selectors, services
from integration.market.tally import BYTES, Tally
from integration.models import Batch, Gap, InstrumentAlias, QuarantinedEvent, Reconciliation, Trade, UpstreamEvent
from integration.reconciliation import Balance, channel_sequences, reconcile, totals
from tests.e2e.events import SECOND, SESSION, TS, arrow, normalized, quote, status, trade
from tests.e2e.world import World
from tests.integration import desk
from tests.integration.test_consumer import ALL_FORMS, settle
from tests.integration.test_sequencing import consume

LATER = TS + 3_600 * SECOND


def balance(*, again: bool = False) -> Balance:
    return reconcile(now_ns=LATER, again=again)


def sums(source: str, channel: int = 0, session: int = SESSION) -> dict[str, int]:
    rows = [row for row in totals() if (row["source"], row["channel"], row["session"]) == (source, channel, session)]
    assert len(rows) == 1
    return {key: rows[0][key] for key in ("received", "ticks", "others", "repeats", "refused_claims", "released")}


def test_every_form_balances_exactly_and_repeats_are_counted_where_they_belong(world: World) -> None:
    consume(world, *ALL_FORMS)
    consume(world, *ALL_FORMS)
    found = balance()
    assert (found.differences, found.without_tally, found.batches) == ([], 0, Batch.objects.count())
    alpha = sums("alpha")
    # numbered by alpha on channel 0: 1 2 3 bar status 0-price unknown 1-other 900000 9; each again
    assert alpha == {"received": 20, "ticks": 4, "others": 4, "repeats": 8, "refused_claims": 4, "released": 0}
    assert sums("alpha", 7) == {
        "received": 10,
        "ticks": 4,
        "others": 1,
        "repeats": 5,
        "refused_claims": 0,
        "released": 0,
    }
    assert sums("alpha", -1, -1) == {
        "received": 2,
        "ticks": 1,
        "others": 0,
        "repeats": 1,
        "refused_claims": 0,
        "released": 0,
    }
    by_bytes = sums("", *BYTES[1:])
    # junk, nothing, two strangers; a conflict and a jump came in under their bytes: each again
    assert by_bytes == {"received": 8, "ticks": 0, "others": 6, "repeats": 6, "refused_claims": 0, "released": 0}
    for row in totals():
        if row["channel"] >= -1:
            assert row["received"] == row["ticks"] + row["others"] + row["repeats"] + row["refused_claims"]
    assert balance().batches == 0  # nothing is looked at twice
    assert balance(again=True).is_even
    assert sums("alpha") == alpha


def test_releases_and_lanes_balance_too(world: World) -> None:
    consume(
        world,
        trade(1, price="0"),
        trade(2, instrument="ZZZ.SIMX"),
        trade(3),
        arrow([1, 2], size=[SECOND, 0]),
        trade(900_000),
    )
    worker = world.workers[0]
    services.request_release(events=QuarantinedEvent.objects.exclude(code="unknown_instrument"), actor=desk.operator())
    settle(worker)
    InstrumentAlias.objects.create(instrument_id=world.instruments["BBB.SIMX"], value="ZZZ.SIMX")
    settle(worker)
    assert Trade.objects.count() == 6
    assert balance().differences == []
    alpha = sums("alpha")
    assert (alpha["received"], alpha["released"]) == (4, 3)


def test_a_lost_row_a_double_and_a_missing_batch_are_named(world: World) -> None:
    consume(world, trade(1), trade(2), quote(3), normalized(4, "ohlc"), status(5, "open"), b"junk")
    consume(world, trade(6))
    consume(world, trade(7))
    first, second, _ = Batch.objects.order_by("id")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM integration_trade WHERE sequence = 2")
    found = balance(again=True)
    assert found.differences == [
        f"batch {first.pk} (source {world.sources['alpha']}, channel 0, session {SESSION}): 3 ticks accepted, 2 in the tables"
    ]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO integration_trade SELECT * FROM integration_trade WHERE sequence = 6")
    assert f"batch {second.pk} " in balance(again=True).differences[1]
    QuarantinedEvent.objects.all().delete()
    UpstreamEvent.objects.filter(sequence=4).delete()
    told = " | ".join(balance(again=True).differences)
    assert "(known by bytes): 1 turned away or beside ticks, 0 in the tables" in told
    assert "2 turned away or beside ticks, 1 in the tables" in told
    second.delete()
    assert any("are gone" in words for words in balance(again=True).differences)


def test_a_loss_inside_the_flow_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from integration import pipeline

    real = pipeline._Flow.route

    def losing(self: pipeline._Flow, route: pipeline.Route) -> None:
        real(self, route)
        self._keep(self.ticks.sequence != 2)

    monkeypatch.setattr(pipeline._Flow, "route", losing)
    consume(world, trade(1), trade(2), trade(3))
    assert "3 received, 2 decided" in balance().differences[0]


def test_a_message_that_the_decoder_loses_is_kept_as_internal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from integration.market.events import decode
    from integration.market.ticks import Decoded, Message

    worker = world.worker()

    def forgetful(given: list[Message]) -> Decoded:
        return decode([message for message in given if b"lost" not in message.data])

    worker.slots = replace(worker.slots, decode=forgetful)  # type: ignore[arg-type]
    worker.reader.decode = forgetful  # type: ignore[assignment]
    consume(world, trade(1), trade(0, event_id="lost"))
    assert QuarantinedEvent.objects.get().code == "internal"
    assert balance().is_even


def test_a_difference_stays_and_alarms_until_a_person_has_looked(world: World) -> None:
    consume(world, trade(1))
    Trade.objects.all()._raw_delete("default")
    jobs.reconcile("new batches")
    jobs.reconcile("new batches")
    kept = Reconciliation.objects.get()
    assert "1 ticks accepted, 0 in the tables" in kept.difference
    found = [item for item in alerts.findings(selectors.alert_facts(LATER)) if item.kind == alerts.IMBALANCE]
    assert [item.key for item in found] == [world.workers[0].partition]
    with pytest.raises(CommandError) as ended:
        call_command("reconcile", stdout=StringIO())
    assert ended.value.returncode == 1


def test_the_command_tells_sums_and_missing_numbers(world: World) -> None:
    consume(world, trade(5), trade(6), trade(9), trade(7, channel=2))
    Gap.objects.create(source_id=world.sources["alpha"], channel=0, session=SESSION, first=7, last=8)
    out = StringIO()
    call_command("reconcile", json=True, stdout=out)
    told = json.loads(out.getvalue())
    assert (told["balances"], told["batches"]) == (True, 1)
    assert [
        (item["channel"], item["lowest"], item["highest"], item["seen"], item["missing"], item["in_gaps"])
        for item in told["sequences"]
    ] == [
        (0, 5, 9, 3, 2, 2),
        (2, 7, 7, 1, 0, 0),
    ]
    out = StringIO()
    call_command("reconcile", stdout=out)
    assert "3 numbers of 5 to 9, 2 missing, 2 in the gap ledger" in out.getvalue()
    assert "balances" in out.getvalue()


def test_numbers_are_counted_on_the_union_of_partitions(world: World) -> None:
    from integration.sources import MemorySource
    from tests.e2e.events import TOPIC, messages

    consume(world, trade(1), trade(3))
    other = world.worker(
        MemorySource(messages(trade(2, instrument="BBB.SIMX"), trade(4, instrument="BBB.SIMX"))),
        partition=f"{TOPIC}-partition-1",
    )
    while other.source.waiting or other.has_work:  # type: ignore[attr-defined]
        other.step()
    (found,) = channel_sequences()
    assert (found.lowest, found.highest, found.seen, found.missing) == (1, 4, 4, 0)


def test_batches_of_before_have_only_their_tables(world: World) -> None:
    consume(world, trade(1), trade(2))
    Batch.objects.update(extras=b"")
    found = balance()
    assert (found.differences, found.without_tally) == ([], 1)
    assert Reconciliation.objects.get().batches_without_tally == 1


def test_an_empty_tally_has_no_rows() -> None:
    assert Tally().rows() == []


def test_a_day_that_moved_to_the_lake_is_no_difference(world: World) -> None:
    from datetime import UTC, date, datetime

    from integration.models import LakeDay

    consume(world, trade(1))
    Trade.objects.all()._raw_delete("default")
    assert not balance(again=True).is_even
    LakeDay.objects.create(
        table="trade",
        day=date(2026, 1, 5),
        generation=1,
        delta_version=0,
        row_count=1,
        checksum=0,
        archived_at=datetime.now(UTC),
    )
    assert balance(again=True).is_even
