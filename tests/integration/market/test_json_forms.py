"""`read_event`, the reader that the fast scan must agree with: whole events, what it says when it refuses, what it still knows then."""

from dataclasses import fields
from typing import Any

import pytest

from integration.market.identifiers import identity_hash
from integration.market.json_forms import TickEvent, read_event
from integration.market.ticks import (
    CANCEL,
    CORRECT,
    NEW,
    QUOTE,
    TRADE,
    UNREADABLE,
    DeliveredBar,
    Rejection,
    StatusChange,
)
from tests.integration.market.wire import (
    PUBLISHED,
    TIME,
    Document,
    Token,
    bar_3,
    dumps,
    message,
    quote_1,
    quote_3,
    status_1,
    trade_1,
    trade_2,
    trade_3,
    with_value,
    without,
)

G = 10**9
M1, P1 = "market_data.metadata", "market_data.price_data.price"
APPLE = {"instrument": "AAPL.XNAS", "source": "simulated", "currency": "", "channel": 1, "session": 20260105}
EURO = {"instrument": "EURUSD.SIMX", "source": "simulated", "currency": "USD", "channel": 2, "session": 20260105}
NOTHING = dict.fromkeys(("ask_price", "ask_size", "trade_id", "conditions"), 0) | {"action": NEW, "ts_event": TIME}


def refusal(data: Document | str | bytes) -> Rejection:
    outcome = read_event(message(data), 3)
    assert isinstance(outcome, Rejection)
    return outcome


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            trade_1(),
            APPLE
            | {"kind": TRADE, "sequence": 42, "price": 187_150_000_000, "size": 100 * G, "trade_id": 991}
            | {"conditions": 1},
        ),
        (trade_1(action="correct"), {"action": CORRECT, "trade_id": 991}),
        (trade_1(action="cancel"), {"action": CANCEL, "trade_id": 991}),
        (
            quote_1(),
            APPLE
            | {"kind": QUOTE, "sequence": 42, "price": 187_140_000_000, "size": 100 * G}
            | {"ask_price": 187_160_000_000, "ask_size": 200 * G},
        ),
        (trade_2(), APPLE | {"kind": TRADE, "sequence": 43, "price": 187_150_000_000, "size": 100 * G}),
        (trade_3(), EURO | {"kind": TRADE, "sequence": 7, "price": 1_084_120_000, "size": 1_000 * G}),
        (
            quote_3(),
            EURO
            | {"kind": QUOTE, "sequence": 7, "price": 1_084_110_000, "size": 10**6 * G}
            | {"ask_price": 1_084_130_000, "ask_size": 2 * 10**6 * G},
        ),
        (without(quote_3(), "normalized_data.ask_size"), {"size": 10**6 * G, "ask_size": 0}),
        (without(quote_3(), "normalized_data.bid_size"), {"size": 0, "ask_size": 2 * 10**6 * G}),
    ],
)
def test_a_tick_is_read_whole(document: Document, expected: dict[str, Any]) -> None:
    event = read_event(message(document), 3)
    assert isinstance(event, TickEvent)
    read = {name: getattr(event, name) for name in event.__struct_fields__}
    if "kind" in expected:
        assert read == NOTHING | expected
    assert read == read | expected


def test_a_bar_is_read_whole() -> None:
    bar = read_event(message(bar_3()), 3)
    assert isinstance(bar, DeliveredBar)
    assert {field.name: getattr(bar, field.name) for field in fields(bar)} == EURO | {
        "message": 3, "timeframe": "1m", "start": TIME, "open": 1_100_000_000, "high": 1_300_000_000, "low": G,
        "close": 1_200_000_000, "volume": 1_000 * G, "sequence": 7, "ts_publish": PUBLISHED,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("opened", "high", "low", "close", "holds"),
    [
        (1, 1, 1, 1, True), (2, 3, 1, 1, True), (2, 3, 1, 3, True), (3, 3, 1, 2, True), (1, 3, 1, 2, True),
        (0, 3, 1, 2, False), (4, 3, 1, 2, False), (2, 3, 1, 0, False), (2, 3, 1, 4, False), (2, 1, 3, 2, False),
    ],
)  # fmt: skip
def test_prices_of_a_bar_lie_between_its_low_and_its_high(
    opened: int, high: int, low: int, close: int, holds: bool
) -> None:
    document = bar_3()
    document["normalized_data"] |= {"open": opened, "high": high, "low": low, "close": close}
    outcome = read_event(message(document), 0)
    assert isinstance(outcome, DeliveredBar if holds else Rejection)
    if isinstance(outcome, Rejection):
        assert (outcome.code, outcome.detail) == ("bar_invariant", "low <= open, close <= high does not hold")


def test_a_status_is_read_whole() -> None:
    status = read_event(message(with_value(status_1("closed"), f"{M1}.channel", 4)), 3)
    assert status == StatusChange(3, "AAPL.XNAS", "simulated", "closed", TIME, 4, 0, 9, PUBLISHED)


