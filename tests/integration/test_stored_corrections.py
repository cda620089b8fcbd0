"""Corrections on a real database: found, applied once whatever dies, days old too; bars as first published, as of a time, final."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import OperationalError, connection

from integration import archive, jobs, outbox
from integration.bars import Bar, BarKey
from integration.corrections import TradeKey
from integration.market.events import decode_bar
from integration.market.sessions import DAY, HOUR, MINUTE, SECOND, SessionTable
from integration.market.ticks import NEW
from integration.models import Amendment, Batch, OutgoingMessage, SequencerState, Slice, Trade
from integration.models import Bar as StoredBar
from integration.records import StoredRecords
from integration.rows import unpack_payload
from integration.selectors import bars_as
from tests.e2e.events import TS, messages, quote, trade
from tests.e2e.world import World
from tests.faults.poison import Killed
from tests.integration.naive_bars import Naive, Row
from tests.integration.test_sequencing import Broker, facts, loop, settle

NS = 1_000_000_000


def consume(world: World, *events: bytes, published: int = TS + 5) -> None:
    """Store events in one batch, as of a clock that stands where they were published."""
    worker = world.workers[0] if world.workers else world.worker()
    worker.now_ns = lambda: published + SECOND
    worker.source.put(*messages(*events, published=published))  # type: ignore[attr-defined]  # a MemorySource
    while worker.source.waiting or worker.has_work:  # type: ignore[attr-defined]
        worker.step()


def sent(number: int, trade_id: int, ts: int = TS, price: Any = "10", **other: Any) -> bytes:
    return trade(number, ts=ts, price=price, trade_id=trade_id, **other)


def bar(
    world: World, start: int = TS, timeframe: str = "1m", *, revision: str | int = "final", instrument: str = "AAA.SIMX"
) -> Bar | None:
    found = bars_as(world.instruments[instrument], 0, timeframe, start, start + 1, revision=revision)
    return found[0] if found else None


def two_days(world: World) -> None:
    """Store a day's trades, the next day's first ones, and what is said about yesterday then."""
    consume(world, sent(1, 1, TS), sent(2, 2, TS + 1, "14"), sent(3, 3, TS + 2, "12"), published=TS + 2)
    consume(world, sent(4, 4, TS + 2 * MINUTE, "11"), quote(5, ts=TS + 2 * MINUTE), published=TS + 2 * MINUTE)
    consume(world, sent(6, 6, TS + DAY, "20"), published=TS + DAY)
    consume(world, sent(7, 7, TS + DAY + 2 * MINUTE, "21"), published=TS + DAY + 2 * MINUTE)


def amendments(world: World) -> None:
    """Store corrections and cancels of yesterday's trades, one of an unknown trade, and a cancel of what is corrected."""
    later = TS + DAY + 5 * MINUTE
    consume(world, sent(8, 2, later, action="cancel"), published=later)
    consume(world, sent(9, 3, later, "13", action="correct"), sent(10, 99, later, action="cancel"), published=later + 1)
    consume(
        world, sent(11, 3, TS + 2, "15", action="correct"), sent(12, 4, later, action="cancel"), published=later + 2
    )


def test_corrections_of_yesterday_revise_every_bar_they_touch(world: World) -> None:
    two_days(world)
    settle(loop(Broker()))
    amendments(world)
    broker = Broker()
    settle(loop(broker))
    minute, day = bar(world), bar(world, TS - TS % DAY, "1d")
    assert minute is not None
    assert day is not None
    assert (minute.open, minute.high, minute.close, minute.trade_count) == (10 * NS, 15 * NS, 15 * NS, 2)
    assert (day.open, day.high, day.close, day.volume, day.trade_count) == (10 * NS, 15 * NS, 15 * NS, 2 * NS, 2)
    reasons = StoredBar.objects.filter(timeframe="1m", source_id=0, start=TS).order_by("revision")
    assert list(reasons.values_list("reason", flat=True)) == ["first", "cancel", "correction", "correction"]
    told = [decode_bar(message.payload) for key, message in broker.kept.items() if key[0] == "bars"]
    withdrawn = [one for one in told if one.start == TS + 2 * MINUTE and one.timeframe == "1m"]
    assert {(one.revision, one.trade_count, one.close) for one in withdrawn} == {(2, 0, 11 * NS)}
    assert bar(world, TS + 2 * MINUTE) is None
    states = Amendment.objects.order_by("sequence").values_list("sequence", "state", "trade_ts")
    assert list(states) == [
        (8, "applied", TS + 1), (9, "applied", TS + 2), (10, "waiting", 0), (11, "applied", TS + 2), (12, "applied", TS + 2 * MINUTE),
    ]  # fmt: skip
    later = TS + 2 * DAY
    consume(world, sent(13, 99, later), published=later)
    settle(loop(Broker()))
    assert Amendment.objects.get(sequence=10).trade_sequence == 13
    assert not StoredBar.objects.filter(start__gte=later - later % MINUTE, timeframe="1m").exists()


