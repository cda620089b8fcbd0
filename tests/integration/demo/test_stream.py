"""What the stream promises: the same events for a seed, numbers without holes of its own, halts that are halts, times that are now."""

from collections import Counter, defaultdict
from itertools import islice, pairwise

import pytest

from integration.demo.catalogue import ARROW, INSTRUMENTS, SIMULATED_INSTRUMENTS
from integration.demo.events import STATUS, Event, Options
from integration.demo.faults import (
    FUTURE,
    GAP,
    HALT,
    HALTED_TRADE,
    LATE,
    MALFORMED,
    MEAN_INTERVAL,
    OUTCOMES,
    RESUMPTION,
)
from integration.demo.stream import History, Stream
from integration.market.ticks import QUOTE, TRADE
from integration.market.units import NANOS

START = 1_800_000_000 * NANOS
MANY = Options(seed=7, start=START, faults=20.0)


def events_of(options: Options, history: History, seconds: float) -> tuple[Stream, list[Event]]:
    stream = Stream(options, history)
    return stream, list(stream.until(options.start + int(seconds * NANOS)))


@pytest.fixture(scope="module")
def faulty(history: History) -> tuple[Stream, list[Event]]:
    return events_of(MANY, history, 120)


def test_seed_and_start_decide_every_event(history: History) -> None:
    _, one = events_of(MANY, history, 8)
    _, same = events_of(MANY, history, 8)
    assert one == same
    for other in (Options(8, START, faults=20.0), Options(7, START + NANOS, faults=20.0)):
        assert events_of(other, history, 8)[1] != one