PRICES: list[tuple[Document, str, str]] = [
    (trade_1(), P1, "price"),
    (trade_1(), "market_data.volume_data.size", "size"),
    *((quote_1(), f"market_data.price_data.{name}", name) for name in ("bid", "ask")),
    *((quote_1(), f"market_data.volume_data.{name}", name) for name in ("bid_size", "ask_size")),
    *((trade_2(), f"data.{name}", name) for name in ("price", "volume")),
    *((trade_3(), f"normalized_data.{name}", name) for name in ("price", "volume")),
    *((quote_3(), f"normalized_data.{name}", name) for name in ("bid", "ask", "bid_size", "ask_size")),
    *((bar_3(), f"normalized_data.{name}", name) for name in ("open", "high", "low", "close", "volume")),
]


@pytest.mark.parametrize(("document", "path", "name"), PRICES)
def test_a_refused_number_is_named(document: Document, path: str, name: str) -> None:
    rejection = refusal(with_value(document, path, "1x"))
    assert (rejection.message, rejection.code) == (3, "number")
    assert rejection.detail == f"{name}: not a decimal number, was '1x'"
    rejection = refusal(with_value(document, path, True))
    assert (rejection.code, rejection.detail) == ("schema", f"{name} is a number or a decimal string, was b'true'")


@pytest.mark.parametrize(
    ("document", "path", "name"),
    [case for case in PRICES if not (case[1].startswith("normalized_data.") and case[2] in {"bid_size", "ask_size"})],
)
def test_a_missing_number_is_named(document: Document, path: str, name: str) -> None:
    rejection = refusal(without(document, path))
    assert rejection.code == "schema"
    assert name in rejection.detail
    assert "missing" in rejection.detail


SAID: list[tuple[Document | str | bytes, str, str]] = [
    (b"", "empty", "no bytes"),
    (b"x" * (64 * 1024 + 1), "too_large", "a JSON event has at most 65536 bytes, was 65537"),
    (b"\xef\xbb\xbf{}", "encoding", "starts with a byte order mark"),
    (b"\xff\xfe{}", "encoding", "starts with a byte order mark"),
    (b"\xfe\xff{}", "encoding", "starts with a byte order mark"),
    (b"{}a\0", "encoding", "looks like UTF-16 or UTF-32, or starts with NUL"),
    (b"{}  \0", "malformed", "not JSON: Extra data at character 4"),
    (b"{} \xff", "encoding", "not UTF-8 at byte 3"),
    ('{"a": [[],[],[],[],[],[],[],[]], "b": [[[[[[[[]]]]]]]]}', "too_large", "nested more than 8 deep"),
    (
        '{"a": [[],[],[],[],[],[],[],[]], "b": [[[[[[[]]]]]]]}',
        "unknown_form",
        "none of market_data, distribution, normalized_data is a key of the event",
    ),
    ("[1,]", "malformed", "not JSON: Expecting value at character 3"),
    ('{"ab": 1, "c": 2, "c": 3}', "duplicate_key", "the key 'c' occurs twice in one object"),
    ("{" + f'"{"k" * 50}": 1, ' * 2 + '"a": 1}', "duplicate_key", f"the key '{'k' * 40}' occurs twice in one object"),
    (with_value(trade_1(), f"{M1}.channel", Token("-0")), "number", "negative zero"),
    (with_value(trade_1(), P1, Token("NaN")), "number", "not a finite number, was NaN"),
    (with_value(trade_1(), "market_data.timestamp", -1), "time", "timestamp: outside 1970 to 2262, was -1 ns"),
    (with_value(trade_1(), "market_data.timestamp", "now"), "time", "timestamp: not ISO 8601 with a zone, was 'now'"),
    (with_value(trade_1(), "market_data.price_data.bid", 1), "schema", "a trade has no bid"),
    (with_value(quote_1(), "market_data.volume_data.size", 1), "schema", "a quote has no size"),
    (with_value(status_1(), "market_data.volume_data.size", 1), "schema", "a status has no size"),
    (with_value(trade_3(), "normalized_data.bid", 1), "schema", "data_type trade has no bid"),
    (with_value(quote_3(), "normalized_data.volume", 1), "schema", "data_type quote has no volume"),
    (with_value(bar_3(), "normalized_data.ask", 1), "schema", "data_type ohlc has no ask"),
    (trade_1(status="open"), "schema", "a trade has no status"),
    (trade_1(trade_id=0, action="cancel"), "schema", "correct and cancel name a trade by its trade_id"),
    (with_value(quote_1(), f"{M1}.action", "correct"), "schema", "correct and cancel name a trade by its trade_id"),
    (without(status_1(), f"{M1}.status"), "schema", "a status event says its status"),
    *(
        (with_value(status_1(), f"{M1}.{name}", value), "schema", "a status has no conditions, trade_id and action")
        for name, value in (("conditions", []), ("trade_id", 1), ("action", "cancel"))
    ),
    (trade_1(conditions=["odd_lot", "x" * 50]), "schema", f"conditions: unknown or given twice, was '{'x' * 40}'"),
    (
        with_value(trade_3(), "processing_metadata.normalization_version", "3" * 50),
        "unsupported_version",
        f"normalization_version is 1.0, was '{'3' * 40}'",
    ),
    (with_value(quote_3(), "normalized_data.timeframe", "1m"), "schema", "data_type quote has no timeframe"),
    (without(bar_3(), "normalized_data.timeframe"), "schema", "data_type ohlc says its timeframe"),
]


