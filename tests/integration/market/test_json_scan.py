"""The compiled scan against the strict reader: what it accepts they read alike, and plain events it does accept."""

import importlib.util
import re
import sys
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.market import json_scan
from integration.market.events import STREAM_PREFIX, decode, warm_up
from integration.market.json_forms import TickEvent, read_event
from integration.market.json_scan import scan
from integration.market.ticks import CONDITIONS, DeliveredBar, Message, Rejection, StatusChange
from integration.market.times import MAX_NS, text_from_ns
from integration.market.units import MAX_NANOS, text_from_nanos
from tests.integration.market.wire import (
    FORMS,
    Document,
    Token,
    bar_3,
    dumps,
    message,
    outcomes,
    paths,
    quote_1,
    quote_3,
    status_1,
    tick_of,
    trade_1,
    trade_2,
    trade_3,
    with_value,
    without,
)

FILLER = [message(trade_2())] * 4  # enough messages that the scan is used


def expected(event: Message, index: int) -> Any:
    outcome = read_event(event, index)
    return tick_of(outcome, index) if isinstance(outcome, TickEvent) else outcome


def assert_agrees(events: list[Message]) -> None:
    warm_up()
    found = outcomes(FILLER + events)
    assert len(found) == len(FILLER) + len(events)
    for index, event in enumerate(events, len(FILLER)):
        outcome = found.get((index, 0)) or found[index, -1]
        assert outcome == expected(event, index), event.data


def as_json(nanos: int, quoted: bool) -> str:
    text = text_from_nanos(nanos)
    return text if quoted else Token(text)


all_nanos = (
    st.integers(-MAX_NANOS + 1, MAX_NANOS - 1)
    | st.integers(-1000, 1000)
    | st.integers(-(10**6), 10**6).map(lambda n: n * 10**7)
)
decimals = st.builds(as_json, all_nanos, st.booleans())
odd_numbers = st.sampled_from(
    [
        Token("-0"),
        Token("1e2"),
        Token("1.0000000000"),
        "1e400",
        "-0.0",
        None,
        True,
        "",
        "1,5",
        Token("9200000000"),
        "0x1",
        Token("01"),
        "00",
        Token("2e-05"),
        Token("-0e1"),
        Token("1E+2"),
        Token("1e"),
        Token("1e+"),
        Token("1.5e308"),
    ]
)
numbers = decimals | odd_numbers
zones = st.sampled_from(
    ["Z", "+00:00", "-00:00", "+14:00", "-14:00", "+05:30", "-05:00", "+14:01", "+1:00", "", "z", "+0530"]
)
times = (
    st.integers(-5, MAX_NS + 5)
    | st.integers(0, MAX_NS).map(text_from_ns)
    | st.builds(
        lambda date, clock, fraction, zone: f"{date}T{clock}{fraction}{zone}",
        st.from_regex(r"(19[67]\d|20\d\d|22[56]\d|2400|1900)-(0[0-9]|1[0-3])-([0-2]\d|3[0-2])", fullmatch=True),
        st.from_regex(r"([01]\d|2[0-4]):[0-6]\d:[0-6]\d", fullmatch=True),
        st.from_regex(r"(\.\d{0,10})?", fullmatch=True),
        zones,
    )
)
integers = st.sampled_from(
    [0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**18, -1, Token("1.0"), Token("007"), "1", None]
) | st.integers(1, 2**63)
texts = st.sampled_from(
    ["AAPL", "XNAS", "AAPL.XNAS", "ISIN:US0378331005", "B.XNAS", "", "é", "a b", "simulated", "USD", "GBX", "usd", "trade", "quote", "1.0", "correct",
     "cancel", "\\", '"', "a" * 33, "a" * 129, "status", "ohlc", "\x7f", "\u2028"]
)  # fmt: skip
words = st.lists(st.sampled_from([*CONDITIONS, "odd", ""]), max_size=4)
leaves: st.SearchStrategy[Any] = numbers | times | integers | texts | words | st.just({})


