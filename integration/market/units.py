"""Exact numbers: a price or size is a signed 64-bit integer in units of 1e-9 ("nanos"). Holds the conversions, nothing else."""

import re
from decimal import Decimal
from typing import Final

NANOS: Final = 1_000_000_000
INT64_MAX: Final = 2**63 - 1
MAX_DECIMALS: Final = 9
MAX_NANOS: Final = 9_200_000_000 * NANOS  # the contract's "absolute value < 9.2e9", just inside int64
# 9.2e9 has ten digits before the point; anything with a larger exponent is out of range before any arithmetic is tried,
# since int(Decimal("1e500000")) would take seconds of CPU.
_MAX_ADJUSTED_EXPONENT: Final = 9
_MAX_TEXT: Final = 64
# The grammar of a JSON number, for texts too, so that `187.15` and `"187.15"` are read by one rule.
_TEXT: Final = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?", re.ASCII)


def nanos_from_text(text: str) -> int:
    """Convert decimal text in the grammar of a JSON number to nanos exactly.

    Raises ValueError when the text is not that (no spaces, `+`, underscores, other digits), is negative zero, has more than nine
    decimals written out plainly (trailing zeros count) or is not below 9.2e9 in absolute value.
    """
    match = _TEXT.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise ValueError(f"not a decimal number, was {text[:_MAX_TEXT]!r}")
    sign, whole, fraction, exponent = match.groups(default="")
    decimals = len(fraction) - int(exponent or 0)
    if decimals > MAX_DECIMALS:
        raise ValueError(f"more than {MAX_DECIMALS} decimals, was {text}")
    digits = int(whole + fraction)
    if digits == 0:
        if sign:
            raise ValueError(f"negative zero, was {text}")
        return 0
    if len(str(digits)) - decimals > _MAX_ADJUSTED_EXPONENT + 1:
        raise ValueError(f"absolute value is not below 9.2e9, was {text}")
    return _checked(-1 if sign else 1, digits * 10 ** (MAX_DECIMALS - decimals))


def nanos_from_decimal(number: Decimal) -> int:
    """Convert a Decimal to nanos exactly; ValueError when it is not finite, is negative zero, too precise or too large.

    Unlike text, a Decimal may carry zeros beyond the ninth decimal: arithmetic leaves them.
    """
    if not number.is_finite():
        raise ValueError(f"not a finite number, was {number}")
    if number == 0:
        if number.is_signed():
            raise ValueError("negative zero")
        return 0
    if number.adjusted() > _MAX_ADJUSTED_EXPONENT:
        raise ValueError("absolute value is not below 9.2e9")
    sign, digits, exponent = number.as_tuple()
    magnitude = int("".join(map(str, digits)))
    shift = int(exponent) + MAX_DECIMALS
    if shift < 0:
        # Never a power longer than the digits: the magnitude is not zero, so that cutting all its digits leaves a rest already.
        magnitude, rest = divmod(magnitude, 10 ** min(-shift, len(digits)))
        if rest:
            raise ValueError(f"more than {MAX_DECIMALS} decimals, was {number}")
        shift = 0
    return _checked(-1 if sign else 1, magnitude * 10**shift)


def _checked(sign: int, magnitude: int) -> int:
    if magnitude >= MAX_NANOS:
        raise ValueError("absolute value is not below 9.2e9")
    return sign * magnitude


def decimal_from_nanos(nanos: int) -> Decimal:
    """Convert nanos to an exact Decimal without trailing zeros."""
    return Decimal(text_from_nanos(nanos))


def text_from_nanos(nanos: int) -> str:
    """Write nanos as the shortest plain decimal string: 187150000000 is ``187.15``."""
    return text_from_scaled(nanos, MAX_DECIMALS)


def text_from_scaled(value: int, places: int) -> str:
    """Write an integer in units of 10^-places as the shortest plain decimal string, exact for any size."""
    sign, magnitude = ("-", -value) if value < 0 else ("", value)
    whole, fraction = divmod(magnitude, 10**places)
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:0{places}d}".rstrip("0")