@pytest.mark.parametrize(("data", "code", "detail"), SAID)
def test_a_refusal_says_what_was_wrong(data: Document | str | bytes, code: str, detail: str) -> None:
    rejection = refusal(data)
    assert (rejection.message, rejection.code, rejection.detail) == (3, code, detail)


@pytest.mark.parametrize(
    "data",
    [
        with_value(trade_1(), "event_id", ""), with_value(trade_1(), f"{M1}.source", "A b"), with_value(trade_1(), "market_data.instrument_id", "?"),
        with_value(status_1(), "market_data.instrument_id", "?"), with_value(trade_2(), "distribution.source", "A b"),
        with_value(trade_2(), "data.exchange", "x"), with_value(trade_3(), "processing_metadata.original_provider", "A b"),
        with_value(trade_3(), "normalized_data.exchange", "x"), with_value(bar_3(), "normalized_data.currency", "ZZZ"),
        with_value(trade_3(), "normalized_data.currency", "ZZZ"), trade_1() | {"surplus": 1}, trade_1(kind="other"),
        with_value(trade_1(), "event_id", Token('"\\ud800"')),
    ],
)  # fmt: skip
def test_no_refusal_is_silent(data: Document) -> None:
    rejection = refusal(data)
    assert rejection.code in {"schema", "identifier", "malformed"}
    assert rejection.detail not in {"", "None"}


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("channel", 2**31 - 1, True), ("channel", 2**31, False), ("channel", 0, True), ("channel", -1, False),
        ("session", 2**63 - 1, True), ("session", 2**63, False), ("session", 0, True), ("session", -1, False),
        ("sequence", 2**63 - 1, True), ("sequence", 2**63, False), ("sequence", 1, True), ("sequence", 0, False),
        ("sequence", True, False), ("channel", "1", False), ("session", Token("1.0"), False),
    ],
)  # fmt: skip
def test_a_refused_event_keeps_the_identity_that_could_have_been_stored(name: str, value: Any, known: bool) -> None:
    document = with_value(with_value(trade_1(), P1, "NaN"), f"{M1}.{name}", value)
    rejection = refusal(document)
    expected = {"channel": 1, "session": 20260105, "sequence": 42} | {name: value}
    if not known:
        data = dumps(document).encode()
        expected = {"channel": UNREADABLE, "session": UNREADABLE, "sequence": identity_hash(data)}
    assert {key: getattr(rejection, key) for key in expected} == expected


def test_a_refused_event_without_channel_and_session_has_those_of_their_defaults() -> None:
    rejection = refusal(without(without(with_value(trade_2(), "data.price", "x"), "distribution.channel"), "distribution.session"))  # fmt: skip
    assert (rejection.channel, rejection.session, rejection.sequence) == (0, 0, 43)


@pytest.mark.parametrize(
    ("document", "instrument", "ts_event"),
    [
        (with_value(trade_1(), P1, "x"), "AAPL.XNAS", TIME),
        (
            with_value(with_value(trade_1(), P1, "x"), "market_data.timestamp", "2026-01-05T14:30:00Z"),
            "AAPL.XNAS",
            TIME,
        ),
        (with_value(trade_1(), "market_data.timestamp", True), "AAPL.XNAS", 0),
        (with_value(trade_1(), "market_data.timestamp", -1), "AAPL.XNAS", 0),
        (with_value(trade_1(), "market_data.instrument_id", "?"), "", TIME),
        (with_value(trade_2(), "data.price", "x"), "AAPL.XNAS", TIME),
        (with_value(trade_2(), "data.exchange", "xnas"), "", TIME),
        (with_value(trade_2(), "data.exchange", 5), "", TIME),
        (with_value(trade_2(), "data.symbol", 5), "", TIME),
        (with_value(quote_3(), "normalized_data.bid", "x"), "EURUSD.SIMX", TIME),
    ],
)
def test_a_refused_event_keeps_the_instrument_and_time_that_can_be_read(
    document: Document, instrument: str, ts_event: int
) -> None:
    rejection = refusal(document)
    assert (rejection.source, rejection.instrument, rejection.ts_event) == ("simulated", instrument, ts_event)
