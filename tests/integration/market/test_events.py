"""`decode` over JSON: every form, every reason code, identities that survive rejection, neighbours that stay untouched."""

import json
from typing import Any

import pytest

from integration.market.events import MAX_JSON_BYTES, decode
from integration.market.identifiers import identity_hash
from integration.market.json_forms import read_event
from integration.market.ticks import (
    CANCEL,
    CORRECT,
    FLAG_CANCEL,
    FLAG_CORRECTION,
    QUOTE,
    TICK_COLUMNS,
    TRADE,
    UNNUMBERED,
    UNREADABLE,
    DeliveredBar,
    Rejection,
    StatusChange,
)
from tests.integration.market.wire import (
    FORMS,
    PUBLISHED,
    TIME,
    Document,
    Token,
    bar_3,
    code_of,
    dumps,
    message,
    outcomes,
    quote_1,
    quote_3,
    status_1,
    trade_1,
    trade_2,
    trade_3,
    with_value,
    without,
)


def one(document: Document | str | bytes) -> Any:
    (outcome,) = outcomes([message(document)]).values()
    return outcome


def test_a_trade_of_form_1_becomes_a_row() -> None:
    row = one(trade_1())
    expected = dict.fromkeys(TICK_COLUMNS, 0) | {
        "kind": TRADE, "channel": 1, "session": 20260105, "sequence": 42, "trade_id": 991, "ts_event": TIME,
        "ts_publish": PUBLISHED, "price": 187_150_000_000, "size": 100_000_000_000, "conditions": 1,
        "instrument": "AAPL.XNAS", "source": "simulated", "currency": "",
    }  # fmt: skip
    assert row == expected


def test_a_quote_of_form_1_has_bid_in_price_and_ask_beside_it() -> None:
    row = one(quote_1())
    assert (row["kind"], row["price"], row["ask_price"]) == (QUOTE, 187_140_000_000, 187_160_000_000)
    assert (row["size"], row["ask_size"]) == (100_000_000_000, 200_000_000_000)


def test_form_2_joins_symbol_and_exchange() -> None:
    row = one(trade_2())
    assert (row["instrument"], row["price"], row["size"]) == ("AAPL.XNAS", 187_150_000_000, 100_000_000_000)


def test_form_3_carries_its_currency_and_defaults_sizes() -> None:
    document = without(without(quote_3(), "normalized_data.bid_size"), "normalized_data.ask_size")
    row = one(document)
    assert (row["currency"], row["source"], row["size"], row["ask_size"]) == ("USD", "simulated", 0, 0)
    assert one(trade_3())["price"] == 1_084_120_000


def test_a_delivered_bar_is_exact() -> None:
    bar = one(bar_3())
    assert isinstance(bar, DeliveredBar)
    assert (bar.open, bar.high, bar.low, bar.close) == (1_100_000_000, 1_300_000_000, 1_000_000_000, 1_200_000_000)
    assert (bar.timeframe, bar.start, bar.volume, bar.sequence) == ("1m", TIME, 1000 * 10**9, 7)


def test_a_status_is_no_tick() -> None:
    status = one(status_1("auction"))
    assert isinstance(status, StatusChange)
    assert (status.status, status.instrument, status.sequence, status.ts_event) == ("auction", "AAPL.XNAS", 9, TIME)


@pytest.mark.parametrize(
    ("action", "code", "flag"), [("correct", CORRECT, FLAG_CORRECTION), ("cancel", CANCEL, FLAG_CANCEL)]
)
def test_an_action_sets_its_flag(action: str, code: int, flag: int) -> None:
    row = one(trade_1(action=action))
    assert (row["action"], row["flags"]) == (code, flag)


@pytest.mark.parametrize("make", [trade_1, trade_2, trade_3])
def test_without_a_sequence_the_event_id_is_the_identity(make: Any) -> None:
    home = {trade_1: "market_data.metadata", trade_2: "distribution", trade_3: "processing_metadata"}[make]
    document = without(make(), f"{home}.sequence")
    for copies in (1, 80):  # one by one, and through the scan
        for row in outcomes([message(document)] * copies).values():
            assert isinstance(row, dict)
            expected = (UNNUMBERED, UNNUMBERED, identity_hash(document["event_id"].encode()))
            assert (row["channel"], row["session"], row["sequence"]) == expected


