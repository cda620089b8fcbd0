"""Everything the feed sends is what the contract says, and comes to what the feed says it should come to."""

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from integration import pipeline
from integration.demo.catalogue import ARROW, ASSET_CLASSES
from integration.demo.events import STATUS, Event, Options
from integration.demo.faults import HALT, HALTED_TRADE, LATE, MALFORMED, OUTCOMES, RESUMPTION
from integration.demo.feeder import Tally
from integration.demo.stream import History, Stream
from integration.demo.wire import arrow_message, json_message
from integration.market.events import decode
from integration.market.ticks import FLAG_HALTED, FLAG_LATE, FLAG_OFF_MARKET, TRADE, Decoded, Message
from integration.market.units import NANOS
from tests.integration.demo.judge import judge, sums, totals

START = 1_800_000_000 * NANOS
SESSION = START // NANOS


def encode(event: Event) -> bytes:
    """One message an event; an Arrow stream of one row where the instrument is sent so."""
    is_arrow = event.instrument.form == ARROW and event.kind != STATUS
    return arrow_message([event], SESSION) if is_arrow else json_message(event, SESSION)


def messages_of(events: list[Event]) -> list[Message]:
    return [Message(encode(event), event.due, event.due) for event in events]


@pytest.fixture(scope="module")
def events(history: History) -> list[Event]:
    stream = Stream(Options(seed=7, start=START, faults=60.0), history)
    return [*stream.until(START + 40 * NANOS), *stream.closing()]


@pytest.fixture(scope="module")
def tally(events: list[Event]) -> Tally:
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally


@pytest.fixture(scope="module")
def decoded(events: list[Event]) -> Decoded:
    return decode(messages_of(events))


@pytest.fixture(scope="module")
def outcomes(events: list[Event]) -> list[pipeline.Outcome]:
    by_class = {name: [one for one in events if one.instrument.asset_class == name] for name in ASSET_CLASSES}
    assert all(by_class.values())
    return judge((name, messages_of(sent)) for name, sent in by_class.items())


def test_every_event_decodes_to_itself(events: list[Event], decoded: Decoded) -> None:
    ticks = decoded.ticks
    ours = [events[index] for index in ticks.message.tolist()]
    for name in ("kind", "sequence", "ts_event", "price", "size", "ask_price", "ask_size", "conditions"):
        assert getattr(ticks, name).tolist() == [getattr(event, name) for event in ours], name
    assert ticks.channel.tolist() == [event.instrument.channel for event in ours]
    assert set(ticks.session.tolist()) == {SESSION}
    assert [decoded.sources[index] for index in decoded.source.tolist()] == [event.instrument.source for event in ours]


def test_every_status_decodes_to_itself(events: list[Event], decoded: Decoded) -> None:
    found = [(events[one.message].instrument.text, one.status, one.ts_event, one.sequence) for one in decoded.statuses]
    sent = [(one.instrument.text, one.status, one.ts_event, one.sequence) for one in events if one.kind == STATUS]
    assert found == sent


def test_nothing_but_the_broken_texts_is_refused_by_the_decoder(events: list[Event], decoded: Decoded) -> None:
    refused = [(rejection.message, rejection.code) for rejection in decoded.rejections]
    assert refused == [(index, "malformed") for index, event in enumerate(events) if event.fault == MALFORMED]
    assert len(decoded.ticks) + len(decoded.statuses) + len(refused) == len(events)


def test_the_key_is_the_instrument_as_written_in_the_event(events: list[Event], decoded: Decoded) -> None:
    keys = [events[index].instrument.text for index in decoded.ticks.message.tolist()]
    assert [decoded.instruments[index] for index in decoded.instrument.tolist()] == keys


def test_many_rows_of_one_instrument_are_one_stream(events: list[Event]) -> None:
    rows = [event for event in events if event.instrument.symbol == "SPY" and event.kind != STATUS]
    together = decode([Message(arrow_message(rows, SESSION), START, START)]).ticks
    apart = decode(messages_of(rows)).ticks
    assert len(together) == len(rows) > 10
    for name in ("kind", "sequence", "ts_event", "price", "ask_size", "trade_id", "conditions"):
        assert np.array_equal(getattr(together, name), getattr(apart, name))


def test_the_service_comes_to_what_the_feed_expects(tally: Tally, outcomes: list[pipeline.Outcome]) -> None:
    assert totals(outcomes) == tally.outcomes
    assert set(tally.outcomes) == set(OUTCOMES.values())


def test_sums_per_instrument_are_those_of_what_is_stored(tally: Tally, outcomes: list[pipeline.Outcome]) -> None:
    assert sums(outcomes) == tally.instruments


def test_late_ticks_and_trades_in_a_halt_are_flagged(events: list[Event], outcomes: list[pipeline.Outcome]) -> None:
    by_fault: Counter[str] = Counter(event.fault for event in events)
    flags: Counter[int] = Counter()
    for outcome in outcomes:
        for flag in (FLAG_LATE, FLAG_HALTED, FLAG_OFF_MARKET):
            flags[flag] += int(np.count_nonzero(outcome.ticks.flags & np.uint32(flag)))
    assert flags[FLAG_LATE] == by_fault[LATE]
    # A late trade may have happened inside a halt that was over when it was told.
    assert flags[FLAG_HALTED] >= by_fault[HALTED_TRADE] > 0
    assert flags[FLAG_OFF_MARKET] == sum(1 for event in events if event.conditions) > 0
    assert by_fault[HALT] == by_fault[RESUMPTION]


def test_both_spellings_of_times_and_prices_are_on_the_wire(events: list[Event]) -> None:
    seen: set[tuple[type, type]] = set()
    for event in events:
        if event.kind == TRADE and event.instrument.form != ARROW and event.fault != MALFORMED:
            seen.add(_spelling(msgspec.json.decode(json_message(event, SESSION))))
    assert seen == {(time, price) for time in (int, str) for price in (float, str)}


def _spelling(document: dict[str, Any]) -> tuple[type, type]:
    if "market_data" in document:
        price = document["market_data"]["price_data"]["price"]
    else:
        price = (document.get("data") or document["normalized_data"])["price"]
    return type(document["timestamp"]), type(price)
