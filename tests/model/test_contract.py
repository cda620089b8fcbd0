"""The model's store and leases answer as the real ones do: the same script, the same observations, on both."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from django.db import OperationalError

from integration import lease as real_leases
from integration import storage as real_storage
from integration.market.errors import FencedError
from integration.market.identity import KNOWN, Identities
from integration.models import Batch, Position, Subscription
from integration.pipeline import Outcome, PartitionState, Request, Stored, process
from integration.slices import SliceMap
from integration.storage import BatchFacts
from tests.e2e.events import TOPIC, TS, message, trade
from tests.e2e.world import World as Rows
from tests.model import seam
from tests.model.actors import facts
from tests.model.world import answers, new_world

PARTITION = "partition-0"


class RealStore:
    """PostgreSQL."""

    def __init__(self) -> None:
        self.slots = _slots()
        self.storage: Any = real_storage
        self.acquire: Callable[[str, str], Any] = real_leases.acquire
        self.subscription = Subscription.objects.get()

    def position(self) -> tuple[int, int, bytes]:
        row = Position.objects.get(partition=PARTITION)
        return row.number, row.clock, bytes(row.message_id)

    def batches(self) -> list[tuple[int, int]]:
        return list(Batch.objects.order_by("number").values_list("number", "clock"))

    def close(self) -> None:
        return


class ModelStore:
    """The model's world, each request answered at once and without a fault."""

    def __init__(self) -> None:
        self.slots = _slots()
        self.world = new_world(((),), 1, 1)
        self.stack = ExitStack()
        self.stack.enter_context(seam.seams())
        seam.SAID.answer = self._answer
        self.storage: Any = seam.Storage()
        self.acquire: Callable[[str, str], Any] = seam.acquire
        self.subscription = None

    def _answer(self, request: Any) -> Any:
        answer, self.world, _ = next(answers(self.world, 0, request))
        return answer

    def position(self) -> tuple[int, int, bytes]:
        return self.world.positions[0][:3]

    def batches(self) -> list[tuple[int, int]]:
        return [(batch.number, batch.clock) for batch in self.world.batches]

    def close(self) -> None:
        self.stack.close()


def _slots() -> Any:
    from config.pipeline import build

    return build()


@pytest.fixture(params=[RealStore, ModelStore])
def store(request: pytest.FixtureRequest, world: Rows) -> Iterator[RealStore | ModelStore]:
    for table in ("trade", "quote"):
        SliceMap(table).ensure(np.array([TS], np.int64))
    made = request.param()
    yield made
    made.close()


def take(store: RealStore | ModelStore) -> tuple[Any, Position, PartitionState, int]:
    """Take the partition as the loop does."""
    lease = store.acquire(PARTITION, "test")
    position = store.storage.open_position(PARTITION, store.subscription)
    return lease, position, store.storage.load_state(position, facts(), store.slots), store.storage.next_batch_id()


def outcome_of(store: RealStore | ModelStore, state: PartitionState, *data: bytes) -> Outcome:
    def no_look_up(wanted: Identities) -> list[Stored]:
        return [None] * len(wanted)

    return process(Request(TOPIC, [message(one) for one in data], facts()), state, store.slots, no_look_up)


def record(store: RealStore | ModelStore, outcome: Outcome, lease: Any, position: Position, **changes: Any) -> int:
    at: dict[str, Any] = {"batch_id": 1, "number": 1, "clock": TS + 5, "last_message_id": b"7"} | changes
    stored = BatchFacts(position_id=position.pk, lease=lease, reference=facts(), ts_received=TS, **at)
    next_id: int = store.storage.record(outcome, stored, b"", lambda: TS)
    return next_id


def test_a_batch_is_stored_whole_and_known_afterwards(store: RealStore | ModelStore) -> None:
    lease, position, state, batch_id = take(store)
    outcome = outcome_of(store, state, trade(1, price=11), trade(2))
    next_id = record(store, outcome, lease, position, batch_id=batch_id)
    assert next_id > batch_id
    assert store.position() == (1, TS + 5, b"7")
    assert store.batches() == [(1, TS + 5)]
    again, position, state, _ = take(store)
    assert again.epoch != lease.epoch
    asked = Identities(*np.array([[1, 0, 20260105, 1, TS], [1, 0, 20260105, 3, TS]], np.int64).T)
    assert state.identities.judge(asked, {})[0].tolist() == [KNOWN, 0]
    found = store.storage.find_stored(position.pk, facts(), asked)
    assert [one.content[4] if one else None for one in found] == [11_000_000_000, None]


def test_who_has_lost_the_lease_stores_nothing(store: RealStore | ModelStore) -> None:
    lease, position, state, batch_id = take(store)
    take(store)
    with pytest.raises(FencedError):
        record(store, outcome_of(store, state, trade(1)), lease, position, batch_id=batch_id)
    assert (store.position()[0], store.batches()) == (0, [])


@pytest.mark.parametrize("number", [2, 0])
def test_who_is_at_another_number_stores_nothing(store: RealStore | ModelStore, number: int) -> None:
    lease, position, state, batch_id = take(store)
    with pytest.raises(FencedError):
        record(store, outcome_of(store, state, trade(1)), lease, position, batch_id=batch_id, number=number)
    assert (store.position()[0], store.batches()) == (0, [])


def test_an_error_before_the_commit_stores_nothing(store: RealStore | ModelStore) -> None:
    lease, position, state, batch_id = take(store)
    outcome = outcome_of(store, state, trade(1))

    def reached(point: str) -> None:
        if point == "before_commit":
            raise OperationalError("away")

    facts_ = BatchFacts(batch_id, position.pk, 1, lease, facts(), TS, TS + 5)
    with pytest.raises(OperationalError):
        store.storage.record(outcome, facts_, b"", lambda: TS, reached)
    if isinstance(store, ModelStore):
        seam.ask("close")  # as the loop does after any such error
    assert (store.position()[0], store.batches()) == (0, [])
    # And it can be stored after that.
    lease, position, state, batch_id = take(store)
    record(store, outcome_of(store, state, trade(1)), lease, position, batch_id=batch_id)
    assert store.batches() == [(1, TS + 5)]


def test_ids_rise_from_one_batch_to_the_next(store: RealStore | ModelStore) -> None:
    lease, position, state, drawn = take(store)
    ids = [drawn]
    for number in (1, 2, 3):
        outcome = outcome_of(store, state, trade(number))
        ids.append(record(store, outcome, lease, position, batch_id=ids[-1], number=number))
    assert ids == sorted(set(ids))
    assert [number for number, _ in store.batches()] == [1, 2, 3]
