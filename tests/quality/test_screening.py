"""The first screens, value by value at their limits; late by hand and against a plain loop; state written and read back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market import errors
from integration.market.ticks import (
    CONDITION_BITS,
    FLAG_LATE,
    FLAG_LOCKED,
    FLAG_OFF_MARKET,
    FLAG_TIME_UNVERIFIED,
    QUOTE,
    TRADE,
    Ticks,
)
from quality.screening import CODES, ScreenState, detail, pack_state, screen, unpack_state
from tests.e2e.events import SECOND, TS, reference

DAY = 86_400 * SECOND
NEAR = "ts_event must be near the broker's publish time, "


def one(**values: int) -> Ticks:
    ticks = Ticks.zeros(1)
    defaults = {
        "kind": TRADE,
        "instrument_id": 1,
        "source_id": 1,
        "ts_event": TS,
        "ts_publish": TS,
        "price": 5,
        "size": 5,
    }
    for name, value in (defaults | values).items():
        getattr(ticks, name)[0] = value
    return ticks


def judge(ticks: Ticks, waived: tuple[str, ...] = (), **limits: Any) -> tuple[str, int]:
    answer = screen(ticks, reference(**limits), ScreenState(), waived=waived)
    code = int(answer.codes[0])
    return (CODES[code - 1] if code else "", int(answer.flags[0]))


OFFICIAL = CONDITION_BITS["official_close"]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"price": 1}, ""),
        ({"price": 0}, errors.PRICE_SIGN),
        ({"price": -1}, errors.PRICE_SIGN),
        ({"price": 0, "instrument_id": 3}, ""),
        ({"price": -1, "instrument_id": 3}, ""),
        ({"size": 1}, ""),
        ({"size": 0}, errors.SIZE_SIGN),
        ({"size": -1}, errors.SIZE_SIGN),
        ({"size": 0, "conditions": OFFICIAL}, ""),
        ({"size": -1, "conditions": OFFICIAL}, errors.SIZE_SIGN),
        ({"kind": QUOTE, "ask_price": 6, "size": 0, "ask_size": 0}, ""),
        ({"kind": QUOTE, "ask_price": 6, "ask_size": -1}, errors.SIZE_SIGN),
        ({"kind": QUOTE, "ask_price": 6, "size": -1}, errors.SIZE_SIGN),
        ({"kind": QUOTE, "price": 0, "ask_price": 6}, errors.PRICE_SIGN),
        ({"kind": QUOTE, "ask_price": 4}, errors.CROSSED),
        ({"ts_event": TS + 5 * SECOND}, ""),
        ({"ts_event": TS + 5 * SECOND + 1}, errors.FUTURE),
        ({"ts_event": TS - 7 * DAY}, ""),
        ({"ts_event": TS - 7 * DAY - 1}, errors.ANCIENT),
    ],
)
def test_values_at_their_limits(values: dict[str, int], code: str) -> None:
    ticks = one(**values)
    assert judge(ticks)[0] == code
    if code:
        assert detail(ticks, 0, code)
        assert judge(ticks, (code,))[0] == ""
        assert judge(ticks, tuple(set(CODES) - {code}))[0] == code


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        (
            {"kind": QUOTE, "price": 9_199_999_999_999_999_999, "ask_price": 123_456_789_123_456_789},
            errors.CROSSED,
            "bid must not be above ask, was 9199999999.999999999 > 123456789.123456789",
        ),
        ({"price": -1}, errors.PRICE_SIGN, "price must be positive for this instrument, was -0.000000001"),
        (
            {"kind": QUOTE, "price": 5_000_000_001, "ask_price": -1_234_567_890_123},
            errors.PRICE_SIGN,
            "prices must be positive for this instrument, was bid 5.000000001, ask -1234.567890123",
        ),
        ({"size": 0}, errors.SIZE_SIGN, "size must be positive, was 0"),
        ({"size": -1_000_000_000_000_001}, errors.SIZE_SIGN, "size must be positive, was -1000000.000000001"),
        (
            {"kind": QUOTE, "size": 7 * SECOND, "ask_size": -3},
            errors.SIZE_SIGN,
            "sizes must not be negative, was bid size 7, ask size -0.000000003",
        ),
        (
            {"ts_event": TS + 6 * SECOND + 1},
            errors.FUTURE,
            NEAR + "was 2026-01-05T14:30:06.000000001Z: 6.000000001 s after 2026-01-05T14:30:00.000000000Z",
        ),
        (
            {"ts_event": TS - 7 * DAY - 1},
            errors.ANCIENT,
            NEAR + "was 2025-12-29T14:29:59.999999999Z: 604800.000000001 s before 2026-01-05T14:30:00.000000000Z",
        ),
        (
            {"ts_event": 2**63 - 1, "ts_publish": 0},
            errors.FUTURE,
            NEAR + "was 2262-04-11T23:47:16.854775807Z: 9223372036.854775807 s after 1970-01-01T00:00:00.000000000Z",
        ),
    ],
)
def test_details_say_the_exact_numbers_and_times(values: dict[str, int], code: str, words: str) -> None:
    assert detail(one(**values), 0, code) == words
    assert len(words) <= 400  # what the quarantine's column holds


def test_crossed_within_the_sources_tolerance_is_a_flag() -> None:
    def quoted(bid: int, ask: int) -> Ticks:
        return one(kind=QUOTE, price=bid, ask_price=ask)

    assert judge(quoted(10_000, 10_000)) == ("", FLAG_LOCKED)
    assert judge(quoted(10_010, 10_000), crossed_limit_bps=10) == ("", FLAG_LOCKED)
    assert judge(quoted(10_011, 10_000), crossed_limit_bps=10) == (errors.CROSSED, 0)
    assert judge(quoted(9_999, 10_000), crossed_limit_bps=10) == ("", 0)
    # Exact at the largest prices, where the product leaves 64 bits.
    assert judge(quoted(9_199_999_999_000_000_001, 9_199_999_999_000_000_000)) == (errors.CROSSED, 0)


def test_conditions_that_set_no_price_are_flagged_on_trades() -> None:
    assert judge(one(conditions=CONDITION_BITS["odd_lot"])) == ("", FLAG_OFF_MARKET)
    assert judge(one(conditions=CONDITION_BITS["opening"])) == ("", 0)
    assert judge(one(kind=QUOTE, ask_price=9, conditions=CONDITION_BITS["odd_lot"])) == ("", 0)


def test_times_only_flag_when_clocks_cannot_be_trusted() -> None:
    for ts_event, flag in ((TS, 0), (TS + DAY, FLAG_TIME_UNVERIFIED), (TS - 8 * DAY, FLAG_TIME_UNVERIFIED)):
        answer = screen(one(ts_event=ts_event), reference(), ScreenState(), trust_time=False)
        assert (answer.codes.tolist(), answer.flags.tolist()) == ([0], [flag])


rows = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 5), st.booleans()), max_size=20)


@given(st.lists(rows, max_size=4))
def test_late_agrees_with_a_plain_loop_over_batches(batches: list[list[tuple[int, int, int, bool]]]) -> None:
    state, newest = ScreenState(), dict[tuple[int, int], int]()
    for batch in batches:
        ticks = Ticks.zeros(len(batch))
        ticks.kind[:], ticks.size[:], ticks.ts_publish[:] = TRADE, 1, TS
        expected = []
        for at, (source, instrument, step, is_bad) in enumerate(batch):
            ticks.source_id[at], ticks.instrument_id[at], ticks.ts_event[at] = source, instrument, TS + step
            ticks.price[at] = 0 if is_bad and instrument != 3 else 1
            passes = bool(ticks.price[at])
            seen = newest.get((source, instrument), 0)
            expected.append(passes and TS + step < seen)
            if passes:
                newest[source, instrument] = max(seen, TS + step)
        before = pack_state(state)
        answer = screen(ticks, reference(), state)
        assert pack_state(state) == before
        assert ((answer.flags & FLAG_LATE) != 0).tolist() == expected
        state = unpack_state(pack_state(answer.state))


def test_state_survives_new_instruments() -> None:
    state = ScreenState({1: np.array([0, TS + 9], np.int64)})
    answer = screen(one(instrument_id=6), reference(), state)
    assert answer.state.newest[1].tolist() == [0, TS + 9, 0, 0, 0, 0, TS]
    assert screen(one(), reference(), answer.state).flags.tolist() == [FLAG_LATE]


def test_empty_batch_changes_nothing() -> None:
    state = ScreenState({1: np.array([0, 7], np.int64)})
    answer = screen(Ticks.zeros(0), reference(), state)
    assert len(answer.codes) == 0
    assert pack_state(answer.state) == pack_state(state)