def test_channel_and_session_default_to_zero() -> None:
    document = without(without(trade_2(), "distribution.channel"), "distribution.session")
    row = one(document)
    assert (row["channel"], row["session"], row["sequence"]) == (0, 0, 43)


P1 = "market_data.price_data.price"
T1 = "market_data.timestamp"
I1 = "market_data.instrument_id"
M1 = "market_data.metadata"
DEEP = "[" * 200 + "]" * 200
A = trade_1()
REFUSED: list[tuple[str, Document | str | bytes, str]] = [
    ("E1 empty", b"", "empty"),
    ("E2 null", b"null", "unknown_form"),
    ("a number", b"1", "unknown_form"),
    ("a list", b"[1, 2]", "unknown_form"),
    ("E4 no keys", b"{}", "unknown_form"),
    ("other keys", b'{"a": 1}', "unknown_form"),
    ("blank", b"  \n", "malformed"),
    ("E5 cut off", dumps(A)[:-1].encode(), "malformed"),
    ("E5 cut off early", dumps(A)[:60].encode(), "malformed"),
    ("trailing bytes", dumps(A).encode() + b"x", "malformed"),
    ("two documents", dumps(A).encode() * 2, "malformed"),
    ("trailing comma", dumps(A).encode()[:-1] + b",}", "malformed"),
    ("comma behind", dumps(A).encode() + b",", "malformed"),
    ("E7 byte order mark", b"\xef\xbb\xbf" + dumps(A).encode(), "encoding"),
    ("E8 UTF-16", dumps(A).encode("utf-16"), "encoding"),
    ("E8 UTF-16 without mark", dumps(A).encode("utf-16-le"), "encoding"),
    ("E8 UTF-16 big", dumps(A).encode("utf-16-be"), "encoding"),
    ("E8 UTF-32", dumps(A).encode("utf-32"), "encoding"),
    ("not UTF-8", dumps(A).encode().replace(b"n-1", b"n-\xff"), "encoding"),
    ("overlong UTF-8", dumps(A).encode().replace(b"n-1", b"n-\xc0\xaf"), "encoding"),
    ("a surrogate in UTF-8", dumps(A).encode().replace(b"n-1", b"n-\xed\xa0\x80"), "encoding"),
    ("three bytes of the stream prefix", b"\xff\xff\xff", "encoding"),
    ("NUL first", b"\0" + dumps(A).encode(), "encoding"),
    ("E10 NUL as an escape in the symbol", with_value(A, I1, Token('"AA\\u0000PL.XNAS"')), "identifier"),
    ("E10 NUL as a byte in the symbol", dumps(A).encode().replace(b"AAPL", b"AA\0L"), "malformed"),
    ("a lone surrogate", with_value(A, "event_id", Token('"\\ud800"')), "malformed"),
    ("E11 duplicate price", dumps(A).replace('"price": ', '"price": 1, "price": ').encode(), "duplicate_key"),
    ("E11 duplicate behind a space", dumps(A).replace('"price": ', '"price" : 1, "price": ').encode(), "duplicate_key"),
    ("E11 duplicate by an escape", dumps(A).replace('"price": ', '"pric\\u0065": 1, "price": ').encode(), "duplicate_key"),
    ("E11 same value twice", dumps(A).replace('"price": ', '"price": "187.15", "price": ').encode(), "duplicate_key"),
    ("E11 duplicate object", dumps(A)[:-1] + ', "market_data": {}}', "duplicate_key"),
    ("E13 Infinity", with_value(A, P1, Token("Infinity")), "number"),
    ("E13 -Infinity", with_value(A, P1, Token("-Infinity")), "number"),
    ("NaN", with_value(A, P1, Token("NaN")), "number"),
    ("NaN as text", with_value(A, P1, "NaN"), "number"),
    ("E13 Infinity as text", with_value(A, P1, "Infinity"), "number"),
    ("E16 sNaN", with_value(A, P1, "sNaN"), "number"),
    ("E14 1e400", with_value(A, P1, Token("1e400")), "number"),
    ("E14 1e400 as text", with_value(A, P1, "1e400"), "number"),
    ("E14 an exponent bomb", with_value(A, P1, "1e500000"), "number"),
    ("E14 an exponent bomb as number", with_value(A, P1, Token("1e500000000")), "number"),
    ("E14 a tiny bomb", with_value(A, P1, Token("1e-500000")), "number"),
    ("E17 -0", with_value(A, P1, Token("-0")), "number"),
    ("E17 -0.0", with_value(A, P1, Token("-0.0")), "number"),
    ("E17 -0 as text", with_value(A, P1, "-0"), "number"),
    ("E17 -0e5", with_value(A, P1, Token("-0e5")), "number"),
    ("-0 as channel", with_value(A, f"{M1}.channel", Token("-0")), "number"),
    ("E20 size 2^63", with_value(A, "market_data.volume_data.size", 2**63), "number"),
    ("E20 size 2^64", with_value(A, "market_data.volume_data.size", 2**64), "number"),
    ("E20 size of 5,000 digits", with_value(A, "market_data.volume_data.size", Token("9" * 5000)), "number"),
    ("9.2e9", with_value(A, P1, Token("9200000000")), "number"),
    ("-9.2e9", with_value(A, P1, "-9200000000"), "number"),
    ("ten decimals", with_value(A, P1, Token("1.0000000001")), "number"),
    ("ten decimals, the last a zero", with_value(A, P1, Token("1.0000000010")), "number"),
    ("ten decimals that a float hides", with_value(A, P1, Token("0.10000000000000000001")), "number"),
    ("ten decimals by exponent", with_value(A, P1, Token("1e-10")), "number"),
    ("R53 other digits", with_value(A, P1, "１２３"), "number"),
    ("underscores", with_value(A, P1, "1_000"), "number"),
    ("a plus", with_value(A, P1, "+1"), "number"),
    ("a space", with_value(A, P1, " 1"), "number"),
    ("no text", with_value(A, P1, ""), "number"),
    ("E38 a bond's tick notation", with_value(A, P1, "101-16+"), "number"),
    ("leading zero as text", with_value(A, P1, "01"), "number"),
    ("leading zero", with_value(A, P1, Token("01")), "malformed"),
    ("no digit behind the point", with_value(A, P1, Token("1.")), "malformed"),
    ("null price", with_value(A, P1, None), "schema"),
    ("true as price", with_value(A, P1, True), "schema"),
    ("an object as price", with_value(A, P1, {"a": 1}), "schema"),
    ("sequence 0", with_value(A, f"{M1}.sequence", 0), "number"),
    ("sequence 2^63", with_value(A, f"{M1}.sequence", 2**63), "number"),
    ("sequence as float", with_value(A, f"{M1}.sequence", Token("42.0")), "schema"),
    ("sequence as text", with_value(A, f"{M1}.sequence", "42"), "schema"),
    ("sequence null", with_value(A, f"{M1}.sequence", None), "schema"),
    ("sequence true", with_value(A, f"{M1}.sequence", True), "schema"),
    ("channel 2^31", with_value(A, f"{M1}.channel", 2**31), "number"),
    ("session negative", with_value(A, f"{M1}.session", -1), "number"),
    ("trade_id negative", with_value(A, f"{M1}.trade_id", -1), "number"),
    ("E26 high below low", with_value(bar_3(), "normalized_data.high", "0.9"), "bar_invariant"),
    ("E26 close outside", with_value(bar_3(), "normalized_data.close", "1.4"), "bar_invariant"),
    ("E26 open outside", with_value(bar_3(), "normalized_data.open", "0.9"), "bar_invariant"),
    ("E28 negative", with_value(A, T1, -1), "time"),
    ("E28 beyond 2262", with_value(A, T1, 2**63), "time"),
    ("E28 year 9999", with_value(A, T1, "9999-12-31T23:59:59Z"), "time"),
    ("E28 year 2262, too late", with_value(A, T1, "2262-04-11T23:47:16.854775808Z"), "time"),
    ("E28 before 1970", with_value(A, T1, "1969-12-31T23:59:59Z"), "time"),
    ("E28 before 1970 by its offset", with_value(A, T1, "1970-01-01T00:00:00+00:01"), "time"),
    ("E29 no zone", with_value(A, T1, "2026-01-05T14:30:00"), "time"),
    ("E29 offset +25:00", with_value(A, T1, "2026-01-05T14:30:00+25:00"), "time"),
    ("E29 offset +14:01", with_value(A, T1, "2026-01-05T14:30:00+14:01"), "time"),
    ("E29 24:00:00", with_value(A, T1, "2026-01-05T24:00:00Z"), "time"),
    ("E29 a leap second", with_value(A, T1, "2016-12-31T23:59:60Z"), "time"),
    ("29 February", with_value(A, T1, "2026-02-29T00:00:00Z"), "time"),
    ("31 April", with_value(A, T1, "2026-04-31T00:00:00Z"), "time"),
    ("month 13", with_value(A, T1, "2026-13-01T00:00:00Z"), "time"),
    ("day 0", with_value(A, T1, "2026-01-00T00:00:00Z"), "time"),
    ("ten decimals of time", with_value(A, T1, "2026-01-05T14:30:00.0000000001Z"), "time"),
    ("no decimals behind the point", with_value(A, T1, "2026-01-05T14:30:00.Z"), "time"),
    ("lower case", with_value(A, T1, "2026-01-05t14:30:00z"), "time"),
    ("other digits in a time", with_value(A, T1, "２026-01-05T14:30:00Z"), "time"),
    ("time as float", with_value(A, T1, Token("1767623400.5")), "schema"),
    ("time null", with_value(A, T1, None), "schema"),
    ("E31 ISIN check digit", with_value(A, I1, "ISIN:US0378331006"), "identifier"),
    ("E31 FIGI check digit", with_value(A, I1, "FIGI:BBG000B9XRY5"), "identifier"),
    ("E31 CUSIP check digit", with_value(A, I1, "CUSIP:037833101"), "identifier"),
    ("E31 SEDOL check digit", with_value(A, I1, "SEDOL:0263495"), "identifier"),
    ("E31 lower-case MIC", with_value(A, I1, "AAPL.xnas"), "identifier"),
    ("E31 lower-case exchange", with_value(trade_2(), "data.exchange", "xnas"), "identifier"),
    ("no MIC", with_value(A, I1, "AAPL"), "identifier"),
    ("an unknown scheme", with_value(A, I1, "RIC:AAPL.XNAS"), "identifier"),
    ("a space in the symbol", with_value(A, I1, "AA PL.XNAS"), "identifier"),
    ("a symbol of 33", with_value(A, I1, "A" * 33 + ".XNAS"), "identifier"),
    ("a symbol beyond ASCII", with_value(A, I1, "ÄAPL.XNAS"), "identifier"),
    ("no symbol", with_value(trade_2(), "data.symbol", ""), "identifier"),
    ("a point in the exchange", with_value(trade_2(), "data.exchange", "B.XNAS"), "identifier"),
    ("a scheme as symbol", with_value(trade_2(), "data.symbol", "ISIN:US0378331005"), "identifier"),
    ("currency in lower case", with_value(quote_3(), "normalized_data.currency", "usd"), "identifier"),
    ("currency that is none", with_value(quote_3(), "normalized_data.currency", "ZZZ"), "identifier"),
    ("no currency", with_value(quote_3(), "normalized_data.currency", ""), "identifier"),
    ("E40 depth 200", with_value(A, P1, Token(DEEP)), "too_large"),
    ("E40 depth 30,000", b"[" * 30_000, "too_large"),
    ("E40 depth 9", with_value(A, P1, Token("[" * 6 + "]" * 6)), "too_large"),
    ("depth 8", with_value(A, P1, Token("[" * 5 + "]" * 5)), "schema"),
    ("brackets in a text are no depth", with_value(A, "event_id", Token('"' + "[" * 300 + '"')), "schema"),
    ("E41 a text of 1 MB", with_value(A, "event_id", "x" * 1_000_000), "too_large"),
    ("E41 10,000 unknown keys", A | {f"k{number}": 1 for number in range(4_000)}, "schema"),
    ("E41 one byte too many", dumps(A).encode().ljust(MAX_JSON_BYTES + 1), "too_large"),
    ("E43 unknown version", with_value(quote_3(), "processing_metadata.normalization_version", "2.0"), "unsupported_version"),
    ("version as number", with_value(quote_3(), "processing_metadata.normalization_version", 1.0), "schema"),
    ("two forms in one", trade_1() | {"distribution": {}}, "schema"),
    ("E47 a line break in event_id", with_value(A, "event_id", "a\nforged"), "schema"),
    ("E47 an escape sequence in event_id", with_value(A, "event_id", "\x1b[31m"), "schema"),
    ("E47 DEL in event_id", with_value(A, "event_id", "a\x7f"), "schema"),
    ("E47 markup as source", with_value(A, f"{M1}.source", "<script>"), "schema"),
    ("no event_id", with_value(A, "event_id", ""), "schema"),
    ("an event_id of 129", with_value(A, "event_id", "x" * 129), "schema"),
    ("an unknown condition", with_value(A, f"{M1}.conditions", ["odd"]), "schema"),
    ("a condition twice", with_value(A, f"{M1}.conditions", ["odd_lot", "odd_lot"]), "schema"),
    ("conditions as text", with_value(A, f"{M1}.conditions", "odd_lot"), "schema"),
    ("an unknown kind", with_value(A, f"{M1}.kind", "candle"), "schema"),
    ("an unknown action", with_value(A, f"{M1}.action", "replace"), "schema"),
    ("a correction without trade_id", with_value(trade_1(action="correct"), f"{M1}.trade_id", 0), "schema"),
    ("a cancelled quote", with_value(quote_1(), f"{M1}.action", "cancel"), "schema"),
    ("a trade with a bid", with_value(A, "market_data.price_data.bid", 1), "schema"),
    ("a trade with status", with_value(A, f"{M1}.status", "open"), "schema"),
    ("a status without status", without(status_1(), f"{M1}.status"), "schema"),
    ("a status with a price", with_value(status_1(), "market_data.price_data", {"price": 1}), "schema"),
    ("a status with a trade_id", with_value(status_1(), f"{M1}.trade_id", 5), "schema"),
    ("a quote with a price", with_value(quote_3(), "normalized_data.price", 1), "schema"),
    ("a trade with a timeframe", with_value(trade_3(), "normalized_data.timeframe", "1m"), "schema"),
    ("a bar without timeframe", without(bar_3(), "normalized_data.timeframe"), "schema"),
    ("65 derived fields", with_value(quote_3(), "derived_fields", {f"k{n}": n for n in range(65)}), "schema"),
    ("a derived object", with_value(quote_3(), "derived_fields", {"a": {}}), "schema"),
    ("spread as text", with_value(quote_3(), "normalized_data.spread", "0.1"), "schema"),
    ("spread 1e400", with_value(quote_3(), "normalized_data.spread", Token("1e400")), "number"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "code"), [pytest.param(data, code, id=name) for name, data, code in REFUSED])
