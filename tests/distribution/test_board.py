"""The board: columns reduced to changes agree with a row-by-row computation; holes, repeats, sessions and states are seen."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribution import protocol
from distribution.board import (
    COLUMNS_READ,
    MINUTE_NS,
    STALE_AFTER_NS,
    Board,
    Change,
    ClosedBar,
    Column,
    FeedEvent,
    InstrumentState,
    PipelineSample,
    Snapshot,
    judged,
    reduce_ticks,
)
from integration.market.ticks import CANCEL, CONDITION_BITS, CORRECT, NEW, QUOTE, TRADE
from integration.market.units import NANOS
from tests.distribution.test_hub import FakeSink

NOW = 1_767_623_400 * 10**9
DAY = 20_458


def columns(rows: list[dict[str, int]]) -> dict[str, Column]:
    """Make message columns; what a row does not say is the default of a small valid trade."""
    default = {
        "epoch": 1,
        "kind": TRADE,
        "price": 100 * NANOS,
        "size": NANOS,
        "ts_event": NOW,
        "ts_publish": NOW,
        "session_date": DAY,
    }
    return {name: np.array([row.get(name, default.get(name, 0)) for row in rows], np.int64) for name in COLUMNS_READ}


def board(*symbols: str, **facts: Any) -> Board:
    made = Board(epoch="e")
    states = [InstrumentState(number, symbol, "SIMX", **facts) for number, symbol in enumerate(symbols or ("A",), 1)]
    made.load(Snapshot(epoch=1, pub_seq=0, instruments=states))
    return made


def trade(instrument: int = 1, sequence: int = 1, **facts: int) -> dict[str, int]:
    return {"instrument_id": instrument, "sequence": sequence, **facts}


rows = st.lists(
    st.fixed_dictionaries(
        {
            "instrument_id": st.integers(1, 3),
            "kind": st.sampled_from([TRADE, QUOTE]),
            "action": st.sampled_from([NEW, NEW, NEW, CORRECT, CANCEL]),
            "price": st.integers(-(2**62), 2**62),
            "size": st.integers(0, 2**63 - 1),
            "ask_price": st.integers(0, 2**62),
            "ask_size": st.integers(0, 2**62),
            "ts_event": st.sampled_from([NOW, NOW + 1, NOW + MINUTE_NS, NOW + 2 * MINUTE_NS]),
            "conditions": st.sampled_from(
                [0, 0, CONDITION_BITS["odd_lot"], CONDITION_BITS["official_close"], CONDITION_BITS["closing"]]
            ),
            "session_date": st.sampled_from([DAY, DAY, DAY + 1]),
        }
    ),
    min_size=1,
    max_size=40,
)


def naive(message: list[dict[str, int]]) -> dict[int, dict[str, Any]]:
    """Say the same as `reduce_ticks`, one row after the other."""
    found: dict[int, dict[str, Any]] = {}
    for row in message:
        one = found.setdefault(
            row["instrument_id"],
            {"price": None, "size": None, "quote": None, "volume": 0, "minutes": {}, "count": 0, "trades": 0},
        )
        one["count"] += 1
        one["session"] = max(one.get("session", 0), row["session_date"])
        if row["kind"] == QUOTE:
            one["quote"] = (row["price"], row["size"], row["ask_price"], row["ask_size"])
        elif row["action"] == NEW:
            _naive_trade(one, row)
    for number, one in found.items():
        counted = [
            row for row in message if row["instrument_id"] == number and row["kind"] == TRADE and row["action"] == NEW
        ]
        one["volume"] = sum(
            row["size"]
            for row in counted
            if row["session_date"] == one["session"] and not row["conditions"] & CONDITION_BITS["official_close"]
        )
    return found


def _naive_trade(one: dict[str, Any], row: dict[str, int]) -> None:
    one["trades"] += 1
    minute = one["minutes"].setdefault(
        row["ts_event"] // MINUTE_NS * MINUTE_NS, {"prices": [], "volume": 0, "trades": 0}
    )
    minute["trades"] += 1
    if not row["conditions"] & CONDITION_BITS["official_close"]:
        minute["volume"] += row["size"]
    if not row["conditions"] & (CONDITION_BITS["odd_lot"] | CONDITION_BITS["official_close"]):
        one["price"], one["size"] = row["price"], row["size"]
        minute["prices"].append(row["price"])


@given(rows)
def test_reduction_agrees_with_a_row_by_row_computation(message: list[dict[str, int]]) -> None:
    for sequence, row in enumerate(message, 1):
        row["sequence"] = sequence
    expected = naive(message)
    changes = {change.instrument_id: change for change in reduce_ticks(columns(message))}
    assert changes.keys() == expected.keys()
    for number, change in changes.items():
        wanted = expected[number]
        assert (change.price, change.size, change.quote) == (wanted["price"], wanted["size"], wanted["quote"])
        assert (change.volume, change.count, change.session_date) == (
            wanted["volume"],
            wanted["count"],
            wanted["session"],
        )
        assert (0 if change.trades is None else len(change.trades.price)) == wanted["trades"]
        minutes = {minute.start: minute for minute in change.minutes}
        assert minutes.keys() == wanted["minutes"].keys()
        for start, minute in minutes.items():
            prices = wanted["minutes"][start]["prices"]
            shape = (prices[0], max(prices), min(prices), prices[-1]) if prices else (None, None, None, None)
            assert (minute.open, minute.high, minute.low, minute.close) == shape
            assert (minute.volume, minute.trades) == (
                wanted["minutes"][start]["volume"],
                wanted["minutes"][start]["trades"],
            )


@given(rows, st.integers(1, 39))
def test_a_message_in_two_parts_gives_the_same_state(message: list[dict[str, int]], cut: int) -> None:
    for row in message:
        row["session_date"] = DAY
    numbers: dict[int, int] = {}
    for row in message:
        numbers[row["instrument_id"]] = row["sequence"] = numbers.get(row["instrument_id"], 0) + 1
    whole, parts = board("A", "B", "C"), board("A", "B", "C")
    assert whole.apply(reduce_ticks(columns(message)), at=NOW)
    for part in (message[:cut], message[cut:]):
        assert parts.apply(reduce_ticks(columns(part)), at=NOW)
    for subject in (1, 2, 3):
        one, other = whole.instruments[subject], parts.instruments[subject]
        assert (one.last, one.size, one.quote, one.volume, one.sequence) == (
            other.last,
            other.size,
            other.quote,
            other.volume,
            other.sequence,
        )
        # Late minutes are left to the closed bar's revision, so only the newest is compared where all came in order.
        if [row["ts_event"] for row in message] == sorted(row["ts_event"] for row in message):
            assert one.minute == other.minute


def test_sums_do_not_overflow() -> None:
    biggest = 2**63 - 1
    (change,) = reduce_ticks(columns([trade(sequence=n, size=biggest) for n in range(1, 1001)]))
    assert change.volume == 1000 * biggest


def test_no_rows_no_changes() -> None:
    assert reduce_ticks(columns([])) == []


def test_a_hole_is_counted_said_and_asks_for_the_stored_state() -> None:
    made, sink = board(), FakeSink()
    made.hub.connect(sink)
    assert made.apply(reduce_ticks(columns([trade(sequence=1)])), at=NOW)
    assert not made.apply(reduce_ticks(columns([trade(sequence=5), trade(sequence=6)])), at=NOW)
    assert made.holes == 3
    assert sink.said("gap") == [{"t": "gap", "ch": "quotes", "sym": "A", "q": [2, 4], "at": "feed"}]
    assert made.apply(reduce_ticks(columns([trade(sequence=7)])), at=NOW)


def test_a_hole_inside_a_message_is_seen() -> None:
    made = board()
    assert not made.apply(reduce_ticks(columns([trade(sequence=1), trade(sequence=3)])), at=NOW)
    assert made.holes == 1


def test_a_repeated_message_counts_nothing_twice() -> None:
    made = board()
    message = columns([trade(sequence=1), trade(sequence=2)])
    made.apply(reduce_ticks(message), at=NOW)
    assert made.apply(reduce_ticks(message), at=NOW)
    assert made.instruments[1].volume == 2 * NANOS
    assert made.quotes.number(1) == 3  # the loaded row and two ticks


def test_a_message_that_overlaps_what_is_known_asks_for_the_stored_state() -> None:
    made = board()
    made.apply(reduce_ticks(columns([trade(sequence=1), trade(sequence=2)])), at=NOW)
    assert not made.apply(reduce_ticks(columns([trade(sequence=2), trade(sequence=3)])), at=NOW)


def test_a_new_epoch_begins_at_one() -> None:
    made = board()
    made.apply(reduce_ticks(columns([trade(sequence=9)])), at=NOW)
    assert made.apply(reduce_ticks(columns([trade(sequence=1, epoch=2)])), at=NOW)
    assert made.apply(reduce_ticks(columns([trade(sequence=10, epoch=1)])), at=NOW), "the old epoch is over: ignored"
    assert made.instruments[1].sequence == 1
    assert not made.apply(reduce_ticks(columns([trade(sequence=2, epoch=3)])), at=NOW)


def test_what_the_stored_state_holds_is_followed_but_not_folded_again() -> None:
    made = board(volume=50 * NANOS, session_date=DAY)
    assert made.skip(reduce_ticks(columns([trade(sequence=4)])), at=NOW)
    assert made.instruments[1].volume == 50 * NANOS
    assert not made.apply(reduce_ticks(columns([trade(sequence=6)])), at=NOW), "5 is missing"


def test_loading_keeps_the_streams_numbers() -> None:
    made = board()
    made.apply(reduce_ticks(columns([trade(sequence=1)])), at=NOW)
    made.load(Snapshot(epoch=1, pub_seq=9, instruments=[InstrumentState(1, "A", "SIMX", volume=7)]))
    assert made.instruments[1].volume == 7
    assert not made.apply(reduce_ticks(columns([trade(sequence=3)])), at=NOW)


def test_an_instrument_that_nobody_knows_asks_for_the_stored_state_unless_it_is_ignored() -> None:
    made = board()
    assert not made.apply(reduce_ticks(columns([trade(77)])), at=NOW)
    assert made.unknown_ticks == 1
    made.ignored = {77}
    assert made.apply(reduce_ticks(columns([trade(77, 2)])), at=NOW)
    assert made.unknown_ticks == 1


def test_a_new_session_begins_with_no_volume_and_the_old_close_as_reference() -> None:
    made = board()
    made.apply(reduce_ticks(columns([trade(sequence=1, price=90 * NANOS)])), at=NOW)
    assert (made.instruments[1].reference, made.instruments[1].reference_kind) == (90 * NANOS, "open")
    made.apply(reduce_ticks(columns([trade(sequence=2, price=95 * NANOS, session_date=DAY + 1)])), at=NOW)
    state = made.instruments[1]
    assert (state.reference, state.reference_kind, state.volume, state.last) == (90 * NANOS, "close", NANOS, 95 * NANOS)
    made.apply(reduce_ticks(columns([trade(sequence=3, session_date=DAY)])), at=NOW)
    assert state.volume == NANOS, "a late trade of yesterday is not today's volume"


def test_the_quote_row_is_exact_text() -> None:
    made = board()
    quote = trade(sequence=2, kind=QUOTE, price=10**17 + 1, size=NANOS, ask_price=10**17 + 2, ask_size=2 * NANOS)
    made.apply(reduce_ticks(columns([trade(sequence=1, price=123_456_789), quote])), at=NOW)
    texts, _ = made.quotes.snapshot([1], None)
    assert json.loads(texts[0]) == [
        1, 3, NOW, "0.123456789", "1", "100000000.000000001", "1", "100000000.000000002", "2", "1", "0.123456789", "open", "unknown",
    ]  # fmt: skip
    assert len(json.loads(texts[0])) == len(protocol.COLUMNS["quotes"])


def test_every_channel_writes_the_columns_it_declares() -> None:
    made = board()
    made.apply(reduce_ticks(columns([trade(sequence=1)])), at=NOW)
    made.apply_bar(ClosedBar(1, "5m", NOW, "1", "2", "0.5", "1.5", "10", 3, 1, "first"))
    made.add_event(FeedEvent(NOW, "gap", "warning", None, "<b>text</b>", "/admin/"))
    made.add_sample(PipelineSample(NOW, 1, 1, 1, 1, 0, None, 0))
    for name, subject in (("quotes", 1), ("trades", 1), ("minutes", 1), ("bars.5m", 1), ("events", 0), ("pipeline", 0)):
        texts, _ = made.hub.channels[name].snapshot([subject], None)
        assert len(json.loads(texts[-1])) == len(protocol.COLUMNS[name]), name
    assert made.hub.channels.keys() == set(protocol.CHANNELS)


def test_each_revision_of_a_bar_is_sent_once() -> None:
    made, sink = board(), FakeSink()
    client = made.hub.connect(sink)
    made.hub.subscribe(client, protocol.Subscribe(id=1, ch="bars.1m", sym=["A"], snap=False), NOW)
    for revision in (1, 2):
        made.apply_bar(ClosedBar(1, "1m", NOW, "1", "2", "0.5", "1.5", "10", 3, revision, "first"))
    made.apply_bar(ClosedBar(99, "1m", NOW, "1", "2", "0.5", "1.5", "10", 3, 1, "first"))
    made.hub.flush(NOW)
    (frame,) = sink.said("data")
    assert [row[9] for row in frame["rows"]] == [1, 2]


@pytest.mark.parametrize(
    ("venue", "word", "age", "expected"),
    [
        ("open", "open", 0, "open"),
        ("open", "open", STALE_AFTER_NS + 1, "stale"),
        ("open", "halted", 0, "halted"),
        ("closed", "halted", 0, "halted"),
        ("open", "auction", STALE_AFTER_NS + 1, "auction"),
        ("open", "closed", 0, "closed"),
        ("closed", "open", STALE_AFTER_NS + 1, "closed"),
        ("unknown", "open", 0, "unknown"),
    ],
)
def test_state_is_the_venues_word_then_its_calendar_then_the_age(
    venue: str, word: str, age: int, expected: str
) -> None:
    assert judged(InstrumentState(1, "A", ts_publish=NOW - age), NOW, venue, word) == expected


def test_an_instrument_without_ticks_waits() -> None:
    assert judged(InstrumentState(1, "A"), NOW, "open", "open") == "waiting"


def test_a_change_of_state_is_told_to_those_who_follow() -> None:
    made, sink, stranger = board(), FakeSink(), FakeSink()
    client = made.hub.connect(sink)
    made.hub.connect(stranger)
    made.hub.subscribe(client, protocol.Subscribe(id=1, ch="quotes", sym=["A"], snap=False), NOW)
    made.judge(NOW, {"SIMX": "open"}, {1: "halted"})
    made.judge(NOW, {"SIMX": "open"}, {1: "halted"})
    assert [(frame["sym"], frame["state"]) for frame in sink.said("status")] == [("A", "halted")]
    assert stranger.said("status") == []


def test_delay_is_that_of_the_oldest_tick_since_the_last_flush() -> None:
    made = board("A", "B")
    message = columns([trade(1, 1, ts_publish=NOW - 30_000_000), trade(2, 1, ts_publish=NOW - 80_000_000)])
    made.apply(reduce_ticks(message), at=NOW)
    assert made.take_delay_ms(NOW) == 80
    assert made.take_delay_ms(NOW) is None
    made.apply([Change(1, 1, 2, 2, 1, NOW, NOW + 5_000_000_000, DAY)], at=NOW)
    assert made.take_delay_ms(NOW) == 0, "a broker's clock ahead of ours is not a negative delay"
