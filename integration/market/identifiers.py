"""What instruments, sources and currencies may be called, and the 64-bit identity of events that nobody numbered.

Syntax and check digits only: whether a name is registered is for reference data to say.
"""

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import stdnum.cusip
import stdnum.figi
import stdnum.gb.sedol
import stdnum.isin
from iso4217 import Currency

from integration.market.reference import PENCE

MAX_SYMBOL: Final = 32
MAX_EVENT_ID: Final = 128

# printable ASCII without space and without the colon, which separates a scheme from its value
_SYMBOL: Final = re.compile(r"[!-9;-~]{1,32}")
_MIC: Final = re.compile(r"[A-Z0-9]{4}")
_SOURCE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CURRENCIES: Final = frozenset(currency.code for currency in Currency) | {PENCE}
_CHECK_DIGITS: Final[dict[str, Callable[[str], bool]]] = {
    "ISIN": stdnum.isin.is_valid,
    "FIGI": stdnum.figi.is_valid,
    "CUSIP": stdnum.cusip.is_valid,
    "SEDOL": stdnum.gb.sedol.is_valid,
}
SCHEMES: Final = frozenset(_CHECK_DIGITS)
_CANONICAL_VALUE: Final = re.compile(r"[0-9A-Z*@#]{7,12}")


@lru_cache(maxsize=65_536)
def instrument_problem(text: str) -> str:
    """Say what is wrong with `SYMBOL.MIC` or `SCHEME:VALUE`, in words for people; the empty text when nothing is."""
    scheme, colon, value = text.partition(":")
    if colon and scheme in SCHEMES:
        # the library forgives spaces, dashes and lower case; one spelling of a name is enough
        if _CANONICAL_VALUE.fullmatch(value) and _CHECK_DIGITS[scheme](value):
            return ""
        return f"not a valid {scheme}, was {value[:40]!r}"
    symbol, _, mic = text.rpartition(".")
    return listing_problem(symbol, mic)


def listing_problem(symbol: str, mic: str) -> str:
    """Say what is wrong with a symbol (1 to 32 printable ASCII characters, no space, no colon) or a MIC (ISO 10383)."""
    if not _MIC.fullmatch(mic):
        return f"a MIC is four capitals or digits, was {mic[:40]!r}"
    if not _SYMBOL.fullmatch(symbol):
        return f"a symbol is 1 to {MAX_SYMBOL} printable ASCII characters without space and colon, was {symbol[:40]!r}"
    return ""


def currency_problem(text: str) -> str:
    """Say what is wrong with a currency code; the empty text when it is one of ISO 4217 or `GBX`."""
    return "" if text in _CURRENCIES else f"not an ISO 4217 currency, was {text[:40]!r}"


def source_problem(text: str) -> str:
    """Say what is wrong with the code of a source; the empty text when nothing is."""
    return "" if _SOURCE.fullmatch(text) else f"not the code of a source, was {text[:40]!r}"


def event_id_problem(text: str) -> str:
    """Say what is wrong with an event_id (1 to 128 characters, no control characters)."""
    if 1 <= len(text) <= MAX_EVENT_ID and not _CONTROL.search(text):
        return ""
    return f"event_id is 1 to {MAX_EVENT_ID} characters without controls, was {text[:40]!r}"


def identity_hash(data: bytes) -> int:
    """Hash bytes to the signed 64-bit number that stands in for a sequence (BLAKE2b, 8 bytes, big-endian)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