def test_each_timeframe_agrees_with_the_stored_trades(world: World) -> None:
    """The stored trades, put through the naive computation, are the bars that are final."""
    two_days(world)
    settle(loop(Broker()))
    amendments(world)
    settle(loop(Broker()))
    instrument, source = world.instruments["AAA.SIMX"], world.sources["alpha"]
    naive = Naive({instrument: SessionTable.of_always_open()}, SECOND)
    names = ("ts_event", "price", "size", "conditions", "flags", "kind", "action", "ts_publish", "trade_id", "sequence")
    for payload, clock in Batch.objects.order_by("pub_seq").values_list("payload", "clock"):
        ticks = unpack_payload(bytes(payload))
        columns = [getattr(ticks, name).tolist() for name in names]
        rows = [
            Row(**dict(zip(names, values, strict=True)), instrument_id=instrument, source_id=source)
            for values in zip(*columns, strict=True)
        ]
        naive.fold(rows, clock, 1)
    for key, interval in naive.intervals.items():
        if interval.revision:
            (known,) = outbox.load_bars([BarKey(*key)])
            values = (known.volume, known.turnover, known.trade_count, known.revision)
            sized = [one.row for one in interval.trades]
            turnover = sum(row.price * row.size for row in sized)
            assert values == (sum(row.size for row in sized), turnover, len(sized), interval.revision)


@pytest.mark.parametrize(
    "point", ["before_numbering", "before_sequencer_commit", "after_sequencer_commit", "after_publish"]
)
@pytest.mark.parametrize("error", [OperationalError("away"), Killed()])
def test_a_death_at_any_point_changes_nothing_in_the_end(world: World, point: str, error: BaseException) -> None:
    def whole(at: str, problem: BaseException | None) -> tuple[Any, ...]:
        calls = list[str]()

        def reached(here: str) -> None:
            calls.append(here)
            if problem is not None and here == at and calls.count(at) == 1:
                raise problem

        for part in (two_days, amendments):
            part(world)
            broker = Broker()
            try:
                settle(loop(broker, reached=reached))
            except Killed:
                connection.close()
                settle(loop(broker, holder="second"))
        columns = ("sequence", "state", "bound_seq", "trade_ts", "trade_sequence", "pub_seq", "row")
        return facts(), list(Amendment.objects.order_by("sequence").values_list(*columns))

    disturbed = whole(point, error)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE integration_batch SET pub_seq = NULL")
        for model in (StoredBar, OutgoingMessage, Amendment):
            model._default_manager.all().delete()
        cursor.execute("UPDATE integration_sequencerstate SET pub_seq = 0, checkpoint = '', checkpoint_pub_seq = 0")
        cursor.execute("DELETE FROM integration_gap")
    ids = list(Batch.objects.order_by("id").values_list("id", flat=True))
    # The same batches in the same rounds.
    sequencer = loop(Broker())
    settle(sequencer)
    columns = ("sequence", "state", "bound_seq", "trade_ts", "trade_sequence", "pub_seq", "row")
    assert (facts(), list(Amendment.objects.order_by("sequence").values_list(*columns))) == disturbed
    assert ids == list(Batch.objects.order_by("pub_seq").values_list("id", flat=True))


def test_amendments_are_folded_once_and_never_again_after_a_start(world: World) -> None:
    two_days(world)
    settle(loop(Broker()))
    amendments(world)
    settle(loop(Broker()))
    state = SequencerState.objects.get()
    assert state.checkpoint_pub_seq == state.pub_seq


# --- what is read


def records_of(world: World) -> tuple[StoredRecords, int, int]:
    return StoredRecords(), world.instruments["AAA.SIMX"], world.sources["alpha"]


def number_all(world: World) -> int:
    settle(loop(Broker()))
    return SequencerState.objects.get().pub_seq


