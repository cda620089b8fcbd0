"""Exact numbers: a price or size is a signed 64-bit integer in units of 1e-9 ("nanos"). Holds the conversions, nothing else."""

from decimal import Decimal, InvalidOperation
from typing import Final

NANOS: Final = 1_000_000_000
INT64_MAX: Final = 2**63 - 1
MAX_DECIMALS: Final = 9
# 9.2e9 has ten digits before the point; anything with a larger exponent is out of range before any arithmetic is tried,
# since int(Decimal("1e500000")) would take seconds of CPU.
_MAX_ADJUSTED_EXPONENT: Final = 9


def nanos_from_text(text: str) -> int:
    """Convert a plain decimal string to nanos exactly.

    Raises ValueError when the text is not ASCII decimal notation, is negative zero, has more than nine decimals
    (trailing zeros count) or does not fit.
    """
    if not text.isascii() or "_" in text or text != text.strip() or len(text) > 64:
        raise ValueError(f"not a decimal number, was {text[:64]!r}")
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"not a decimal number, was {text[:64]!r}") from None
    return nanos_from_decimal(number)


def nanos_from_decimal(number: Decimal) -> int:
    """Convert a Decimal to nanos exactly; ValueError when it is not finite, is negative zero, too precise or too large."""
    if not number.is_finite():
        raise ValueError(f"not a finite number, was {number}")
    if number == 0:
        if number.is_signed():
            raise ValueError("negative zero")
        return 0
    if number.adjusted() > _MAX_ADJUSTED_EXPONENT:
        raise ValueError("absolute value is not below 9.2e9")
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MAX_DECIMALS:
        number = number.normalize()
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and exponent < -MAX_DECIMALS:
            raise ValueError(f"more than {MAX_DECIMALS} decimals, was {number}")
    nanos = int(number.scaleb(MAX_DECIMALS))
    if abs(nanos) > INT64_MAX:
        raise ValueError("absolute value is not below 9.2e9")
    return nanos


def decimal_from_nanos(nanos: int) -> Decimal:
    """Convert nanos to an exact Decimal without trailing zeros."""
    return Decimal(text_from_nanos(nanos))


def text_from_nanos(nanos: int) -> str:
    """Write nanos as the shortest plain decimal string: 187150000000 is ``187.15``."""
    sign, magnitude = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, fraction = divmod(magnitude, NANOS)
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:09d}".rstrip("0")
