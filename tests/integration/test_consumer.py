"""The loop over a partition on a real database: exactly once over restarts and errors, parked lanes, releases, pauses, poison."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from django.db import IntegrityError, OperationalError, connection, connections
from django.db.models import F

from config.pipeline import build
from integration import lease as leases
from integration import rows, storage
from integration.consumer import PartitionWorker
from integration.market.errors import RetriableError
from integration.market.events import decode
from integration.market.ticks import FLAG_HALTED, FLAG_LATE, FLAG_RELEASED, Decoded, Message, Ticks
from integration.models import (
    Batch,
    InstrumentAlias,
    InstrumentStatus,
    Job,
    Lease,
    Position,
    QuarantinedEvent,
    Quote,
    Slice,
    Subscription,
    Trade,
    UpstreamEvent,
)
from integration.pipeline import Slots
from integration.sources import MemorySource
from integration.storage import reach_nothing
from tests.e2e.events import SECOND, TOPIC, TS, arrow, messages, normalized, quote, status, trade
from tests.e2e.world import PARTITION, World, quarantined, sequences, until
from tests.faults.poison import MARK, SPARED, Killed, die_on_mark

State = QuarantinedEvent.State
DAY = 86_400 * SECOND


def run(worker: PartitionWorker, *data: bytes, published: int = TS + 5) -> None:
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*messages(*data, published=published))
    while worker.source.waiting or worker.has_work:
        worker.step()


def settle(worker: PartitionWorker) -> None:
    """Let what is due once a second be done now."""
    worker.checked_at = 0.0
    worker.references._checked_at = 0.0
    worker.step()


def test_everything_of_a_batch_is_in_one_transaction(world: World) -> None:
    worker = world.worker()
    run(
        worker, trade(1, price="10.000000001"), quote(2, "-1", "1", instrument="OIL.SIMX"), normalized(3, "trade"), normalized(4, "ohlc"),
        status(5, "halted", ts=TS + 9), b"junk", trade(6, instrument="ZZZ.SIMX"), trade(1, price="10.000000001"), arrow([8, 9]),
        trade(7, price=0), trade(0, event_id="x", price="3"),
    )  # fmt: skip
    assert sequences()[1:] == [1, 3, 8, 9] or sequences()[:-1] == [1, 3, 8, 9]
    assert sequences(Quote) == [2]
    assert Trade.objects.get(sequence=1).price == Decimal("10.000000001")
    assert Quote.objects.get().bid == -1
    assert quarantined() == [
        ("unknown_instrument", State.PARKED),
        ("malformed", State.QUARANTINED),
        ("price_sign", State.QUARANTINED),
    ]
    assert bytes(QuarantinedEvent.objects.get(code="malformed").raw) == b"junk"
    batch, position = Batch.objects.get(), Position.objects.get()
    assert (batch.message_count, batch.tick_count, batch.rejected_count, batch.parked_count, batch.duplicate_count) == (
        11,
        6,
        2,
        1,
        1,
    )
    assert (position.number, position.tick_count, position.clock) == (1, 6, TS + 15)
    assert set(Trade.objects.values_list("batch_id", flat=True)) == {batch.pk}
    assert UpstreamEvent.objects.count() == 2
    assert InstrumentStatus.objects.get().status == "halted"
    assert set(Job.objects.values_list("kind", "key")) == {("notify_quarantine", code) for code, _ in quarantined()}
    assert worker.source.acknowledged == 11  # type: ignore[attr-defined]


ALL_FORMS = (
    trade(1), quote(2), quote(3, trade_id=7), normalized(4, "ohlc"), status(5, "halted", ts=TS + 3), trade(0, event_id="u"), arrow([1, 2, 3]),
    b"junk", b"", trade(6, price=0), trade(7, instrument="ZZZ.SIMX"), trade(8, source="elsewhere"), trade(1, price=11), trade(900_000),
    arrow([4, 5], size=[SECOND, 0]), arrow([9], source="nobody"), trade(9, action="cancel", trade_id=3, conditions=["odd_lot"]),
)  # fmt: skip


@pytest.mark.parametrize("snapshots", [200, 1])
def test_redelivery_after_a_restart_changes_nothing(
    world: World, snapshots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SNAPSHOT_EVERY", snapshots)
    first = world.worker()
    for event in ALL_FORMS:
        run(first, event)
    before = (
        sequences(),
        sequences(Quote),
        quarantined(),
        UpstreamEvent.objects.count(),
        InstrumentStatus.objects.count(),
    )
    tick_count = Position.objects.get().tick_count
    for worker in (first, world.worker(), world.worker()):
        run(worker, *ALL_FORMS)
        run(worker, *reversed(ALL_FORMS))
        assert (
            sequences(),
            sequences(Quote),
            quarantined(),
            UpstreamEvent.objects.count(),
            InstrumentStatus.objects.count(),
        ) == before
    assert Position.objects.get().tick_count == tick_count


def test_flags_go_on_as_if_there_had_been_no_restart(world: World) -> None:
    run(world.worker(), trade(1, ts=TS + 100), status(2, "halted", ts=TS + 150), trade(3, ts=TS + DAY))
    # An event of the future that an operator lets through makes no others late, before and after a restart.
    QuarantinedEvent.objects.filter(code="future").update(state=State.RELEASE_REQUESTED)
    worker = world.worker()
    run(worker, trade(4, ts=TS + 120))
    settle(worker)
    for number in (0, 1):
        worker = world.worker() if number else worker
        at = 10 * (number + 1)
        run(worker, trade(at, ts=TS + 100), trade(at + 1, ts=TS + 130 + number), trade(at + 2, ts=TS + 160 + number))
    flags = dict(Trade.objects.values_list("sequence", "flags"))
    assert flags == {
        1: 0, 3: FLAG_RELEASED | FLAG_HALTED, 4: 0, 10: FLAG_LATE, 11: 0, 12: FLAG_HALTED, 20: FLAG_LATE, 21: FLAG_LATE, 22: FLAG_HALTED,
    }  # fmt: skip


@pytest.mark.parametrize("point", ["after_receive", "before_copy", "mid_copy", "before_commit"])
@pytest.mark.parametrize("error", [OperationalError("away"), RetriableError("busy"), Killed()])
def test_an_error_between_steps_leaves_nothing_and_the_retry_stores_all(
    world: World, point: str, error: BaseException
) -> None:
    calls: list[str] = []

    def reached(here: str) -> None:
        calls.append(here)
        if here == point and calls.count(point) == 1:
            raise error

    source = MemorySource(messages(*ALL_FORMS))
    worker = world.worker(source, reached=reached)
    try:
        worker.step()
    except Killed:
        source.reopen()
        connection.close()
        worker = world.worker(source)
    assert (sequences(), quarantined(), Batch.objects.count()) == ([], [], 0)
    assert source.acknowledged == 0
    while source.waiting or worker.has_work:
        worker.step()
    stored = (sequences(), sequences(Quote), sorted(quarantined()))
    run(world.worker(), *ALL_FORMS)
    assert (sequences(), sequences(Quote), sorted(quarantined())) == stored
    assert [len(part) for part in stored[:2]] == [7, 2]
    assert source.acknowledged == len(ALL_FORMS)


def test_death_after_the_commit_and_before_the_acknowledgement_repeats_nothing(world: World) -> None:
    def reached(here: str) -> None:
        if here == "after_commit":
            raise Killed

    worker = world.worker(reached=reached)
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*messages(*ALL_FORMS))
    with pytest.raises(Killed):
        worker.step()
    before = (sequences(), sequences(Quote), quarantined())
    worker.source.reopen()
    again = world.worker(worker.source)
    again.step()
    assert (sequences(), sequences(Quote), quarantined()) == before
    assert Batch.objects.latest("number").duplicate_count == Batch.objects.earliest("number").tick_count + 2 + len(
        quarantined()
    )


# -- who owns the partition -------------------------------------------------------------------------------------------


def in_thread(act: Callable[[], object]) -> threading.Thread:
    def run_and_close() -> None:
        try:
            act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run_and_close)
    thread.start()
    return thread


def test_worker_that_lost_its_partition_writes_nothing_and_gives_its_messages_back(world: World) -> None:
    old, new = world.worker(holder="old"), world.worker(holder="new")
    run(old, trade(1))
    run(new, trade(2))
    assert isinstance(old.source, MemorySource)
    old.source.put(*messages(trade(3, price=5)))
    old.step()
    assert old.owned is None
    assert len(old.source.waiting) == 1
    assert old.source.acknowledged == 1
    assert sequences() == [1, 2]
    assert Lease.objects.get(name=PARTITION).holder == "new"
    old.step()  # The messages come again, to whoever the broker gives them.
    assert sequences() == [1, 2, 3]


def move_lease() -> None:
    Lease.objects.update(epoch=F("epoch") + 1)


def test_lease_that_moves_in_mid_transaction_fences_the_commit(world: World) -> None:
    def reached(here: str) -> None:
        if here == "mid_copy":
            worker.reached = reach_nothing
            # The row is not locked yet: another may take it.
            in_thread(move_lease).join()

    worker = world.worker(reached=reached)
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*messages(trade(1)))
    worker.step()
    assert sequences() == []
    assert Batch.objects.count() == 0
    worker.step()
    assert sequences() == [1]


def test_position_that_has_moved_fences_even_under_a_good_lease(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1))
    Position.objects.update(number=7)
    assert isinstance(worker.source, MemorySource)
    worker.source.put(*messages(trade(2)))
    worker.step()
    assert sequences() == [1]
    assert worker.owned is None
    worker.step()
    assert sequences() == [1, 2]
    assert Position.objects.get().number == 8


def test_takeover_ends_a_backend_that_is_frozen_in_its_transaction(world: World) -> None:
    frozen, go_on = threading.Event(), threading.Event()

    def freeze(here: str) -> None:
        if here == "before_commit":  # all rows are written, the lease row is locked
            old.reached = reach_nothing
            frozen.set()
            go_on.wait(30)

    old = world.worker(reached=freeze, holder="old")
    assert isinstance(old.source, MemorySource)
    old.source.put(*messages(trade(1), trade(2)))

    def go() -> None:
        old.step()
        old._forget()

    thread = in_thread(go)
    assert frozen.wait(30)
    new = world.worker(holder="new")
    run(new, trade(1), trade(2), trade(3))
    assert sequences() == [1, 2, 3]
    go_on.set()
    thread.join()
    assert sequences() == [1, 2, 3]
    assert Lease.objects.get(name=PARTITION).holder == "new"


def test_two_workers_that_fight_for_a_partition_store_everything_once(world: World) -> None:
    events = [trade(number) for number in range(1, 121)]

    def consume(worker: PartitionWorker) -> None:
        assert isinstance(worker.source, MemorySource)
        worker.source.put(*messages(*events))
        while worker.source.waiting or worker.has_work:
            worker.step()
        worker._forget()

    workers = [world.worker(holder=name, batch_messages=7) for name in ("a", "b")]
    threads = [in_thread(partial(consume, worker)) for worker in workers]
    for thread in threads:
        thread.join()
    assert sequences() == list(range(1, 121))
    assert list(Batch.objects.order_by("number").values_list("number", flat=True)) == list(
        range(1, Position.objects.get().number + 1)
    )


def test_clean_stop_gives_the_lease_back(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1))
    worker.close()
    assert Lease.objects.get(name=PARTITION).holder == ""
    assert leases.acquire_if_stale(PARTITION, "next", stale_after_s=1000) is not None
    assert leases.acquire_if_stale(PARTITION, "third", stale_after_s=1000) is None
    assert leases.acquire_if_stale(PARTITION, "third", stale_after_s=0) is not None


# -- lanes and releases -----------------------------------------------------------------------------------------------


def name(text: str, instrument_id: int, **span: object) -> None:
    InstrumentAlias.objects.create(instrument_id=instrument_id, value=text, **span)


@pytest.mark.parametrize("restart", [False, True])
def test_parked_events_flow_before_newer_ones_when_their_alias_comes(world: World, restart: bool) -> None:
    worker = world.worker()
    run(
        worker,
        trade(1, instrument="ZZZ.SIMX"),
        trade(2),
        status(3, "halted", instrument="ZZZ.SIMX", ts=TS + 5),
        trade(4, instrument="ZZZ.SIMX", ts=TS + 6),
    )
    run(worker, trade(5, instrument="ZZZ.SIMX", ts=TS + 7))
    name("ZZZ.SIMX", world.instruments["BBB.SIMX"])
    if restart:
        worker = world.worker()
    else:
        worker.references._checked_at = worker.checked_at = 0.0
    run(worker, trade(6, instrument="ZZZ.SIMX", ts=TS + 8), trade(7))
    settle(worker)
    assert sequences() == [1, 2, 4, 5, 6, 7]
    batches = dict(Trade.objects.values_list("sequence", "batch_id"))
    assert batches[1] <= batches[4] <= batches[5] <= batches[6]
    assert not worker.owned or not worker.owned.state.lanes
    assert {row[1] for row in quarantined()} == {State.RELEASED}
    flags = dict(Trade.objects.filter(instrument_id=world.instruments["BBB.SIMX"]).values_list("sequence", "flags"))
    assert flags[1] == FLAG_RELEASED
    assert flags[4] & FLAG_HALTED
    run(worker, trade(1, instrument="ZZZ.SIMX"), trade(4, instrument="ZZZ.SIMX", ts=TS + 6))
    assert sequences() == [1, 2, 4, 5, 6, 7]


def test_events_before_the_alias_begins_stay_parked_and_hold_up_nobody(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1, instrument="ZZZ.SIMX"))
    begins = datetime(2026, 1, 5, 14, 30, 1, tzinfo=UTC)
    name("ZZZ.SIMX", world.instruments["BBB.SIMX"], valid_from=begins)
    settle(worker)
    run(worker, trade(2, instrument="ZZZ.SIMX", ts=TS + 2 * SECOND))
    settle(worker)
    assert sequences() == [2]
    assert quarantined() == [("unknown_instrument", State.PARKED)]


def release(worker: PartitionWorker, **where: object) -> None:
    QuarantinedEvent.objects.filter(**where).update(state=State.RELEASE_REQUESTED)
    settle(worker)


def test_release_waives_the_reason_and_stores_once(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1, price=-1), trade(2, ts=TS + DAY), quote(3, 11, 10), arrow([4, 5], size=[SECOND, -SECOND]))
    release(worker)
    assert sequences() == [1, 2, 4, 5]
    assert sequences(Quote) == [3]
    assert {state for _, state in quarantined()} == {State.RELEASED}
    assert set(Trade.objects.exclude(sequence=4).values_list("flags", flat=True)) == {FLAG_RELEASED}
    release(worker)
    run(worker, trade(1, price=-1), arrow([4, 5], size=[SECOND, -SECOND]))
    assert sequences() == [1, 2, 4, 5]
    assert set(QuarantinedEvent.objects.values_list("released_batch_id", flat=True)) != {None}


def test_release_of_an_event_that_was_stored_meanwhile_is_a_duplicate(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1), trade(200_000))
    assert quarantined() == [("sequence_jump", State.QUARANTINED)]
    run(worker, trade(100_000), trade(200_000))
    assert sequences() == [1, 100_000, 200_000]
    release(worker)
    assert sequences() == [1, 100_000, 200_000]
    assert quarantined() == [("sequence_jump", State.RELEASED)]


def test_what_cannot_be_released_goes_back(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1), trade(1, price=11))
    QuarantinedEvent.objects.create(
        position=Position.objects.get(), batch_id=1, code="poison", detail="", channel=-2, session=-2, sequence=5, ts_publish=TS, ts_received=TS, raw=b"x"
    )  # fmt: skip
    release(worker)
    assert quarantined() == [("conflict", State.QUARANTINED), ("poison", State.QUARANTINED)]
    assert sequences() == [1]


def test_release_that_is_refused_again_says_the_new_reason(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1, price=0, size=0))
    assert quarantined() == [("size_sign", State.QUARANTINED)] or quarantined() == [("price_sign", State.QUARANTINED)]
    (first,) = {code for code, _ in quarantined()}
    release(worker)
    ((second, state),) = quarantined()
    assert {first, second} == {"size_sign", "price_sign"}
    assert state == State.QUARANTINED
    assert sequences() == []


def test_stream_of_a_stranger_is_released_row_by_row(world: World) -> None:
    """The whole stream is one refused event; when it may flow, its rows are judged one by one and known one by one."""
    worker = world.worker()
    stream = arrow([1, 2, 3], source="elsewhere", size=[SECOND, 0, SECOND])
    run(worker, stream)
    assert quarantined() == [("source_not_bound", State.QUARANTINED)]
    from integration.models import Source, SourceBinding

    SourceBinding.objects.create(source=Source.objects.get(code="elsewhere"), topic=TOPIC)
    release(worker)
    assert sequences() == [1, 3]
    assert quarantined() == [("source_not_bound", State.RELEASED), ("size_sign", State.QUARANTINED)]
    release(worker, code="size_sign")
    assert sequences() == [1, 2, 3]
    run(worker, stream)
    assert sequences() == [1, 2, 3]
    assert {state for _, state in quarantined()} == {State.RELEASED}


# -- faults of our own ------------------------------------------------------------------------------------------------


def explode_on(mark: bytes) -> Slots:
    """Give slots whose decoder raises where a message holds `mark`."""

    def fails(given: Sequence[Message]) -> Decoded:
        if any(mark in item.data for item in given):
            raise ZeroDivisionError("a stage of ours")
        return decode(given)

    return replace(build(), decode=fails)


def test_stage_that_raises_costs_one_event_and_its_release_after_the_fix_stores_it(world: World) -> None:
    worker = world.worker(slots=explode_on(b"t-13"))
    run(worker, *(trade(number) for number in range(1, 21)))
    assert sequences() == [number for number in range(1, 21) if number != 13]
    assert quarantined() == [("internal", State.QUARANTINED)]
    assert "ZeroDivisionError: a stage of ours" in QuarantinedEvent.objects.get().detail
    # Released before the fix it goes back, and the loop goes on.
    release(worker)
    assert quarantined() == [("internal", State.QUARANTINED)]
    run(worker, trade(21))
    fixed = world.worker()
    run(fixed, trade(13))
    assert 13 in sequences()
    release(fixed)
    assert sequences() == list(range(1, 22))
    assert quarantined() == [("internal", State.RELEASED)]


def test_value_that_postgresql_refuses_costs_one_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows.copy_pieces

    def spoilt(table: str, ticks: Ticks, batch_id: int) -> Iterator[bytes]:
        yield from whole(table, ticks, batch_id)
        if np.isin(7, ticks.sequence):
            raise IntegrityError("a value of ours that no table takes")

    monkeypatch.setattr(storage, "copy_pieces", spoilt)
    run(world.worker(), *(trade(number) for number in range(1, 11)))
    assert sequences() == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert quarantined() == [("internal", State.QUARANTINED)]


def test_poison_is_found_in_child_processes_and_its_neighbours_are_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process the death is an exception that no rule catches; in the children it is real.
    monkeypatch.setenv(SPARED, str(os.getpid()))
    slots = replace(build(), decode=die_on_mark)
    poison = trade(3).replace(b"t-3", MARK)
    source = MemorySource(messages(trade(1), trade(2), poison, trade(4)))
    worker = world.worker(source, slots=slots)
    monkeypatch.setattr(type(worker.in_flight), "done", reach_nothing)  # as when the process is gone
    for _ in range(2):
        with pytest.raises(Killed):
            worker.step()
        source.reopen()
        worker = world.worker(source, slots=slots)
    monkeypatch.undo()
    monkeypatch.setenv(SPARED, str(os.getpid()))
    worker.step()
    assert sequences() == [1, 2, 4]
    assert quarantined() == [("poison", State.QUARANTINED)]
    assert bytes(QuarantinedEvent.objects.get().raw) == poison
    assert source.acknowledged == 4


def test_errors_are_no_attempts_of_poison(world: World) -> None:
    def reached(here: str) -> None:
        if here == "before_commit" and len(failures) < 5:
            failures.append(here)
            raise OperationalError("away")

    failures: list[str] = []
    worker = world.worker(reached=reached, stop=_NoWait())
    run(worker, trade(1))
    assert len(failures) == 5
    assert not worker.in_flight.begin(messages(trade(1)))
    worker.in_flight.done()


class _NoWait(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


# -- times, slices, clock, pause --------------------------------------------------------------------------------------


def test_times_without_a_slice_are_refused_and_their_neighbours_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integration.slices.MAX_NEW_SLICES", 2)
    monkeypatch.setattr("integration.slices.WIDTHS_NS", (10 * SECOND,))
    worker = world.worker()
    run(worker, *(trade(number, ts=TS - number * 60 * SECOND) for number in range(1, 6)))
    assert [code for code, _ in quarantined()] == ["unroutable"] * 3
    assert len(sequences()) == 2
    release(worker)
    release(worker)
    assert sequences() == [1, 2, 3, 4, 5]


def test_idle_partition_tells_the_clock_so_that_bars_close(world: World) -> None:
    now = [TS + SECOND]
    worker = world.worker(now_ns=lambda: now[0])
    run(worker, trade(1))
    for step in range(0, 200, 10):
        now[0] = TS + step * SECOND
        worker.step()
    clocks = list(Batch.objects.filter(message_count=0).order_by("number").values_list("clock", flat=True))
    assert clocks == [
        TS + 10 * SECOND - SECOND // 2,
        TS + 70 * SECOND - SECOND // 2,
        TS + 130 * SECOND - SECOND // 2,
        TS + 190 * SECOND - SECOND // 2,
    ]
    now[0] = TS + 30 * 3600 * SECOND
    worker.step()
    assert Batch.objects.filter(message_count=0).count() == 4


def test_pause_and_resume_take_effect_within_two_seconds(world: World) -> None:
    worker = world.worker()
    thread = in_thread(worker.run)
    source = worker.source
    assert isinstance(source, MemorySource)
    source.put(*messages(trade(1)))
    until(lambda: sequences() == [1])
    Subscription.objects.update(is_paused=True)
    time.sleep(2)
    source.put(*messages(trade(2)))
    time.sleep(1)
    assert sequences() == [1]
    Subscription.objects.update(is_paused=False)
    time.sleep(2)
    assert sequences() == [1, 2]
    worker.stop.set()
    thread.join()


def test_change_of_reference_data_is_seen_within_a_second(world: World) -> None:
    worker = world.worker()
    run(worker, trade(1))
    name("NEW.SIMX", world.instruments["BBB.SIMX"])
    time.sleep(1)
    run(worker, trade(2, instrument="NEW.SIMX"))
    assert sequences() == [1, 2]


def test_canary_is_in_no_count_and_in_no_table_and_its_repeat_is_silent(world: World) -> None:
    for worker in (world.worker(), world.worker()):
        run(worker, trade(1, instrument="CANARY.MDIX"), trade(2))
    assert sequences() == [2]
    assert Position.objects.get().tick_count == 1
    assert quarantined() == []


def test_slices_hold_the_stored_ticks_without_overlap(world: World) -> None:
    run(world.worker(), *(trade(number, ts=TS - number * 3600 * SECOND) for number in range(1, 40)))
    spans = list(Slice.objects.filter(table="trade").order_by("start").values_list("start", "end"))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert sequences() == list(range(1, 40))