def test_a_trade_is_found_in_whatever_slice_it_lies(world: World) -> None:
    for day in range(12):
        moment = TS + day * DAY
        consume(world, sent(day + 1, 5 if day % 6 == 0 else 100 + day, moment, str(day + 1)), published=moment)
    until = number_all(world)
    assert Slice.objects.filter(table="trade").count() >= 12
    records, instrument, source = records_of(world)
    key = TradeKey(instrument, source, 5)

    def times(ts: int) -> list[int]:
        return sorted(one.ts_event for one in records.candidates([(key, ts)], until))

    assert times(TS + 20 * DAY)[-1] == TS + 6 * DAY
    assert times(TS + 6 * DAY)[-1] == TS + 6 * DAY
    assert TS in times(TS + 6 * DAY - 1)
    assert times(TS - 1)[0] == TS
    assert records.candidates([(TradeKey(instrument, source, 6), TS + DAY)], until) == []
    assert records.candidates([(TradeKey(instrument, source + 1, 5), TS + DAY)], until) == []
    both = [(key, TS), (TradeKey(instrument, source, 103), TS + 20 * DAY)]
    assert {one.trade_id for one in records.candidates(both, until)} == {5, 103}


def test_rows_of_batches_that_do_not_count_yet_do_not_exist(world: World) -> None:
    consume(world, sent(1, 1), published=TS)
    consume(world, sent(2, 2), published=TS + 1)
    until = number_all(world)
    consume(world, sent(3, 3), published=TS + 2)
    records, instrument, _ = records_of(world)

    def ids(number: int) -> list[int]:
        return [one.trade_id for one in records.trades([(instrument, TS)], number)]

    assert (ids(until), ids(until - 1), ids(0)) == ([1, 2], [1], [])
    Batch.objects.filter(pub_seq=1).delete()
    assert ids(0) == [1]  # retention took its batch, which was an old one


def test_trades_of_one_time_come_in_the_order_in_which_they_arrived(world: World) -> None:
    # The sequences run against the arrival: only the payload knows.
    consume(world, sent(3, 1, price="3"), sent(2, 2, price="2"), sent(1, 3, price="1"), sent(4, 4), published=TS)
    until = number_all(world)
    records, instrument, _ = records_of(world)
    assert [one.sequence for one in records.trades([(instrument, TS)], until)] == [3, 2, 1, 4]


def test_what_left_the_tables_is_asked_for_elsewhere(world: World) -> None:
    two_days(world)
    until = number_all(world)
    instrument, source = world.instruments["AAA.SIMX"], world.sources["alpha"]
    moved = [
        (one.instrument_id, one.source_id, one.channel, one.session, one.sequence, one.trade_id, one.ts_event,
         int(one.price * NS), int(one.size * NS), one.conditions, one.flags, one.batch_id)
        for one in Trade.objects.filter(ts_event__lt=TS + DAY)
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM integration_trade WHERE ts_event < %s AND sequence <> 1", [TS + DAY])

    def older(instrument_id: int, start: int, end: int) -> Iterable[tuple[int, ...]]:
        return [row for row in moved if row[0] == instrument_id and start <= row[6] < end]

    records = StoredRecords(older)
    assert [one.trade_id for one in records.trades([(instrument, TS)], until)] == [1, 2, 3]
    assert [one.ts_event for one in records.candidates([(TradeKey(instrument, source, 3), TS + DAY)], until)] == [
        TS + 2
    ]
    amendments(world)
    settle(loop(Broker(), records=records))
    minute = bar(world)
    assert minute is not None
    assert (minute.trade_count, minute.high) == (2, 15 * NS)


def test_trades_of_a_day_in_the_lake_are_corrected_too(world: World, settings: Any, tmp_path: Path) -> None:
    settings.MDI = replace(settings.MDI, lake_url=str(tmp_path / "lake"), var_dir=tmp_path)
    two_days(world)
    settle(loop(Broker()))
    assert archive.archive_day("trade", date(2026, 1, 5)) is not None
    assert not Trade.objects.filter(ts_event__lt=TS + HOUR).exists()
    later = TS + DAY + 5 * MINUTE
    events = sent(8, 2, later, action="cancel"), sent(9, 3, later, "13", action="correct")
    consume(world, *events, published=later)
    settle(loop(Broker()))
    assert set(Amendment.objects.values_list("state", flat=True)) == {"applied"}
    minute = bar(world)
    assert minute is not None
    assert (minute.open, minute.high, minute.close, minute.trade_count) == (10 * NS, 13 * NS, 13 * NS, 2)


def test_a_finished_slice_has_an_index_for_the_search(world: World) -> None:
    consume(world, sent(1, 1), published=TS)
    piece = Slice.objects.filter(table="trade").first()
    assert piece is not None
    jobs.index_slice(f"trade:{piece.start}")
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [piece.relation])
        assert any("trade_id int8_bloom_ops" in definition for (definition,) in cursor.fetchall())
    jobs.index_slice(f"trade:{piece.start}")


# --- late ticks and files of the next day


