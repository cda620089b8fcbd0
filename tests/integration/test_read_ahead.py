"""Reading ahead: what is read while a batch commits is stored next, in order and once; nothing is read past a limit or a suspect."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from django.db import OperationalError

from integration.market.errors import RetriableError
from integration.market.events import decode
from integration.market.ticks import TICK_COLUMNS, Decoded, Message
from integration.models import Trade
from integration.poison import InFlight
from integration.read_ahead import ReadAhead, count_messages
from integration.sources import MemorySource
from tests.e2e.events import arrow, messages, normalized, status, trade
from tests.e2e.world import World, sequences


class CountingSource(MemorySource):
    """Counts how often it was asked, and fails when told to."""

    def __init__(self, given: Sequence[Message] = ()) -> None:
        super().__init__(given)
        self.asked = 0
        self.failing = False

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        self.asked += 1
        if self.failing:
            raise RetriableError("the broker is away", code="broker_unavailable")
        return super().receive(limit, wait_s)


@pytest.fixture
def in_flight(tmp_path: Path) -> InFlight:
    return InFlight(tmp_path, "p")


EVENTS = messages(
    trade(1), status(2, "halted"), arrow([3, 4]), normalized(5, "trade"), b"junk", normalized(6, "ohlc"),
    trade(7, instrument="OIL.SIMX"), trade(8), b"more junk", trade(9), trade(10), arrow([11], source="simulated"),
)  # fmt: skip


def in_words(decoded: Decoded) -> dict[str, object]:
    """Everything that a batch says, with texts in place of their numbers."""
    said: dict[str, object] = {name: getattr(decoded.ticks, name).tolist() for name in TICK_COLUMNS}
    said["instrument"] = [decoded.instruments[at] for at in decoded.instrument]
    said["source"] = [decoded.sources[at] for at in decoded.source]
    said["currency"] = [decoded.currencies[at] for at in decoded.currency]
    return said | {"bars": decoded.bars, "statuses": decoded.statuses, "rejections": decoded.rejections}


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (4, 5, 6), (11,), tuple(range(1, 12))])
def test_what_is_decoded_in_parts_joins_to_what_is_decoded_at_once(cuts: tuple[int, ...]) -> None:
    starts, ends = (0, *cuts), (*cuts, len(EVENTS))
    parts = [(start, decode(EVENTS[start:end])) for start, end in zip(starts, ends, strict=True)]
    assert in_words(Decoded.join(parts)) == in_words(decode(EVENTS))


def test_messages_that_arrive_while_a_batch_commits_are_stored_next_in_order_and_once(world: World) -> None:
    source = CountingSource()

    def reached(point: str) -> None:
        if point == "before_commit" and len(arriving):
            source.put(*messages(*arriving.pop()))

    arriving = [[trade(3), trade(1)], [trade(2), trade(2)]]
    worker = world.worker(source, reached=reached)
    source.put(*messages(trade(1)))
    worker.step()
    assert (sequences(), source.acknowledged, worker.has_work) == ([1], 1, True)
    while worker.has_work:
        worker.step()
    assert sequences() == [1, 2, 3]
    assert list(Trade.objects.order_by("batch_id").values_list("sequence", flat=True)) == [1, 2, 3]
    assert source.acknowledged == 5


def test_what_was_read_ahead_waits_while_the_batch_before_it_fails(world: World) -> None:
    source, failures = CountingSource(), [OperationalError("away"), OperationalError("away")]

    def reached(point: str) -> None:
        if point == "mid_copy" and not source.waiting and source.asked == 2:
            source.put(*messages(trade(2)))
        if point == "after_commit" and failures:
            raise failures.pop()  # the outcome of the commit is unknown to us

    worker = world.worker(source, reached=reached)
    source.put(*messages(trade(1)))
    for _ in range(6):
        worker.step()
    assert (sequences(), source.acknowledged, worker.has_work) == ([1, 2], 2, False)


def test_broker_that_fails_while_a_batch_commits_does_not_fail_the_commit(world: World) -> None:
    source = CountingSource()

    def reached(point: str) -> None:
        source.failing = point == "before_commit"

    worker = world.worker(source, reached=reached)
    source.put(*messages(trade(1)))
    worker.step()
    assert (sequences(), source.acknowledged, worker.failures) == ([1], 1, 0)
    source.failing, worker.reached = True, lambda _: None
    worker.step()
    assert worker.failures == 1


def test_lone_event_waits_for_companions_and_many_in_one_message_do_not(in_flight: InFlight) -> None:
    lone = CountingSource(messages(trade(1)))
    ReadAhead(lone, decode, in_flight, 100).read(0)
    many = CountingSource(messages(arrow(range(1, 41))))
    ReadAhead(many, decode, in_flight, 100).read(0)
    assert (lone.asked, many.asked) == (2, 1)


def test_nothing_is_read_beyond_the_limits(in_flight: InFlight, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CountingSource(messages(*(trade(number) for number in range(1, 101))))
    reader = ReadAhead(source, decode, in_flight, 40)
    for _ in range(3):
        reader.read_more()
    assert (count_messages(reader.waiting), len(source.waiting)) == (40, 60)
    taken = reader.take()
    monkeypatch.setattr("integration.read_ahead.BATCH_BYTES", 1)
    reader.read_more()
    reader.read_more()
    assert [len(chunk.messages) for chunk in reader.waiting] == [40]
    reader.acknowledge(taken)
    assert source.acknowledged == 40
    reader.reopen()
    assert (reader.waiting, len(source.waiting)) == ([], 60)


def test_nothing_is_read_past_a_suspect(tmp_path: Path) -> None:
    for _ in range(2):
        InFlight(tmp_path, "p").begin(messages(trade(1)))
    source = CountingSource(messages(trade(1)))
    reader = ReadAhead(source, decode, InFlight(tmp_path, "p"), 100)
    reader.read_more()
    source.put(*messages(trade(2)))
    reader.read_more()
    assert [(chunk.is_suspect, chunk.decoded) for chunk in reader.waiting] == [(True, None)]
    assert len(source.waiting) == 1


def test_chunk_whose_decoding_raises_is_handed_out_undecoded(in_flight: InFlight) -> None:
    def broken(given: Sequence[Message]) -> Decoded:
        raise ZeroDivisionError

    reader = ReadAhead(CountingSource(messages(trade(1))), broken, in_flight, 100)
    reader.read(0)
    (chunk,) = reader.take()
    assert (chunk.decoded, chunk.is_suspect, chunk.events) == (None, False, 1)


def test_columns_of_a_join_are_of_the_declared_types() -> None:
    joined = Decoded.join([(0, decode(EVENTS[:4])), (4, decode(EVENTS[4:]))])
    assert {name: column.dtype for name, column in joined.ticks.columns()} == {
        name: np.dtype(kind) for name, kind in TICK_COLUMNS.items()
    }


def test_what_was_given_up_meanwhile_is_not_acknowledged(in_flight: InFlight) -> None:
    source = CountingSource(messages(trade(1), trade(2)))
    reader = ReadAhead(source, decode, in_flight, 100)
    reader.read_more()
    taken = reader.take()
    source.reopen()  # as when the connection broke: everything comes again
    reader.acknowledge(taken)
    assert (source.acknowledged, len(source.waiting)) == (0, 2)
    reader.read_more()
    reader.acknowledge(reader.take())
    assert (source.acknowledged, source.unacknowledged) == (2, [])
