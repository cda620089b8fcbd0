"""Names: syntax and check digits, each spelled one way."""

import pytest

from integration.market.identifiers import (
    currency_problem,
    event_id_problem,
    identity_hash,
    instrument_problem,
    listing_problem,
    source_problem,
)


@pytest.mark.parametrize(
    "text",
    ["AAPL.XNAS", "BRK.B.XNYS", "7203.XTKS", "EUR/USD.SIMX", "$A-B_C^D.XNYS", "A" * 32 + ".XNAS", "ISIN:US0378331005", "FIGI:BBG000B9XRY4",
     "CUSIP:037833100", "SEDOL:0263494", "CANARY.MDIX"],
)  # fmt: skip
def test_good_instruments(text: str) -> None:
    assert instrument_problem(text) == ""


@pytest.mark.parametrize(
    "text",
    ["", ".", "AAPL", ".XNAS", "AAPL.", "AAPL.XNA", "AAPL.XNASX", "AAPL.xnas", "AA PL.XNAS", "A\tB.XNAS", "A\0.XNAS", "Ä.XNAS", "A" * 33 + ".XNAS",
     "RIC:AAPL.XNAS", "isin:US0378331005", "ISIN:US0378331006", "ISIN:us0378331005", "ISIN: US0378331005", "ISIN:US-0378331005", "ISIN:",
     "FIGI:BBG000B9XRY5", "CUSIP:037833101", "SEDOL:0263495", "LEI:529900T8BM49AURSDO55", "AAPL.XNAS\n"],
)  # fmt: skip
def test_bad_instruments_say_why(text: str) -> None:
    assert "was" in instrument_problem(text)


def test_a_listing_is_judged_by_its_parts() -> None:
    assert listing_problem("A.B", "XNAS") == ""
    assert listing_problem("A", "B.XNAS") != ""
    assert listing_problem("ISIN:X", "XNAS") != ""


@pytest.mark.parametrize(("text", "good"), [("simulated", True), ("a", True), ("0-9", True), ("a" * 32, True), ("a" * 33, False), ("", False), ("-a", False),
                                            ("A", False), ("a b", False), ("a\n", False), ("a_b", False)])  # fmt: skip
def test_sources(text: str, good: bool) -> None:
    assert (source_problem(text) == "") is good


@pytest.mark.parametrize(
    ("text", "good"),
    [("USD", True), ("GBX", True), ("GBP", True), ("usd", False), ("ZZZ", False), ("", False), ("USDT", False)],
)
def test_currencies(text: str, good: bool) -> None:
    assert (currency_problem(text) == "") is good


@pytest.mark.parametrize(
    ("text", "good"),
    [("a", True), ("é" * 128, True), ("a" * 129, False), ("", False), ("a\n", False), ("\x7f", False), ("\x9f", False)],
)
def test_event_ids(text: str, good: bool) -> None:
    assert (event_id_problem(text) == "") is good


def test_the_hash_is_stable_signed_and_64_bit() -> None:
    # stored rows depend on these values
    assert (identity_hash(b""), identity_hash(b"n-1")) == (-1970711489451281740, -3723897340080746739)
