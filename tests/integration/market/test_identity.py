"""Identities: exact over any order, repeats and memory limits; changed by `adopt` alone."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market import identity
from integration.market.identity import JUMP, KNOWN, NEW, UNSURE, Identities, KnownIdentities, SeenSequences
from integration.market.ticks import UNNUMBERED, UNREADABLE

Event = tuple[int, int, int, int, int]
event = st.tuples(
    st.integers(1, 2), st.sampled_from([0, 3, UNNUMBERED]), st.integers(0, 1), st.integers(1, 40), st.integers(0, 9)
).map(lambda e: e if e[1] != UNNUMBERED else (e[0], UNNUMBERED, UNNUMBERED, e[3], e[4]))


def columns(events: list[Event]) -> Identities:
    array = np.array(events, np.int64).reshape(-1, 5)
    return Identities(
        array[:, 0].astype(np.int32),
        array[:, 1].astype(np.int32),
        array[:, 2].copy(),
        array[:, 3].copy(),
        array[:, 4].copy(),
    )


def verdicts(known: KnownIdentities, events: list[Event], limit: int = 10**6) -> list[int]:
    return [int(verdict) for verdict in known.judge(columns(events), dict.fromkeys((1, 2), limit))[0]]


@given(st.lists(st.lists(event, max_size=12), max_size=8))
def test_each_identity_is_new_exactly_once(batches: list[list[Event]]) -> None:
    known, seen = KnownIdentities(), set()
    for batch in batches:
        expected = []
        for item in batch:
            expected.append(KNOWN if item[:4] in seen else NEW)
            seen.add(item[:4])
        assert verdicts(known, batch) == expected
        known.adopt(columns(batch))
        known = KnownIdentities.load(known.dump())


def test_judging_changes_nothing() -> None:
    known = KnownIdentities()
    assert verdicts(known, [(1, 0, 0, 5, 0)]) == [NEW]
    assert verdicts(known, [(1, 0, 0, 5, 0)]) == [NEW]


def test_a_repeat_inside_a_batch_points_at_its_first() -> None:
    judged, first = KnownIdentities().judge(
        columns([(1, 0, 0, 7, 0), (2, 0, 0, 7, 0), (1, 0, 0, 3, 0), (1, 0, 0, 7, 0)]), {}
    )
    assert judged.tolist() == [NEW, NEW, NEW, KNOWN]
    assert first.tolist() == [0, 1, 2, 0]


def test_a_session_that_starts_again_at_one_is_no_repeat() -> None:
    known = KnownIdentities()
    known.adopt(columns([(1, 0, 20260105, 1, 0)]))
    assert verdicts(known, [(1, 0, 20260106, 1, 0), (1, 0, 20260105, 1, 0)]) == [NEW, KNOWN]


def test_a_jump_beyond_the_limit_is_told_apart_and_a_first_sequence_may_be_anything() -> None:
    known = KnownIdentities()
    assert verdicts(known, [(1, 0, 0, 10**15, 0)], limit=100) == [NEW]
    known.adopt(columns([(1, 0, 0, 50, 0)]))
    assert verdicts(known, [(1, 0, 0, 151, 0)], limit=100) == [JUMP]
    assert verdicts(known, [(1, 0, 0, 150, 0), (1, 0, 0, 250, 0), (1, 0, 0, 351, 0)], limit=100) == [NEW, NEW, JUMP]


def test_sequences_that_left_memory_are_unsure_and_the_rest_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_BLOCKS", 2)
    seen = SeenSequences()
    block = identity.BLOCK_BITS
    for number in (0, 1, 2, 5):
        seen.add(np.array([number * block + 9], np.int64))
    asked = np.array([9, block + 9, 2 * block + 9, 2 * block + 8, 5 * block + 9, 5 * block + 10], np.int64)
    assert seen.judge(asked, 10**6).tolist() == [UNSURE, UNSURE, KNOWN, NEW, KNOWN, NEW]
    seen.add(np.array([7], np.int64))
    assert len(seen.blocks) == 2
    assert seen.judge(np.array([7], np.int64), 10).tolist() == [UNSURE]


def test_hashes_that_left_memory_are_unsure_by_event_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_HASHES", 2)
    known = KnownIdentities()
    known.adopt(
        columns(
            [(1, UNNUMBERED, UNNUMBERED, digest, ts) for digest, ts in ((11, 100), (12, 300), (13, 200), (14, 400))]
        )
    )
    unnumbered = (1, UNNUMBERED, UNNUMBERED)
    assert verdicts(known, [(*unnumbered, 11, 100), (*unnumbered, 99, 301), (*unnumbered, 14, 400)]) == [
        UNSURE,
        NEW,
        KNOWN,
    ]


def test_unreadable_bytes_are_known_or_unsure_never_new() -> None:
    known = KnownIdentities()
    assert verdicts(known, [(0, UNREADABLE, UNREADABLE, 5, 0)]) == [UNSURE]
    known.adopt(columns([(0, UNREADABLE, UNREADABLE, 5, 0)]))
    assert verdicts(known, [(0, UNREADABLE, UNREADABLE, 5, 0)]) == [KNOWN]


def test_equal_states_have_equal_bytes_and_foreign_bytes_are_refused() -> None:
    a, b = KnownIdentities(), KnownIdentities()
    a.adopt(columns([(1, 0, 0, 5, 0), (2, 0, 0, 5, 0)]))
    b.adopt(columns([(2, 0, 0, 5, 0)]))
    b.adopt(columns([(1, 0, 0, 5, 0)]))
    assert a.dump() == b.dump()
    with pytest.raises(ValueError, match="snapshot"):
        KnownIdentities.load(zlib.compress(b"NOPE" + bytes(16)))


def test_unnumbered_events_of_a_mixed_batch_are_remembered_and_judged_by_their_own_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "MAX_HASHES", 1)
    known = KnownIdentities()
    # The numbered event's time is the newest and must not count; of the others the older one leaves memory.
    known.adopt(columns([(1, 3, 0, 8, 900), (1, UNNUMBERED, 0, 21, 300), (1, UNNUMBERED, 0, 22, 100)]))
    assert (known.hash_floor, known.hashes) == (300, {(1, 22): 100})
    batch: list[Event] = [
        (1, 3, 0, 9, 5), (1, UNNUMBERED, 0, 21, 300), (1, UNNUMBERED, 0, 22, 100), (1, UNNUMBERED, 0, 23, 301),
        (2, UNNUMBERED, 0, 22, 300), (1, 3, 0, 8, 900),
    ]  # fmt: skip
    assert verdicts(known, batch) == [NEW, UNSURE, KNOWN, NEW, UNSURE, KNOWN]


def test_a_snapshot_keeps_floors_times_and_the_order_of_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_BLOCKS", 2)
    monkeypatch.setattr(identity, "MAX_HASHES", 2)
    known = KnownIdentities()
    block = identity.BLOCK_BITS
    for number in (0, 1, 3):
        known.adopt(columns([(1, 0, 7, number * block + 9, 0), (2, 5, 0, 4 + number, 0)]))
    known.adopt(columns([(1, UNNUMBERED, UNNUMBERED, digest, ts) for digest, ts in ((9, 50), (8, 70), (-7, 60))]))
    assert (known.hash_floor, list(known.hashes.items())) == (50, [((1, 8), 70), ((1, -7), 60)])
    read = KnownIdentities.load(known.dump())
    assert (read.hash_floor, list(read.hashes.items())) == (50, [((1, 8), 70), ((1, -7), 60)])
    assert read.channels.keys() == {(1, 0, 7), (2, 5, 0)}
    for key, seen in known.channels.items():
        again = read.channels[key]
        assert (again.high, again.floor, list(again.blocks)) == (seen.high, seen.floor, sorted(seen.blocks))
        assert all(np.array_equal(again.blocks[number], seen.blocks[number]) for number in seen.blocks)
    assert read.dump() == known.dump()
    # Read blocks are written to again.
    read.adopt(columns([(1, 0, 7, 3 * block + 10, 0)]))
    assert verdicts(read, [(1, 0, 7, 3 * block + 10, 0), (1, 0, 7, 3 * block + 9, 0)]) == [KNOWN, KNOWN]


def test_no_bytes_are_an_empty_state() -> None:
    assert KnownIdentities.load(b"") == KnownIdentities()
    assert KnownIdentities.load(KnownIdentities().dump()) == KnownIdentities()
    assert KnownIdentities().hash_floor == -1


def test_taking_selects_every_column_alike() -> None:
    taken = columns([(1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]).take(np.array([2, 0]))
    assert len(taken) == 2
    assert [
        column.tolist() for column in (taken.source_id, taken.channel, taken.session, taken.sequence, taken.ts_event)
    ] == [[11, 1], [12, 2], [13, 3], [14, 4], [15, 5]]


def test_verdicts_are_bytes() -> None:
    judged, _ = KnownIdentities().judge(columns([(1, 0, 0, 5, 0), (1, UNNUMBERED, 0, 5, 0)]), {})
    assert judged.dtype == np.uint8
    assert SeenSequences().judge(np.array([5], np.int64), 10).dtype == np.uint8


def test_a_jump_is_seen_from_the_first_sequence_to_the_last_that_int64_holds() -> None:
    known = KnownIdentities()
    known.adopt(columns([(1, 0, 0, 1, 0)]))
    for sequence, verdict in ((101, NEW), (102, JUMP), (2**63 - 1, JUMP)):
        assert verdicts(known, [(1, 0, 0, sequence, 0)], limit=100) == [verdict]
    assert known.judge(columns([(1, 0, 0, 10**15, 0)]), {2: 5})[0].tolist() == [NEW]  # no limit is known for source 1


def test_repeats_after_a_first_that_is_the_lowest_are_found() -> None:
    judged, first = KnownIdentities().judge(columns([(1, 0, 0, number, 0) for number in (1, 3, 2, 3, 2)]), {})
    assert judged.tolist() == [NEW, NEW, NEW, KNOWN, KNOWN]
    assert first.tolist() == [0, 1, 2, 1, 2]


def test_memory_goes_on_above_its_floor_and_each_block_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_BLOCKS", 2)
    seen, block = SeenSequences(), identity.BLOCK_BITS
    for number in (0, 1, 4):
        seen.add(np.array([number * block + number], np.int64))
    seen.add(np.array([3, 5 * block + 7], np.int64))  # one that is too old must not stop the other
    assert (seen.floor, sorted(seen.blocks)) == (2 * block, [4, 5])
    asked = np.array([2 * block - 1, 2 * block, 4 * block + 4, 4 * block + 7, 5 * block + 4, 5 * block + 7], np.int64)
    assert seen.judge(asked, 2**62).tolist() == [UNSURE, NEW, KNOWN, NEW, NEW, KNOWN]
    seen.add(np.array([5 * block + 8, 6 * block], np.int64))
    assert seen.judge(np.array([5 * block, 5 * block + 8, 6 * block], np.int64), 2**62).tolist() == [NEW, KNOWN, KNOWN]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3 * identity.BLOCK_BITS)), max_size=60))
def test_a_partition_with_many_sessions_stays_within_its_memory_and_exact(events: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "MAX_PARTITION_BLOCKS", 2)
        known, stored = KnownIdentities(), set[tuple[int, int]]()
        for session, sequence in events:
            one = Identities(*(np.array([value], np.int64) for value in (1, 0, session, sequence, 5)))
            ((verdict,), _) = known.judge(one, {})
            is_known = (session, sequence) in stored if verdict == UNSURE else verdict == KNOWN
            assert is_known == ((session, sequence) in stored)
            known.adopt(one)
            stored.add((session, sequence))
            assert sum(len(seen.blocks) for seen in known.channels.values()) <= 2
            known = KnownIdentities.load(known.dump())