def test_a_bad_event_is_refused_with_its_code(data: Document | str | bytes, code: str) -> None:
    assert code_of(data) == code


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data, _ in REFUSED])
def test_a_bad_event_in_a_large_batch_is_refused_alike_and_harms_nobody(data: Document | str | bytes) -> None:
    bad = message(data)
    batch = [message(trade_2())] * 40 + [bad] + [message(quote_3())] * 40
    found = outcomes(batch)
    assert found.pop((40, -1)) == read_event(bad, 40)
    assert len(found) == 80
    assert all(isinstance(outcome, dict) for outcome in found.values())


ACCEPTED: list[tuple[str, Document | str, dict[str, Any]]] = [
    ("E22 0.1 as number", with_value(A, P1, 0.1), {"price": 100_000_000}),
    ("E22 0.1 as text", with_value(A, P1, "0.1"), {"price": 100_000_000}),
    ("nine decimals", with_value(A, P1, Token("123456.123456789")), {"price": 123_456_123_456_789}),
    ("large and precise", with_value(A, P1, Token("9199999999.999999999")), {"price": 9_199_999_999_999_999_999}),
    ("large, precise, negative", with_value(A, P1, "-9199999999.999999999"), {"price": -9_199_999_999_999_999_999}),
    ("E38 yield 1e3", with_value(A, P1, Token("1e3")), {"price": 1000 * 10**9}),
    ("an exponent in a text", with_value(A, P1, "1.5E-8"), {"price": 15}),
    ("a digit as an escape", with_value(A, P1, Token('"\\u0031.5"')), {"price": 1_500_000_000}),
    ("E19 zero price is for reference data to judge", with_value(A, P1, 0), {"price": 0}),
    ("negative price likewise", with_value(A, P1, "-37.63"), {"price": -37_630_000_000}),
    ("E28 1970", with_value(A, T1, 0), {"ts_event": 0}),
    ("E28 the last nanosecond", with_value(A, T1, 2**63 - 1), {"ts_event": 2**63 - 1}),
    ("the last nanosecond as text", with_value(A, T1, "2262-04-11T23:47:16.854775807Z"), {"ts_event": 2**63 - 1}),
    ("E29 an hour that New York skips", with_value(A, T1, "2026-03-08T02:30:00-05:00"), {"ts_event": 1_772_955_000 * 10**9}),
    ("E29 an hour that is twice", with_value(A, T1, "2026-11-01T01:30:00-04:00"), {"ts_event": 1_793_511_000 * 10**9}),
    ("offset +14:00", with_value(A, T1, "2026-01-05T14:30:00+14:00"), {"ts_event": TIME - 14 * 3600 * 10**9}),
    ("29 February", with_value(A, T1, "2028-02-29T00:00:00Z"), {"ts_event": 1_835_395_200 * 10**9}),
    ("E31 pence", with_value(quote_3(), "normalized_data.currency", "GBX"), {"currency": "GBX"}),
    ("a scheme", with_value(A, I1, "ISIN:US0378331005"), {"instrument": "ISIN:US0378331005"}),
    ("points in the symbol", with_value(A, I1, "BRK.B.XNYS"), {"instrument": "BRK.B.XNYS"}),
    ("session 2^63-1", with_value(A, f"{M1}.session", 2**63 - 1), {"session": 2**63 - 1}),
    ("E47 a formula as event_id", with_value(A, "event_id", "=HYPERLINK("), {"sequence": 42}),
    ("an event_id beyond ASCII", with_value(A, "event_id", "é" * 128), {"sequence": 42}),
    ("no conditions", with_value(A, f"{M1}.conditions", []), {"conditions": 0}),
    ("two conditions", with_value(A, f"{M1}.conditions", ["opening", "cash"]), {"conditions": 1 << 11 | 1 << 5}),
    ("the longest event", dumps(A).ljust(MAX_JSON_BYTES), {"sequence": 42}),
    ("tabs and line breaks", json.dumps(A, indent="\t"), {"sequence": 42}),
    ("64 derived fields", with_value(quote_3(), "derived_fields", {f"k{n}": n for n in range(64)}), {"sequence": 7}),
    ("spread that looks like nothing", with_value(quote_3(), "normalized_data.spread", Token("-0.5")), {"sequence": 7}),
]  # fmt: skip


