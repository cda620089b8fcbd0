"""Exact numbers: text and Decimal to nanos and back, and everything that must not pass."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market.units import (
    MAX_NANOS,
    NANOS,
    decimal_from_nanos,
    nanos_from_decimal,
    nanos_from_text,
    text_from_nanos,
)

in_range = st.integers(-MAX_NANOS + 1, MAX_NANOS - 1)


@given(in_range)
def test_text_and_decimal_come_back(nanos: int) -> None:
    assert nanos_from_text(text_from_nanos(nanos)) == nanos
    assert nanos_from_decimal(decimal_from_nanos(nanos)) == nanos
    assert decimal_from_nanos(nanos) * NANOS == nanos


@given(in_range, st.integers(-12, 12))
def test_an_exponent_changes_nothing(nanos: int, exponent: int) -> None:
    text = f"{decimal_from_nanos(nanos).scaleb(-exponent):f}e{exponent}"
    plain = Decimal(text)
    if nanos and max(0, -plain.as_tuple().exponent) <= 9:  # type: ignore[operator]
        assert nanos_from_text(text) == nanos


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_a_decimal_is_converted_exactly_or_refused(number: Decimal) -> None:
    try:
        nanos = nanos_from_decimal(number)
    except ValueError:
        return
    assert Decimal(nanos) == number.scaleb(9)


# Digits with zeros at either end, and exponents on both sides of "as many decimals as digits".
@given(st.integers(0, 40), st.integers(1, 10**12), st.integers(0, 14), st.sampled_from((1, -1)), st.integers(-60, 12))
def test_a_decimal_agrees_with_a_fraction(padding: int, core: int, zeros: int, sign: int, exponent: int) -> None:
    digits = core * 10**zeros
    number = Decimal((int(sign < 0), tuple(map(int, "0" * padding + str(digits))), exponent))
    exact = sign * digits * Fraction(10) ** (exponent + 9)
    if exact.denominator == 1 and abs(exact) < MAX_NANOS:
        assert nanos_from_decimal(number) == exact
        return
    with pytest.raises(ValueError, match=r"^(more than 9 decimals, was|absolute value is not below)"):
        nanos_from_decimal(number)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("0.0", 0),
        ("0e99", 0),
        ("1", NANOS),
        ("-1.5", -1_500_000_000),
        ("187.15", 187_150_000_000),
        ("0.000000001", 1),
        ("1e-9", 1),
        ("1.5E+3", 1500 * NANOS),
        ("9199999999.999999999", MAX_NANOS - 1),
        ("92e8", None),
        ("9.2e9", None),
        ("1e10", None),
        ("1e999", None),
        ("1e-10", None),
        ("1.50e-8", None),
        ("0.0000000000", None),
        ("-0", None),
        ("-0.00", None),
        ("01", None),
        (".5", None),
        ("5.", None),
        ("+1", None),
        ("1e", None),
        ("1e9999", None),
        ("1_0", None),
        (" 1", None),
        ("1\n", None),
        ("", None),
        ("NaN", None),
        ("sNaN", None),
        ("-Infinity", None),
        ("٣", None),
        ("1" * 65, None),
        ("1,5", None),
        ("0x1", None),
    ],
)
def test_text(text: str, nanos: int | None) -> None:
    if nanos is not None:
        assert nanos_from_text(text) == nanos
        return
    with pytest.raises(ValueError, match=r"was|absolute|negative zero|month|day|year|outside"):
        nanos_from_text(text)


@pytest.mark.parametrize(
    "text",
    ["NaN", "sNaN", "Infinity", "-0", "1e500000", "1e-500000", "9.2e9", "1.0000000001", "1e-10", "12e-10", "100e-12"],
)
def test_decimals_that_must_not_pass(text: str) -> None:
    with pytest.raises(ValueError, match=r"was|absolute|negative zero|month|day|year|outside"):
        nanos_from_decimal(Decimal(text))


@pytest.mark.parametrize(
    ("text", "nanos"), [("1.000000000000", NANOS), ("10e-10", 1), ("1E+3", 1000 * NANOS), ("0E-30", 0)]
)
def test_zeros_beyond_the_ninth_decimal_are_arithmetic(text: str, nanos: int) -> None:
    assert nanos_from_decimal(Decimal(text)) == nanos


def test_text_is_the_shortest() -> None:
    assert [text_from_nanos(nanos) for nanos in (0, 1, -1, 187_150_000_000, 10 * NANOS, 10**30)] == [
        "0", "0.000000001", "-0.000000001", "187.15", "10", "1" + "0" * 21,
    ]  # fmt: skip


def test_text_has_at_most_64_characters_whatever_it_says() -> None:
    assert nanos_from_text("0." + "0" * 58 + "1e59") == NANOS
    with pytest.raises(ValueError, match=r"^not a decimal number"):
        nanos_from_text("0." + "0" * 59 + "1e60")


def test_what_was_wrong_is_said() -> None:
    for text, problem in (
        ("-0", "negative zero"),
        ("1e10", "absolute value is not below 9.2e9"),
        ("9.2e9", "absolute value is not below 9.2e9"),
    ):
        with pytest.raises(ValueError, match=f"^{problem}$"):
            nanos_from_decimal(Decimal(text))
