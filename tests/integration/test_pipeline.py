"""The flow as a pure function: each reason reached, identities kept over every kind of repeat, lanes in order, releases."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.pipeline import build
from integration.market import errors
from integration.market.identity import Identities, KnownIdentities
from integration.market.reference import FOREVER, AliasSpan, Reference
from integration.market.ticks import (
    FLAG_CANCEL,
    FLAG_CORRECTION,
    FLAG_HALTED,
    FLAG_LATE,
    FLAG_LOCKED,
    FLAG_OFF_MARKET,
    FLAG_OFF_SESSION,
    FLAG_RELEASED,
    FLAG_TIME_UNVERIFIED,
    TRADE,
    UNREADABLE,
    Message,
)
from integration.pipeline import (
    CONTENT_COLUMNS,
    Outcome,
    PartitionState,
    Refused,
    Request,
    Stored,
    StoredBytes,
    StoredTick,
    adopt,
    process,
)
from tests.e2e.events import (
    SECOND,
    TOPIC,
    TS,
    arrow,
    distributed,
    message,
    messages,
    normalized,
    quote,
    reference,
    status,
    trade,
)

SLOTS = build()
DAY = 86_400 * SECOND
Key = tuple[int, int, int, int]


@dataclass
class Ledger:
    """Stands for the database and the loop: commits outcomes, finds what was stored by identity."""

    facts: Reference = field(default_factory=reference)
    state: PartitionState = field(default_factory=lambda: PartitionState(KnownIdentities(), SLOTS.new_screen_state()))
    stored: dict[Key, Stored] = field(default_factory=dict)
    quarantine: dict[Key, Refused] = field(default_factory=dict)
    rows: list[Key] = field(default_factory=list)

    def find(self, wanted: Identities) -> list[Stored]:
        keys = zip(
            *(column.tolist() for column in (wanted.source_id, wanted.channel, wanted.session, wanted.sequence)),
            strict=True,
        )
        return [self.stored.get(key) for key in keys]

    def take(self, *data: bytes, published: int = TS + 5, trust_time: bool = True) -> Outcome:
        return self.run(Request(TOPIC, messages(*data, published=published), self.facts, trust_time))

    def release(self, refused: Refused, *waived: str) -> Outcome:
        again = Message(refused.raw, refused.ts_publish, refused.ts_received)
        return self.run(Request(TOPIC, [again], self.facts, is_release=True, waived=frozenset(waived)))

    def run(self, request: Request) -> Outcome:
        outcome = process(request, self.state, SLOTS, self.find)
        ticks = outcome.ticks
        for at in range(len(ticks)):
            key = (int(ticks.source_id[at]), int(ticks.channel[at]), int(ticks.session[at]), int(ticks.sequence[at]))
            content = [int(getattr(ticks, name)[at]) for name in CONTENT_COLUMNS]
            content[-1] *= content[0] == TRADE  # as the table of quotes, which has no trade id
            self.stored[key] = StoredTick(tuple(content))
            self.rows.append(key)
        for side in outcome.sides:
            key = (side.source_id, side.event.channel, side.event.session, side.event.sequence)
            self.stored[key] = StoredBytes(side.raw)
            self.rows.append(key)
        for item in outcome.refused + outcome.parked:
            key = (item.source_id, item.rejection.channel, item.rejection.session, item.rejection.sequence)
            self.stored[key] = StoredBytes(item.raw)
            self.quarantine[key] = item
        adopt(self.state, outcome)
        return outcome


def codes(outcome: Outcome) -> list[str]:
    return [item.rejection.code for item in outcome.refused]


def counts(outcome: Outcome) -> tuple[int, int, int, int, int]:
    return len(outcome.ticks), len(outcome.sides), len(outcome.refused), len(outcome.parked), outcome.duplicate_count


# One event for each reason that the flow itself, not a consumer's loop, can reach. All carry sequence 50 where they carry one.
BAD: dict[str, bytes] = {
    errors.EMPTY: b"",
    errors.TOO_LARGE: b'{"event_id": "' + b"x" * 70_000 + b'"}',
    errors.ENCODING: b"\xef\xbb\xbf" + trade(50),
    errors.MALFORMED: trade(50)[:-3],
    errors.DUPLICATE_KEY: trade(50).replace(b'"price": "10"', b'"price": "10", "price": "11"'),
    errors.UNKNOWN_FORM: b'{"event_id": "x"}',
    errors.SCHEMA: trade(50, kind="spread"),
    errors.UNSUPPORTED_VERSION: normalized(50).replace(b'"normalization_version": "1.0"', b'"normalization_version": "9.0"'),
    errors.ARROW_SCHEMA: arrow([50]).replace(b"ask_price", b"ask_prize"),
    errors.ARROW_INVALID: arrow([50])[:-8],
    errors.ARROW_ROWS: arrow([]),
    errors.NUMBER: trade(50, price="1e400"),
    errors.TIME: distributed(50, ts="2026-01-05T14:30:60Z"),
    errors.IDENTIFIER: trade(50, instrument="ISIN:US0378331006"),
    errors.SOURCE_UNKNOWN: trade(50, source="gone"),
    errors.SOURCE_NOT_BOUND: trade(50, source="elsewhere"),
    errors.SEQUENCE_JUMP: trade(5000),
    errors.CONFLICT: trade(1, price="11"),
    errors.CURRENCY: normalized(50, currency="EUR"),
    errors.PRICE_SIGN: trade(50, price=0),
    errors.SIZE_SIGN: trade(50, size=0),
    errors.CROSSED: quote(50, "10.02", "10.01"),
    errors.FUTURE: trade(50, ts=TS + DAY),
    errors.ANCIENT: trade(50, ts=TS - 8 * DAY),
    errors.BAR_INVARIANT: normalized(50, "ohlc", high="9", low="10"),
}  # fmt: skip
ELSEWHERE = {errors.POISON, errors.INTERNAL, errors.UNROUTABLE, errors.UNKNOWN_INSTRUMENT}


def test_every_reason_has_its_event_or_its_own_test() -> None:
    documented = re.findall(
        r"^\| (`[a-z_`, ]+`) \|",
        Path("docs/events.md").read_text().split("## Reason codes")[1].split("## Out")[0],
        re.MULTILINE,
    )
    words = {word for line in documented for word in re.findall(r"[a-z_]+", line)} - {"halted"}
    assert words == errors.REASON_CODES
    assert BAD.keys() | ELSEWHERE == errors.REASON_CODES


@pytest.mark.parametrize("code", sorted(BAD))
def test_bad_event_is_refused_alone_with_its_bytes(code: str) -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    outcome = ledger.take(trade(2), BAD[code], trade(3))
    assert codes(outcome) == [code]
    assert outcome.refused[0].raw == BAD[code]
    assert outcome.refused[0].rejection.detail
    assert outcome.ticks.sequence.tolist() == [2, 3]
    assert counts(outcome) == (2, 0, 1, 0, 0)


@pytest.mark.parametrize("code", sorted(BAD))
@pytest.mark.parametrize("same_batch", [True, False])
def test_bad_event_delivered_again_is_a_duplicate(code: str, same_batch: bool) -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    if same_batch:
        outcome = ledger.take(BAD[code], BAD[code])
        assert counts(outcome) == (0, 0, 1, 0, 1)
    else:
        ledger.take(BAD[code])
    before = dict(ledger.quarantine)
    outcome = ledger.take(trade(2), BAD[code])
    assert counts(outcome) == (1, 0, 0, 0, 1)
    assert ledger.quarantine == before


@pytest.mark.parametrize("code", sorted(BAD))
def test_bad_event_delivered_again_is_a_duplicate_after_other_batches(code: str) -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    ledger.take(BAD[code])
    ledger.take(*(trade(number) for number in range(2, 20)))
    assert counts(ledger.take(BAD[code])) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "event",
    [trade(1), quote(1), quote(1, trade_id=5), distributed(1), normalized(1), normalized(1, "trade"), normalized(1, "ohlc"), status(1, "open"),
     trade(0, event_id="a"), trade(1, action="correct", trade_id=4, conditions=["odd_lot"]), arrow([1])],
    ids=["trade", "quote", "quote with trade id", "form 2", "form 3 quote", "form 3 trade", "bar", "status", "unnumbered", "correction", "arrow"],
)  # fmt: skip
@pytest.mark.parametrize("same_batch", [True, False])
def test_same_event_twice_is_stored_once(event: bytes, same_batch: bool) -> None:
    ledger = Ledger()
    outcomes = [ledger.take(event, event)] if same_batch else [ledger.take(event), ledger.take(event)]
    assert len(ledger.rows) == 1
    assert not ledger.quarantine
    assert sum(outcome.duplicate_count for outcome in outcomes) == 1


def test_same_trade_in_another_form_is_a_duplicate() -> None:
    ledger = Ledger()
    ledger.take(distributed(1, price=10.5, volume=3))
    assert counts(ledger.take(trade(1, price="10.5", size="3.0"))) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize("same_batch", [True, False])
def test_conflict_is_quarantined_once_and_the_first_stays(same_batch: bool) -> None:
    ledger = Ledger()
    first, other, third = trade(1, price="10"), trade(1, price="11"), trade(1, price="12")
    outcomes = (
        [ledger.take(first, other, third, other)]
        if same_batch
        else [ledger.take(event) for event in (first, other, third, other)]
    )
    assert ledger.rows == [(1, 0, 20260105, 1)]
    assert ledger.stored[1, 0, 20260105, 1] == StoredTick((1, 0, 1, TS, 10 * SECOND, SECOND, 0, 0, 0, 0))
    assert sorted(code for outcome in outcomes for code in codes(outcome)) == [errors.CONFLICT] * 2
    assert sum(outcome.duplicate_count for outcome in outcomes) == 1
    # The conflict does not use up an identity: the stored event is still known as itself.
    assert counts(ledger.take(first)) == (0, 0, 0, 0, 1)


def test_conflict_before_the_stored_event_in_a_batch_does_not_hide_the_repeat() -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    assert counts(ledger.take(trade(1, price="11"), trade(1))) == (0, 0, 1, 0, 1)


def test_first_to_arrive_stays_whatever_became_of_it() -> None:
    grouped, apart = Ledger(), Ledger()
    bad, good = trade(1, price="1e400"), trade(1, price="10")
    grouped.take(bad, good)
    apart.take(bad)
    apart.take(good)
    assert grouped.rows == apart.rows == []
    assert grouped.quarantine.keys() == apart.quarantine.keys()
    assert sorted(item.rejection.code for item in grouped.quarantine.values()) == [errors.CONFLICT, errors.NUMBER]


def test_status_and_trade_with_one_identity_conflict() -> None:
    ledger = Ledger()
    assert counts(ledger.take(status(1, "open"), trade(1))) == (0, 1, 1, 0, 0)
    assert codes(ledger.take(trade(2), status(2, "open"))) == [errors.CONFLICT]


def test_stranger_uses_up_nothing_of_the_source_it_claims() -> None:
    ledger = Ledger()
    stranger = replace(ledger.facts.sources["alpha"], topics=frozenset())
    ledger.facts = replace(ledger.facts, sources={**ledger.facts.sources, "alpha": stranger})
    claimed = [
        trade(1),
        trade(900_000_000),
        trade(0, event_id="a"),
        trade(2, price="1e400"),
        arrow([5, 6]),
        status(3, "halted"),
        normalized(4, "ohlc"),
    ]
    outcome = ledger.take(*claimed)
    assert codes(outcome) == [errors.NUMBER] + [errors.SOURCE_NOT_BOUND] * 6
    assert {item.rejection.channel for item in outcome.refused} == {UNREADABLE}
    assert {item.source_id for item in outcome.refused} == {0}
    ledger.facts = reference()
    good = [
        trade(1, price="3"),
        trade(0, event_id="a", price="3"),
        trade(2, price="3"),
        status(3, "open"),
        trade(4),
        arrow([5, 6, 7]),
    ]
    assert counts(ledger.take(*good)) == (7, 1, 0, 0, 0)


def test_stranger_flows_when_it_is_bound_and_released_and_its_repeat_is_a_duplicate() -> None:
    ledger = Ledger()
    ledger.take(trade(1, source="elsewhere"))
    (refused,) = ledger.quarantine.values()
    here = replace(ledger.facts.sources["elsewhere"], topics=frozenset({TOPIC}))
    ledger.facts = replace(ledger.facts, sources={**ledger.facts.sources, "elsewhere": here})
    assert counts(ledger.release(refused, errors.SOURCE_NOT_BOUND)) == (1, 0, 0, 0, 0)
    assert counts(ledger.take(trade(1, source="elsewhere"))) == (0, 0, 0, 0, 1)


def test_jump_is_refused_until_it_is_released() -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    assert codes(ledger.take(trade(2000))) == [errors.SEQUENCE_JUMP]
    # What was refused has not moved the mark, nor is it known.
    assert codes(ledger.take(trade(1003))) == [errors.SEQUENCE_JUMP]
    assert counts(ledger.take(trade(2))) == (1, 0, 0, 0, 0)
    (refused,) = [item for item in ledger.quarantine.values() if b'"sequence": 2000' in item.raw]
    assert counts(ledger.release(refused, errors.SEQUENCE_JUMP)) == (1, 0, 0, 0, 0)
    assert counts(ledger.take(trade(2000), trade(2001))) == (1, 0, 0, 0, 1)


# -- releases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errors.PRICE_SIGN, errors.SIZE_SIGN, errors.CROSSED, errors.FUTURE, errors.ANCIENT])
def test_released_event_is_stored_once_and_flagged(code: str) -> None:
    ledger = Ledger()
    (refused,) = ledger.take(BAD[code]).refused
    outcome = ledger.release(refused, code)
    assert counts(outcome) == (1, 0, 0, 0, 0)
    assert int(outcome.ticks.flags[0]) & FLAG_RELEASED
    assert counts(ledger.release(refused, code)) == (0, 0, 0, 0, 1)
    assert counts(ledger.take(BAD[code])) == (0, 0, 0, 0, 1)
    assert len(ledger.rows) == 1


@pytest.mark.parametrize("waived", [errors.SIZE_SIGN, errors.PRICE_SIGN, errors.FUTURE])
def test_release_waives_only_the_reason_it_names(waived: str) -> None:
    ledger = Ledger()
    (refused,) = ledger.take(trade(1, price=0, size=-1, ts=TS + DAY)).refused
    outcome = ledger.release(refused, waived)
    assert len(outcome.refused) == 1
    assert waived not in codes(outcome)
    assert not ledger.rows


def test_released_row_of_a_stream_is_known_by_its_own_bytes() -> None:
    ledger = Ledger()
    outcome = ledger.take(arrow([1, 2, 3], size=[SECOND, 0, SECOND]))
    assert outcome.ticks.sequence.tolist() == [1, 3]
    (refused,) = outcome.refused
    assert counts(ledger.release(refused, errors.SIZE_SIGN)) == (1, 0, 0, 0, 0)
    assert counts(ledger.take(arrow([1, 2, 3], size=[SECOND, 0, SECOND]))) == (0, 0, 0, 0, 3)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_row_of_a_stream_has_the_same_bytes_wherever_it_stood(place: int) -> None:
    """Its bytes are what tells a repeat from a conflict, and what a release reads again."""
    stream = message(arrow([[7, 8, 9], [8, 7, 9], [8, 9, 7]][place]))
    raw = SLOTS.row_bytes(stream, place)
    assert raw == SLOTS.row_bytes(message(arrow([7])), 0) == SLOTS.row_bytes(message(raw), 0)


def test_release_does_not_store_a_second_row_under_an_identity_that_was_used_meanwhile() -> None:
    ledger = Ledger()
    ledger.take(trade(1))
    (jump,) = ledger.take(trade(2000)).refused
    ledger.facts = reference(sequence_jump_limit=1_000_000)
    ledger.take(trade(2000))
    assert counts(ledger.release(jump, errors.SEQUENCE_JUMP)) == (0, 0, 0, 0, 1)
    (other,) = Ledger().take(trade(2000, ts=TS - 100 * DAY)).refused  # same identity, other time and content
    outcome = ledger.release(replace(other, raw=trade(2000, ts=TS + SECOND)), errors.SEQUENCE_JUMP)
    assert codes(outcome) == [errors.CONFLICT]
    assert ledger.rows.count((1, 0, 20260105, 2000)) == 1


# -- instruments and lanes --------------------------------------------------------------------------------------------


def with_alias(text: str, *spans: AliasSpan) -> Reference:
    return reference(2, aliases={text: spans})


@pytest.mark.parametrize(
    "make", [trade, quote, lambda number, instrument: status(number, "open", instrument=instrument)]
)
def test_unknown_instrument_parks_and_holds_back_what_follows(make: Callable[..., bytes]) -> None:
    ledger = Ledger()
    outcome = ledger.take(make(1, instrument="ZZZ.SIMX"), trade(2))
    assert counts(outcome) == (1, 0, 0, 1, 0)
    assert outcome.parked[0].rejection.code == errors.UNKNOWN_INSTRUMENT
    ledger.facts = with_alias("ZZZ.SIMX", AliasSpan(0, FOREVER, 2))
    # The alias is there, but older events of the key still wait: newer ones wait behind them, other keys and sources do not.
    outcome = ledger.take(make(3, instrument="ZZZ.SIMX"), trade(4), trade(1, instrument="ZZZ.SIMX", source="beta"))
    assert counts(outcome) == (2, 0, 0, 1, 0)
    for item in list(ledger.quarantine.values()):
        assert counts(ledger.release(item)) in ((1, 0, 0, 0, 0), (0, 1, 0, 0, 0))
    ledger.state.lanes.clear()
    assert [key[3] for key in ledger.rows] == [2, 4, 1, 1, 3]
    assert counts(ledger.take(make(1, instrument="ZZZ.SIMX"), make(3, instrument="ZZZ.SIMX"))) == (0, 0, 0, 0, 2)


def test_parked_event_delivered_again_stays_one() -> None:
    ledger = Ledger()
    ledger.take(trade(1, instrument="ZZZ.SIMX"))
    assert counts(ledger.take(trade(1, instrument="ZZZ.SIMX"))) == (0, 0, 0, 0, 1)
    assert codes(ledger.take(trade(1, instrument="ZZZ.SIMX", price="11"))) == [errors.CONFLICT]


def test_parked_event_that_has_no_name_at_its_time_stays_parked() -> None:
    ledger = Ledger()
    (item,) = ledger.take(trade(1, instrument="ZZZ.SIMX")).parked
    ledger.facts = with_alias("ZZZ.SIMX", AliasSpan(TS + 1, FOREVER, 2))
    assert counts(ledger.release(item)) == (0, 0, 0, 1, 0)


def test_instrument_is_the_one_named_at_the_event_time() -> None:
    outcome = Ledger().take(trade(1, instrument="NEW.SIMX", ts=TS - 1), trade(2, instrument="NEW.SIMX", ts=TS))
    assert outcome.ticks.instrument_id.tolist() == [1, 2]


def test_pence_are_accepted_where_the_listing_is_quoted_in_pence() -> None:
    outcome = Ledger().take(
        normalized(1, currency="GBX", symbol="PNC"),
        normalized(2, currency="GBX"),
        normalized(3, "ohlc", currency="GBX"),
    )
    assert outcome.ticks.sequence.tolist() == [1]
    assert codes(outcome) == [errors.CURRENCY] * 2


def test_negative_price_passes_where_the_instrument_has_them() -> None:
    outcome = Ledger().take(
        trade(1, price="-37.63", instrument="OIL.SIMX"),
        quote(2, "-40", "-37", instrument="OIL.SIMX"),
        trade(3, price="-1"),
    )
    assert outcome.ticks.price.tolist() == [-37_630_000_000, -40 * SECOND]
    assert codes(outcome) == [errors.PRICE_SIGN]


# -- flags ------------------------------------------------------------------------------------------------------------


def flags(outcome: Outcome) -> dict[int, int]:
    return dict(zip(outcome.ticks.sequence.tolist(), outcome.ticks.flags.tolist(), strict=True))


def test_late_is_told_within_and_across_batches_by_source_and_instrument() -> None:
    ledger = Ledger()
    outcome = ledger.take(
        trade(1, ts=TS + 2), trade(2, ts=TS + 1), trade(3, ts=TS + 2), trade(4, ts=TS, instrument="BBB.SIMX")
    )
    assert flags(outcome) == {1: 0, 2: FLAG_LATE, 3: 0, 4: 0}
    outcome = ledger.take(
        trade(5, ts=TS + 1), trade(6, ts=TS + 1, instrument="BBB.SIMX"), trade(1, ts=TS, source="beta")
    )
    assert flags(outcome) == {5: FLAG_LATE, 6: 0, 1: 0}


def test_refused_tick_makes_no_other_late() -> None:
    outcome = Ledger().take(trade(1, ts=TS + DAY), trade(2, ts=TS))
    assert flags(outcome) == {2: 0}


def test_conditions_actions_and_locked_quotes_are_flagged() -> None:
    ledger = Ledger(facts=reference(crossed_limit_bps=20))
    outcome = ledger.take(
        trade(1, conditions=["odd_lot"]), trade(2, conditions=["opening"]), trade(3, action="correct", trade_id=1),
        trade(4, action="cancel", trade_id=1), quote(5, "10", "10"), quote(6, "10.01", "10"), quote(7, "10.03", "10"),
    )  # fmt: skip
    assert flags(outcome) == {
        1: FLAG_OFF_MARKET,
        2: 0,
        3: FLAG_CORRECTION,
        4: FLAG_CANCEL,
        5: FLAG_LOCKED,
        6: FLAG_LOCKED,
    }
    assert codes(outcome) == [errors.CROSSED]


def test_halt_is_flagged_by_time_until_it_ends_over_batches() -> None:
    ledger = Ledger()
    ledger.take(status(1, "halted", ts=TS + 10))
    outcome = ledger.take(
        trade(2, ts=TS + 9), trade(3, ts=TS + 10), status(4, "open", ts=TS + 20), trade(5, ts=TS + 19), trade(6, ts=TS + 20),
        trade(7, ts=TS + 15, instrument="BBB.SIMX"),
    )  # fmt: skip
    late = {number: flag & ~FLAG_LATE for number, flag in flags(outcome).items()}
    assert late == {2: 0, 3: FLAG_HALTED, 5: FLAG_HALTED, 6: 0, 7: 0}


def test_off_session_follows_the_calendar_of_the_venue() -> None:
    night = TS - 10 * 3600 * SECOND  # 04:30 UTC, before New York opens
    outcome = Ledger().take(
        trade(1, instrument="DAY.XNYS", ts=night), trade(2, instrument="DAY.XNYS", ts=TS + 4), trade(3, ts=TS + 4)
    )
    assert flags(outcome) == {1: FLAG_OFF_SESSION, 2: 0, 3: 0}
    assert outcome.ticks.session_date.tolist() == [20458, 20458, 20458]


def test_times_only_flag_while_clocks_disagree() -> None:
    outcome = Ledger().take(trade(1, ts=TS), trade(2, ts=TS + DAY), trade(3, ts=TS - 8 * DAY), trust_time=False)
    assert flags(outcome) == {1: 0, 2: FLAG_TIME_UNVERIFIED, 3: FLAG_TIME_UNVERIFIED | FLAG_LATE}


def test_canary_delivered_again_is_a_duplicate_though_it_is_in_no_table() -> None:
    ledger = Ledger()
    ledger.take(trade(1, instrument="CANARY.MDIX"))
    ledger.stored.clear()
    assert counts(ledger.take(trade(1, instrument="CANARY.MDIX"))) == (0, 0, 0, 0, 1)


# -- the whole --------------------------------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.builds(
        trade,
        st.integers(1, 9),
        price=st.sampled_from(["10", "11", "0", "1e400"]),
        instrument=st.sampled_from(["AAA.SIMX", "ZZZ.SIMX"]),
    ),
    st.builds(quote, st.integers(1, 9), bid=st.sampled_from(["9", "12"])),
    st.builds(status, st.integers(1, 9), st.sampled_from(["open", "halted"])),
    st.builds(
        normalized,
        st.integers(1, 9),
        st.sampled_from(["quote", "trade", "ohlc"]),
        currency=st.sampled_from(["USD", "EUR"]),
    ),
    st.builds(arrow, st.lists(st.integers(1, 9), min_size=1, max_size=4), channel=st.just(0)),
    st.sampled_from([b"", b"{", trade(1, source="elsewhere"), trade(1, source="gone")]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(EVENTS, max_size=6), max_size=5))
def test_every_event_is_accounted_for_and_no_identity_is_stored_twice(batches: list[list[bytes]]) -> None:
    ledger = Ledger()
    for batch in batches:
        outcome = ledger.take(*batch)
        assert sum(counts(outcome)) == sum(rows_of(event) for event in batch)
    assert len(ledger.rows) == len(set(ledger.rows))


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=10), st.data())
def test_delivering_everything_again_changes_nothing(events: list[bytes], data: st.DataObject) -> None:
    ledger = Ledger()
    ledger.take(*events)
    rows, quarantine = list(ledger.rows), dict(ledger.quarantine)
    start = data.draw(st.integers(0, len(events)))
    again = ledger.take(*events[start:])
    assert (ledger.rows, ledger.quarantine.keys()) == (rows, quarantine.keys())
    assert again.duplicate_count == sum(rows_of(event) for event in events[start:])


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=10), st.lists(st.integers(1, 9), max_size=3))
def test_boundaries_of_batches_do_not_decide_what_is_stored(events: list[bytes], cuts: list[int]) -> None:
    whole, parts = Ledger(), Ledger()
    whole.take(*events)
    edges = [0, *sorted(set(cuts)), len(events)]
    for start, end in pairwise(edges):
        parts.take(*events[start:end], published=TS + 5 + start)
    assert set(parts.rows) == set(whole.rows)
    assert parts.quarantine.keys() == whole.quarantine.keys()


def rows_of(event: bytes) -> int:
    if not event.startswith(b"\xff\xff\xff\xff"):
        return 1
    ticks = SLOTS.decode([message(event)])
    return len(ticks.ticks) + len(ticks.rejections)


def test_state_given_is_not_changed_before_it_is_adopted() -> None:
    ledger = Ledger()
    ledger.take(trade(1), status(2, "halted"), trade(3, instrument="ZZZ.SIMX"))
    state = ledger.state
    before = (state.identities.dump(), SLOTS.pack_screen_state(state.screen), dict(state.statuses), set(state.lanes))
    request = Request(
        TOPIC, messages(trade(4, ts=TS + 9), status(5, "open"), trade(6, instrument="YYY.SIMX"), b""), ledger.facts
    )
    process(request, state, SLOTS, ledger.find)
    assert (state.identities.dump(), SLOTS.pack_screen_state(state.screen), state.statuses, state.lanes) == before


def test_clock_is_when_the_last_message_was_published() -> None:
    assert Ledger().take(trade(1), b"", published=TS + 7).clock == TS + 8
    empty = process(Request(TOPIC, [], reference()), Ledger().state, SLOTS, lambda _: [])
    assert (empty.clock, empty.message_count, len(empty.ticks)) == (0, 0, 0)
    assert np.array_equal(empty.ticks.price, np.zeros(0, np.int64))