@pytest.mark.parametrize("copies", [1, 80], ids=["alone", "scanned"])
@pytest.mark.parametrize(
    ("data", "expected"), [pytest.param(data, expected, id=name) for name, data, expected in ACCEPTED]
)
def test_an_odd_but_good_event_is_read_exactly(data: Document | str, expected: dict[str, Any], copies: int) -> None:
    for row in outcomes([message(data)] * copies).values():
        assert isinstance(row, dict), row
        assert row | expected == row


def test_a_rejected_event_keeps_its_identity() -> None:
    bad = with_value(with_value(A, P1, "NaN"), "event_id", "other")
    rejection = one(bad)
    assert isinstance(rejection, Rejection)
    assert (rejection.source, rejection.channel, rejection.session, rejection.sequence) == (
        "simulated",
        1,
        20260105,
        42,
    )
    assert (rejection.instrument, rejection.ts_event, rejection.row) == ("AAPL.XNAS", TIME, -1)


@pytest.mark.parametrize("make", [trade_1, trade_2, quote_3, bar_3, status_1])
def test_an_unknown_key_does_not_hide_who_it_was(make: Any) -> None:
    good, bad = one(make()), one(make() | {"surplus": 1})
    assert isinstance(bad, Rejection)
    facts = good if isinstance(good, dict) else {name: getattr(good, name) for name in good.__slots__}
    for name in ("source", "channel", "session", "sequence", "instrument"):
        assert getattr(bad, name) == facts[name]