def test_asking_in_small_steps_changes_nothing(history: History) -> None:
    stream = Stream(MANY, history)
    stepped = [event for step in range(800) for event in stream.until(START + step * NANOS // 100)]
    assert stepped == events_of(MANY, history, 7.99)[1]


def test_a_feed_that_starts_again_goes_on_on_the_same_path(history: History) -> None:
    quiet = Options(seed=7, start=START, faults=0.0)
    _, whole = events_of(quiet, history, 20)
    _, later = events_of(Options(seed=7, start=START + 10 * NANOS, faults=0.0), history, 10)
    path = [(e.due, e.instrument.symbol, e.price) for e in whole if e.kind != STATUS and e.due >= START + 10 * NANOS]
    again = [(e.due, e.instrument.symbol, e.price) for e in later if e.kind != STATUS]
    assert [tick for tick in path if tick[1] != "ESU3"] == [tick for tick in again if tick[1] != "ESU3"]
    assert len(path) > 1_000


def test_events_come_in_order_of_their_time(faulty: tuple[Stream, list[Event]]) -> None:
    _, events = faulty
    assert all(earlier.due <= later.due for earlier, later in pairwise(events))
    assert all(event.ts_event == event.due for event in events if event.fault == "")


def test_it_opens_with_the_state_of_every_instrument(faulty: tuple[Stream, list[Event]]) -> None:
    opening = faulty[1][: len(INSTRUMENTS)]
    assert [event.instrument for event in opening] == list(INSTRUMENTS)
    assert {(event.kind, event.status) for event in opening} == {(STATUS, "open")}


def test_numbers_of_a_channel_rise_by_one_but_for_the_gaps(faulty: tuple[Stream, list[Event]]) -> None:
    stream, events = faulty
    seen: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for event in events:
        if OUTCOMES[event.fault] not in ("duplicate", "conflict", "malformed"):
            seen[event.instrument.source, event.instrument.channel].append(event.sequence)
    for numbers in seen.values():
        assert numbers[0] == 1
        assert all(earlier < later for earlier, later in pairwise(numbers))
    # A gap at the very end of a channel has nothing after it yet.
    missing = sum(stream.numbering.last[channel] - len(numbers) for channel, numbers in seen.items())
    assert stream.faults.counts[GAP] > 0
    assert missing == stream.faults.skipped


def test_without_faults_there_is_none_and_no_number_is_missing(history: History) -> None:
    stream, events = events_of(Options(seed=7, start=START, faults=0.0), history, 60)
    assert {event.fault for event in events} == {""}
    assert stream.faults.counts.total() == stream.faults.skipped == 0
    assert stream.numbering.last.total() == len(events)


def test_faults_come_as_often_as_said(history: History) -> None:
    stream, _ = events_of(Options(seed=7, start=START, rate=20.0, speed=1.0), history, 1_200)
    drawn = sum(count for kind, count in stream.faults.counts.items() if kind not in (HALTED_TRADE, RESUMPTION))
    assert drawn == pytest.approx(1_200 * NANOS / MEAN_INTERVAL, rel=0.2)


def test_every_kind_of_fault_occurs(faulty: tuple[Stream, list[Event]]) -> None:
    stream, events = faulty
    assert set(stream.faults.counts) == set(OUTCOMES) - {""} | {GAP}
    sent = Counter(event.fault for event in events if event.fault)
    assert sent == {kind: count for kind, count in stream.faults.counts.items() if kind != GAP}


def test_the_replay_stays_as_it_was(faulty: tuple[Stream, list[Event]], history: History) -> None:
    replayed = [event for event in faulty[1] if event.instrument.mic == "RPLY" and event.kind == TRADE]
    first = history.trades.start
    assert {event.fault for event in replayed} == {""}
    assert [event.price for event in replayed] == history.trades.price[first : first + len(replayed)].tolist()
    assert [event.trade_id for event in replayed] == list(range(first + 1, first + 1 + len(replayed)))
    assert len({(event.price, event.size) for event in replayed}) < len(replayed) / 10, "content repeats, and flows"


def test_nothing_but_the_one_trade_comes_from_a_halted_instrument(faulty: tuple[Stream, list[Event]]) -> None:
    halted: set[str] = set()
    inside: Counter[str] = Counter()
    for event in faulty[1]:
        symbol = event.instrument.symbol
        if event.fault == HALT:
            assert (event.kind, event.status, event.instrument.form == ARROW) == (STATUS, "halted", False)
            halted.add(symbol)
        elif event.fault == RESUMPTION:
            assert event.status == "open"
            halted.remove(symbol)
        elif symbol in halted:
            inside[event.fault] += 1
    assert set(inside) == {HALTED_TRADE}


def test_closing_ends_every_halt_once(history: History) -> None:
    stream = Stream(MANY, history)
    last = next(event for event in stream.until(None) if len(stream.faults.halted) == 2)
    halted, due = set(stream.faults.halted), last.due
    closing = list(stream.closing())
    assert {event.instrument.symbol for event in closing} == halted
    assert {event.status for event in closing} == {"open"}
    assert all(event.due >= due for event in closing)
    assert list(stream.closing()) == []


def test_late_and_future_events_are_that(faulty: tuple[Stream, list[Event]]) -> None:
    newest: dict[str, int] = {}
    for event in faulty[1]:
        if event.fault == LATE:
            assert newest[event.instrument.symbol] - event.ts_event + NANOS >= 2 * NANOS
            assert event.ts_event < newest[event.instrument.symbol]
        elif event.fault == FUTURE:
            assert event.ts_event == event.due + 86_400 * NANOS
        elif event.fault == "":
            newest[event.instrument.symbol] = event.ts_event


def test_broken_texts_are_all_different(faulty: tuple[Stream, list[Event]]) -> None:
    broken = [(event.instrument.symbol, event.ts_event) for event in faulty[1] if event.fault == MALFORMED]
    assert len(set(broken)) == len(broken) > 1


def test_an_outage_moves_all_later_times_and_brings_no_burst(history: History) -> None:
    stream = Stream(MANY, history)
    before = list(stream.until(START + 5 * NANOS))
    back = START + 65 * NANOS
    stream.hold_up(back, tolerance=NANOS)
    at_once = list(stream.until(back))
    after = list(stream.until(back + 5 * NANOS))
    assert len(at_once) < 5
    assert len(after) == pytest.approx(len(before), rel=0.5)
    assert all(back <= event.ts_event <= back + 5 * NANOS for event in after if event.fault == "")
    stream.hold_up(back + 5 * NANOS, tolerance=NANOS)
    assert min(event.ts_event for event in stream.until(back + 6 * NANOS) if event.fault == "") >= back + 5 * NANOS


def test_a_short_delay_is_made_up_for(history: History) -> None:
    stream = Stream(MANY, history)
    stream.hold_up(START + NANOS // 2, tolerance=NANOS)
    assert stream.shift == 0


def test_a_ceiling_keeps_an_unpaced_stream_in_the_present(history: History) -> None:
    stream = Stream(Options(7, START, faults=0.0), history, ceiling=lambda: START + NANOS)
    events = list(islice(stream.until(None), 5_000))
    assert events[-1].due > START + 5 * NANOS
    assert max(event.ts_event for event in events) == START + NANOS


def test_the_simulated_rate_is_kept_and_may_be_zero(history: History) -> None:
    _, events = events_of(Options(7, START, rate=100.0, faults=0.0), history, 120)
    simulated = [event for event in events if event.instrument in SIMULATED_INSTRUMENTS and event.kind != STATUS]
    # Instruments are in different parts of their day, which are not equally busy.
    assert len(simulated) == pytest.approx(12_000, rel=0.25)
    assert {event.kind for event in simulated} == {TRADE, QUOTE}
    _, none = events_of(Options(7, START, rate=0.0), history, 10)
    assert {event.instrument.symbol for event in none if event.kind != STATUS} == {"ESU3"}
