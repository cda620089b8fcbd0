"""Everything the feed sends is what the contract says, and comes to what the feed says it should come to."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from config.pipeline import build
from integration import pipeline
from integration.demo.catalogue import ARROW, ASSET_CLASSES, INSTRUMENTS, SOURCES, VENUES
from integration.demo.events import STATUS, Event, Options
from integration.demo.faults import DUPLICATE, HALT, HALTED_TRADE, LATE, MALFORMED, OUTCOMES, PARKED, RESUMPTION, STORED
from integration.demo.feeder import Tally
from integration.demo.stream import History, Stream
from integration.demo.wire import arrow_message, json_message
from integration.market.events import decode
from integration.market.identity import KnownIdentities
from integration.market.reference import FOREVER, AliasSpan, InstrumentFacts, Reference, SourceFacts
from integration.market.sessions import session_table
from integration.market.ticks import FLAG_HALTED, FLAG_LATE, FLAG_OFF_MARKET, TRADE, Message
from integration.market.units import NANOS

START = 1_800_000_000 * NANOS
SESSION = START // NANOS


@pytest.fixture(scope="module")
def events(history: History) -> list[Event]:
    stream = Stream(Options(seed=7, start=START, faults=20.0), history)
    return [*stream.until(START + 120 * NANOS), *stream.closing()]


def messages_of(events: list[Event]) -> list[Message]:
    """One message an event; an Arrow stream of one row where the instrument is sent so."""
    return [Message(encode(event), event.due, event.due) for event in events]


def encode(event: Event) -> bytes:
    is_arrow = event.instrument.form == ARROW and event.kind != STATUS
    return arrow_message([event], SESSION) if is_arrow else json_message(event, SESSION)


def test_every_event_decodes_to_itself(events: list[Event]) -> None:
    decoded = decode(messages_of(events))
    ticks = decoded.ticks
    assert [(rejection.code, events[rejection.message].fault) for rejection in decoded.rejections] == [
        ("malformed", MALFORMED) for event in events if event.fault == MALFORMED
    ]
    for row, index in enumerate(ticks.message.tolist()):
        event = events[index]
        assert decoded.instruments[decoded.instrument[row]] in (event.instrument.text, event.instrument.ticker)
        assert decoded.sources[decoded.source[row]] == event.instrument.source
        assert (ticks.channel[row], ticks.session[row]) == (event.instrument.channel, SESSION)
        names = ["kind", "sequence", "ts_event", "price", "size", "ask_price", "ask_size", "conditions"]
        assert [int(getattr(ticks, name)[row]) for name in names] == [getattr(event, name) for name in names]
    statuses = [
        (events[one.message].instrument.text, one.status, one.ts_event, one.sequence) for one in decoded.statuses
    ]
    sent = [event for event in events if event.kind == STATUS]
    assert statuses == [(one.instrument.text, one.status, one.ts_event, one.sequence) for one in sent]
    assert len(ticks) + len(statuses) + len(decoded.rejections) == len(events)


def test_the_key_is_the_instrument_as_written_in_the_event(events: list[Event]) -> None:
    decoded = decode(messages_of(events))
    for row, index in enumerate(decoded.ticks.message.tolist()):
        assert decoded.instruments[decoded.instrument[row]] == events[index].instrument.text


def test_many_rows_of_one_instrument_are_one_stream(events: list[Event]) -> None:
    rows = [event for event in events if event.instrument.symbol == "SPY" and event.kind != STATUS]
    together = decode([Message(arrow_message(rows, SESSION), START, START)]).ticks
    apart = decode(messages_of(rows)).ticks
    for name in ("kind", "sequence", "ts_event", "price", "ask_size", "trade_id", "conditions"):
        assert np.array_equal(getattr(together, name), getattr(apart, name))


def reference() -> Reference:
    """What load_demo writes, without a database."""
    aliases = {
        text: (AliasSpan(0, FOREVER, number),)
        for number, one in enumerate(INSTRUMENTS, 1)
        for text in (one.ticker, one.text)
    }
    return Reference(
        1,
        aliases,
        {one.code: SourceFacts(number, frozenset(one.asset_classes)) for number, one in enumerate(SOURCES, 1)},
        {
            number: InstrumentFacts(number, one.mic, frozenset({one.currency}), one.allows_negative)
            for number, one in enumerate(INSTRUMENTS, 1)
        },
        {venue.mic: session_table("24/7", last_year=2030) for venue in VENUES},
    )


def process(events: list[Event]) -> list[pipeline.Outcome]:
    """Run each topic's messages through the service's flow as one batch of one partition."""
    slots, facts = build(), reference()
    topics: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        topics[event.instrument.asset_class].append(event)
    assert set(topics) == set(ASSET_CLASSES)
    return [
        pipeline.process(
            pipeline.Request(topic, messages_of(sent), facts),
            pipeline.PartitionState(KnownIdentities(), slots.new_screen_state()),
            slots,
            lambda unsure: [None] * len(unsure),
        )
        for topic, sent in topics.items()
    ]


def test_the_service_comes_to_what_the_feed_expects(events: list[Event]) -> None:
    tally = Tally()
    for event in events:
        tally.add(event)
    outcomes = process(events)
    found: Counter[str] = Counter()
    for outcome in outcomes:
        found[STORED] += len(outcome.ticks) + len(outcome.sides)
        found[DUPLICATE] += outcome.duplicate_count
        found[PARKED] += len(outcome.parked)
        found.update(refused.rejection.code for refused in outcome.refused)
    assert found == tally.outcomes
    assert set(found) == set(OUTCOMES.values())


def test_sums_per_instrument_are_those_of_what_is_stored(events: list[Event]) -> None:
    tally = Tally()
    for event in events:
        tally.add(event)
    stored: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in process(events):
        ticks = outcome.ticks
        for row in range(len(ticks)):
            sums = stored[INSTRUMENTS[ticks.instrument_id[row] - 1].text]
            sums["trade" if ticks.kind[row] == TRADE else "quote"] += 1
            sums["price_sum"] += int(ticks.price[row]) + int(ticks.ask_price[row])
            sums["size_sum"] += int(ticks.size[row]) + int(ticks.ask_size[row])
    assert stored == tally.instruments


def test_late_ticks_and_trades_in_a_halt_are_flagged(events: list[Event]) -> None:
    by_fault: Counter[str] = Counter(event.fault for event in events)
    flags: Counter[int] = Counter()
    for outcome in process(events):
        for flag in (FLAG_LATE, FLAG_HALTED, FLAG_OFF_MARKET):
            flags[flag] += int(np.count_nonzero(outcome.ticks.flags & np.uint32(flag)))
    assert flags[FLAG_LATE] == by_fault[LATE]
    assert flags[FLAG_HALTED] >= by_fault[HALTED_TRADE] > 0
    assert flags[FLAG_OFF_MARKET] == sum(1 for event in events if event.conditions) > 0
    assert by_fault[HALT] == by_fault[RESUMPTION]


def test_both_spellings_of_times_and_prices_are_on_the_wire(events: list[Event]) -> None:
    import msgspec

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