def test_a_rejected_event_without_number_is_known_by_its_event_id() -> None:
    bad = one(without(with_value(A, P1, "NaN"), f"{M1}.sequence"))
    assert (bad.channel, bad.session, bad.sequence) == (UNNUMBERED, UNNUMBERED, identity_hash(b"n-1"))


UNREADABLE_EVENTS: dict[str, Document | str | bytes] = {
    "no JSON": b"{",
    "the sequence given twice": dumps(A).replace('"sequence": ', '"sequence": 1, "sequence": '),
    "a broken sequence": with_value(A, f"{M1}.sequence", 2**64),
    "a broken channel": with_value(A, f"{M1}.channel", "1"),
    "a broken source": with_value(A, f"{M1}.source", "Bad Source"),
    "no source": without(A, f"{M1}.source"),
    "no metadata": without(A, M1),
    "neither sequence nor event_id": without(without(A, f"{M1}.sequence"), "event_id"),
    "a number as market_data": with_value(A, "market_data", 5),
}


@pytest.mark.parametrize("name", UNREADABLE_EVENTS)
def test_what_cannot_be_identified_is_known_by_its_bytes(name: str) -> None:
    event = message(UNREADABLE_EVENTS[name])
    first, again = outcomes([event, event]).values()
    assert isinstance(first, Rejection)
    assert isinstance(again, Rejection)
    assert (first.channel, first.session, first.sequence) == (UNREADABLE, UNREADABLE, identity_hash(event.data))
    assert again.sequence == first.sequence