def test_a_file_of_the_next_day_revises_the_bars_of_closed_days(world: World) -> None:
    consume(world, sent(1, 1, TS, "10"), published=TS)
    consume(world, sent(2, 2, TS + DAY, "20"), published=TS + DAY)
    consume(world, sent(3, 3, TS + 2 * DAY, "30"), published=TS + 2 * DAY)
    settle(loop(Broker()))
    day = TS - TS % DAY
    before = {(start, frame): bar(world, start, frame) for start in (day, day + DAY) for frame in ("1d",)}
    assert all(found is not None and found.is_final for found in before.values())
    late = TS + 2 * DAY + HOUR
    files = [sent(10 + at, 50 + at, TS + at // 4 * DAY + at % 4 * MINUTE, str(5 + at), channel=9) for at in range(8)]
    consume(world, *files, published=late)
    settle(loop(Broker()))
    for number in range(2):
        first = 5 + 4 * number
        start = TS + number * DAY
        minute, five, whole = (
            bar(world, start, "1m"), bar(world, start, "5m"), bar(world, day + number * DAY, "1d"),
        )  # fmt: skip
        assert minute is not None
        assert five is not None
        assert whole is not None
        assert (minute.revision, minute.reason, minute.trade_count, minute.low) == (2, "late_trade", 2, first * NS)
        for longer in (five, whole):
            assert (longer.revision, longer.reason, longer.is_final) == (2, "late_trade", True)
            assert (longer.trade_count, longer.close, longer.volume) == (5, (first + 3) * NS, 5 * NS)


# --- bars as they were


def test_bars_as_first_as_of_a_time_and_final(world: World) -> None:
    two_days(world)
    settle(loop(Broker()))
    amendments(world)
    settle(loop(Broker()))
    instrument = world.instruments["AAA.SIMX"]
    stamps = dict(
        StoredBar.objects.filter(timeframe="1m", source_id=0, start=TS).values_list("revision", "ts_published")
    )
    told = [
        decode_bar(bytes(row))
        for row in OutgoingMessage.objects.filter(topic="out/bars").values_list("payload", flat=True)
    ]
    wire = {one.revision: one.timestamp for one in told if (one.start, one.timeframe, one.source_id) == (TS, "1m", 0)}
    assert stamps == wire
    known = [bar(world, revision=moment) for moment in (stamps[1] - 1, stamps[1], stamps[2], stamps[3], stamps[4])]
    assert [one and (one.revision, one.close) for one in known] == [
        None, (1, 12 * NS), (2, 12 * NS), (3, 13 * NS), (4, 15 * NS),
    ]  # fmt: skip
    first, final = bar(world, revision="first"), bar(world)
    assert first is not None
    assert final is not None
    assert (first.revision, final.revision) == (1, 4)
    # What was withdrawn is not among the final bars; it was among the first.
    starts = {
        word: [one.start for one in bars_as(instrument, 0, "1m", TS, TS + HOUR, revision=word)]
        for word in ("first", "final")
    }
    assert starts == {"first": [TS, TS + 2 * MINUTE], "final": [TS]}
    assert [one.start for one in bars_as(instrument, 0, "1m", TS, TS + 2 * DAY, revision="first")] == [
        TS, TS + 2 * MINUTE, TS + DAY, TS + DAY + 2 * MINUTE,
    ]  # fmt: skip
    assert bars_as(instrument, world.sources["alpha"], "1m", TS, TS + 1)[0].source_id == world.sources["alpha"]
    with pytest.raises(ValueError, match="latest"):
        bars_as(instrument, 0, "1m", TS, TS + 1, revision="latest")


def test_bars_as_asks_one_question(world: World, django_assert_num_queries: Any) -> None:
    two_days(world)
    settle(loop(Broker()))
    words: Sequence[str | int] = ("first", "final", TS)
    for word in words:
        with django_assert_num_queries(1):
            bars_as(world.instruments["AAA.SIMX"], 0, "1m", TS, TS + DAY, revision=word)


def test_stored_rows_are_what_arrived(world: World) -> None:
    consume(world, sent(1, 1, TS, "12.5", conditions=["odd_lot"], size=3), published=TS)
    until = number_all(world)
    records, instrument, source = records_of(world)
    (found,) = records.trades([(instrument, TS)], until)
    ticks = unpack_payload(bytes(Batch.objects.get(tick_count=1).payload))
    assert found[:6] == (instrument, source, 0, int(ticks.session[0]), 1, 1)
    assert (found.price, found.size, found.conditions) == (12_500_000_000, 3 * NS, 1)
    assert np.array_equal(ticks.action, [NEW])