@st.composite
def near_events(draw: st.DrawFn) -> Message:
    """An event of one of the forms with a few values replaced, keys dropped or added, written with some spacing."""
    document = draw(st.sampled_from(list(FORMS.values())))()
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(paths(document) or ["event_id"]))
        what = draw(st.integers(0, 9))
        if what == 0:
            document = without(document, path)
        elif what == 1:
            document = with_value(
                document, path.rpartition(".")[0] + ".surplus" if "." in path else "surplus", draw(leaves)
            )
        else:
            document = with_value(document, path, draw(fitting(path)))
    return message(
        dumps(
            document, draw(st.sampled_from([",", ", ", " ,\n\t"])), draw(st.sampled_from([":", ": ", " : ", "\r\n:\t"]))
        )
    )


def fitting(path: str) -> st.SearchStrategy[Any]:
    """Values that the key could have, mostly."""
    key = path.rpartition(".")[2]
    if key == "timestamp":
        return times | leaves
    if key in {"channel", "session", "sequence", "trade_id"}:
        return integers | leaves
    if key in {"symbol", "exchange", "instrument_id", "source", "currency", "kind", "data_type", "action", "event_id"}:
        return texts | leaves
    if key == "conditions":
        return words | leaves
    return numbers | leaves


@given(st.lists(near_events(), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_scan_and_reference_agree_on_events_with_odd_values(events: list[Message]) -> None:
    assert_agrees(events)


@st.composite
def damaged_events(draw: st.DrawFn) -> Message:
    """A good event with bytes replaced, removed, repeated or moved."""
    data = bytearray(
        dumps(draw(st.sampled_from(list(FORMS.values())))(), draw(st.sampled_from([",", ", ", " ,"]))).encode()
    )
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        part = bytes(data[start:end])
        other = draw(st.integers(0, len(data)))
        replacement = draw(
            st.sampled_from(
                [
                    b"",
                    part * 2,
                    b'"',
                    b"}",
                    b"{",
                    b",",
                    b":",
                    b" ",
                    b"\\",
                    b"0",
                    b"-",
                    b"\0",
                    b"e9",
                    b"\xff",
                    b"]",
                    b"[",
                ]
            )
        )
        where = draw(st.sampled_from(["replace", "move"]))
        data[start:end] = replacement
        if where == "move":
            data[other:other] = part
    return message(bytes(data))


@given(st.lists(damaged_events(), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_scan_and_reference_agree_on_damaged_events(events: list[Message]) -> None:
    assert_agrees(events)


@given(
    st.lists(
        st.binary(max_size=60) | st.text(alphabet='{}[]":,0-1e.\\ a', max_size=40).map(str.encode),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_raise_and_each_has_one_outcome(data: list[bytes]) -> None:
    assert_agrees([message(item) for item in data if not item.startswith(STREAM_PREFIX)])


@given(st.lists(near_events() | damaged_events(), max_size=6), st.lists(near_events() | damaged_events(), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_batch_decodes_like_its_parts(first: list[Message], second: list[Message]) -> None:
    def shifted(outcome: Any, by: int) -> Any:
        if isinstance(outcome, dict):
            return outcome | {"message": outcome["message"] - by}
        facts = {name: getattr(outcome, name) for name in outcome.__slots__}
        return type(outcome)(**facts | {"message": outcome.message - by})

    whole = outcomes(first + second)
    parts = outcomes(first) | {(index + len(first), row): outcome for (index, row), outcome in outcomes(second).items()}
    assert whole.keys() == parts.keys()
    for (index, row), outcome in whole.items():
        by = len(first) if index >= len(first) else 0
        assert shifted(outcome, by) == parts[index, row]


@given(
    nanos=st.integers(-MAX_NANOS + 1, MAX_NANOS - 1),
    ns=st.integers(0, MAX_NS),
    quoted=st.booleans(),
    as_text=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_prices_and_times_come_back_as_they_were_written(nanos: int, ns: int, quoted: bool, as_text: bool) -> None:
    text = text_from_nanos(nanos)
    document = with_value(trade_2(), "data.price", text if quoted else Token(text))
    document = with_value(document, "data.timestamp", text_from_ns(ns) if as_text else ns)
    decoded = decode([*FILLER, message(document)])
    assert (decoded.ticks.price[-1], decoded.ticks.ts_event[-1]) == (nanos, ns)
    assert isinstance(event := read_event(message(document), 0), TickEvent)
    assert (event.price, event.ts_event) == (nanos, ns)


PLAIN: list[Document] = [
    trade_1(), quote_1(), trade_2(), trade_3(), quote_3(),
    with_value(trade_1(), "market_data.timestamp", "2026-01-05T14:30:00.123456789+05:30"),
    with_value(trade_2(), "data.timestamp", "2028-02-29T23:59:59Z"),
    with_value(trade_1(), "market_data.metadata.conditions", ["odd_lot", "opening"]),
    without(trade_2(), "distribution.sequence"),
    trade_1(action="cancel"),
]  # fmt: skip


@pytest.fixture(scope="module")
def uncompiled() -> ModuleType:
    """The same source as Python runs it: an index outside the buffer is an error there."""
    spec = importlib.util.spec_from_file_location("uncompiled_scan", json_scan.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        patch.setattr(numba.config, "DISABLE_JIT", True)
        spec.loader.exec_module(module)
    return module


def assert_same_scan(uncompiled: ModuleType, data: list[bytes]) -> None:
    with np.errstate(over="ignore"):  # hashes wrap around
        slow = uncompiled.scan(data)
    fast = scan(data)
    assert slow.read.tolist() == fast.read.tolist()
    for name, column in fast.columns.items():
        assert slow.columns[name][fast.read].tolist() == column[fast.read].tolist(), name
    assert (slow.instruments, slow.sources, slow.currencies) == (fast.instruments, fast.sources, fast.currencies)


@given(st.lists(near_events() | damaged_events(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_compiling_changes_nothing(uncompiled: ModuleType, events: list[Message]) -> None:
    assert_same_scan(uncompiled, [event.data for event in events])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.price", Token(text))
        for text in ("0.5", "-0.5", "-1", "00", "1.", ".5", "-", "12345678901", "9200000000", "1.0123456789", '"1.5', '"1.5"', '"-0"')
    ]
    + [
        ("data.timestamp", Token(text))
        for text in (
            "9223372036854775807", "9223372036854775808", "9300000000000000000", "12345678901234567890", "007", "x", '"2026-02-30T00:00:00Z"',
            '"2026-06-31T00:00:00Z"', '"2028-02-29T00:00:00Z"', '"2026-01-05T00:00:00+14:00"', '"2026-01-05T00:00:00-05:30"',
            '"2026-01-05T00:00:00+14:30"', '"2026-01-05T00:00:00.5Z"', '"2026-01-05T00:00:00.Z"', '"2026-01-05T00:00:00ZZ"', '"1970-01-01T00:00:00+01:00"',
            '"2026/01-05T00:00:00Z"', '"2026-01-05 00:00:00Z"', '"2026-01-05T00:00:60Z"', '"x026-01-05T00:00:00Z"', '"short"',
        )
    ],
)  # fmt: skip
def test_borders_of_numbers_and_times(uncompiled: ModuleType, path: str, value: Token) -> None:
    event = message(with_value(trade_2(), path, value))
    assert_same_scan(uncompiled, [event.data])
    assert_agrees([event])


ODD: list[Document] = [
    *[with_value(quote_3(), "normalized_data.spread", Token(text)) for text in ("null", "nul0", "-0", "2e-05", "1e", "1e100", "1.", "-0.1", "1" * 40, "1." + "1" * 40)],
    *[trade_1(conditions=Token(text)) for text in ("[]", '["cash"', '["cash",]', '["cash" "seller"]', '["cash","cash"]', "[1]", "{}", '["cash", "seller"]')],
    trade_1(kind="candle"), trade_1(action="undo"), trade_1(sequence=0), trade_1(channel=2**31), trade_1(action="correct", trade_id=0),
    with_value(quote_3(), "processing_metadata.normalization_version", "1.1"), with_value(quote_3(), "normalized_data.currency", "US"),
    with_value(trade_2(), "data.exchange", "XN.S"), with_value(trade_2(), "event_id", ""), with_value(trade_2(), "timestamp", "whenever"),
    with_value(trade_2(), "data.symbol", 'A"'), with_value(trade_2(), "routing", []),
]  # fmt: skip


def test_odd_structures(uncompiled: ModuleType) -> None:
    texts = [dumps(document) for document in ODD]
    texts += [
        dumps(trade_2()).replace(*change, 1)
        for change in ((": ", " "), (", ", " "), ("{", "["), ('"data"', '"date"'), ("}", ""))
    ]
    assert_same_scan(uncompiled, [text.encode() for text in texts] + [dumps(document).encode() for document in PLAIN])
    for text in texts:
        assert_agrees([message(text)])


def colliding(monkeypatch: pytest.MonkeyPatch, module: ModuleType, probes: int) -> Any:
    monkeypatch.setattr(module, "_MAX_PROBES", probes)
    data = [dumps(with_value(trade_2(), "data.symbol", f"S{number}")).encode() for number in range(200)]
    with np.errstate(over="ignore"):
        return module.scan(data)


def test_texts_that_collide_are_declined_not_slow(uncompiled: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert colliding(monkeypatch, uncompiled, 64).read.all()
    assert 0 < colliding(monkeypatch, uncompiled, 1).read.sum() < 200


@pytest.mark.parametrize("comma", [",", ", "])
def test_plain_events_are_not_declined(comma: str) -> None:
    assert scan([dumps(document, comma).encode() for document in PLAIN]).read.all()


@pytest.mark.parametrize(
    "document", [status_1(), bar_3(), with_value(trade_1(), "event_id", "é"), trade_2() | {"data": {}}]
)
def test_what_is_not_plain_is_declined(document: Document) -> None:
    assert not scan([dumps(document).encode()]).read.any()


def test_a_message_cut_off_does_not_borrow_from_its_neighbour() -> None:
    whole = dumps(trade_2()).encode()
    for cut in range(1, len(whole)):
        found = scan([whole[:cut], whole[cut:], whole])
        assert found.read.tolist() == [False, False, True], cut


def test_many_distinct_texts_keep_their_rows() -> None:
    documents = [with_value(trade_2(), "data.symbol", f"S{number}") for number in range(3000)]
    decoded = decode([message(document) for document in documents])
    assert len(set(decoded.instruments)) == len(decoded.ticks) == 3000
    assert [decoded.instruments[place] for place in decoded.instrument] == [f"S{number}.XNAS" for number in range(3000)]


def test_every_key_twice_is_refused_in_every_form() -> None:
    for make in FORMS.values():
        text = dumps(make())
        for match in re.finditer(r'"(\w+)": ', text):
            twice = message(text[: match.start()] + f'"{match[1]}": 1, ' + text[match.start() :])
            outcome = expected(twice, 0)
            assert isinstance(outcome, Rejection)
            assert outcome.code == "duplicate_key"
            assert_agrees([twice])


def test_other_outcomes_keep_their_type_in_a_scanned_batch() -> None:
    found = outcomes([*FILLER, message(bar_3()), message(status_1())])
    assert isinstance(found[4, -1], DeliveredBar)
    assert isinstance(found[5, -1], StatusChange)