@pytest.mark.parametrize(
    "broken", [with_value(A, T1, "yesterday"), with_value(A, T1, [1]), with_value(trade_2(), "data.symbol", 5)]
)
def test_what_is_unreadable_stays_empty(broken: Document) -> None:
    rejection = one(broken)
    assert rejection.ts_event == 0 or rejection.instrument == ""
    assert rejection.sequence in {42, 43}


def test_rows_come_in_order_of_arrival_and_name_their_message() -> None:
    kinds = [trade_1, quote_3, bar_3, trade_2, status_1, quote_1]
    batch = [message(kinds[number % 6]()) for number in range(120)] + [message(b"?")]
    decoded = decode(batch)
    assert decoded.ticks.message.tolist() == [number for number in range(120) if number % 6 not in {2, 4}]
    assert [bar.message for bar in decoded.bars] == list(range(2, 120, 6))
    assert [status.message for status in decoded.statuses] == list(range(4, 120, 6))
    assert [rejection.message for rejection in decoded.rejections] == [120]
    assert sorted(decoded.instruments) == ["AAPL.XNAS", "EURUSD.SIMX"]


def test_no_messages_make_an_empty_batch_with_every_column() -> None:
    decoded = decode([])
    assert len(decoded.ticks) == len(decoded.instrument) == 0
    assert {name: column.dtype for name, column in decoded.ticks.columns()} == {
        name: column.dtype for name, column in decode([message(A)]).ticks.columns()
    }


@pytest.mark.parametrize("copies", [1, 80])
def test_columns_have_their_declared_types_and_are_ours(copies: int) -> None:
    decoded = decode([message(make()) for make in FORMS.values()] * copies)
    for name, column in decoded.ticks.columns():
        assert column.dtype == TICK_COLUMNS[name]
        assert column.flags.writeable
    assert decoded.instrument.dtype == decoded.source.dtype == decoded.currency.dtype == "int32"
