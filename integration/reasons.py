"""Reason codes in words for people, with the next step. The codes themselves are in `integration.market.errors`; the table that
producers read is in docs/events.md, and a test holds the three together."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """What a code means, and what data operations can do about it."""

    words: str
    next_step: str


_TELL_SENDER: Final = (
    "Tell the sender: the bytes break docs/events.md. Releasing changes nothing unless the contract did."
)
_FIX_REFERENCE: Final = "If the sender is right, correct the reference data, then release."
_FIX_LIMIT: Final = "If the event is right, change the source's limit, then release; else confirm it as bad."

REASONS: Final[dict[str, Reason]] = {
    "empty": Reason("The message has no bytes.", _TELL_SENDER),
    "too_large": Reason("Over the limit of size, nesting or rows.", _TELL_SENDER),
    "encoding": Reason("Not UTF-8: a byte order mark, UTF-16 or broken bytes.", _TELL_SENDER),
    "malformed": Reason("Not JSON, or cut off.", _TELL_SENDER),
    "duplicate_key": Reason("A JSON key occurs twice in one object, so its value is ambiguous.", _TELL_SENDER),
    "unknown_form": Reason("JSON, but none of the three forms of the contract.", _TELL_SENDER),
    "schema": Reason("A key is missing, unknown, or has the wrong type.", _TELL_SENDER),
    "unsupported_version": Reason("A version of the contract that this service does not know.", "Upgrade the service, then release."),
    "arrow_schema": Reason("The Arrow stream's columns are not those of the contract.", _TELL_SENDER),
    "arrow_invalid": Reason("The Arrow stream's contents are inconsistent.", _TELL_SENDER),
    "arrow_rows": Reason("The Arrow stream has no row, or more than 65,536.", _TELL_SENDER),
    "poison": Reason(
        "Decoding it ended the process; it was found by bisection in a child process.",
        "Report a defect with the bytes. It cannot be released: it would end the consumer again.",
    ),
    "number": Reason(
        "A number is not finite, out of range, has over nine decimals or digits that are not ASCII, or is negative zero.", _TELL_SENDER
    ),
    "time": Reason("A time cannot be read, has no zone, or lies outside 1970 to 2262.", _TELL_SENDER),
    "identifier": Reason("An identifier that cannot be one: check digit, MIC, currency or symbol.", _TELL_SENDER),
    "source_unknown": Reason("The source it claims is not registered, or not active.", "Register the source, bind it to the topic, then release."),
    "source_not_bound": Reason("The source it claims may not use this topic.", "Add the topic to the source's bindings if it is meant to, then release."),
    "sequence_jump": Reason("Its sequence is further ahead than the source's limit.", _FIX_LIMIT),
    "conflict": Reason("Another event with the same identity and other content was stored first.", "Ask the sender which is right. The first stays, so this one cannot be released: confirm it as bad."),
    "unknown_instrument": Reason("Parked: no alias covers its instrument at its time.", "Add an alias. The events then flow by themselves, in order."),
    "currency": Reason("Its currency is not the listing's.", _FIX_REFERENCE),
    "price_sign": Reason("A price of zero or below, where the instrument has none.", _FIX_REFERENCE),
    "size_sign": Reason("A size below zero, or zero on a trade.", "Confirm as bad, or ask the sender for a correction."),
    "crossed": Reason("The bid is above the ask by more than the source's limit.", _FIX_LIMIT),
    "future": Reason("Its time is further ahead of the broker's clock than the source's limit.", _FIX_LIMIT),
    "ancient": Reason("Its time is further behind the broker's clock than the source's limit.", _FIX_LIMIT),
    "unroutable": Reason("No slice of the tick tables can be made for its time.", "Look at the make_slices jobs; release when they are done."),
    "bar_invariant": Reason("A delivered bar whose high is below its low, or whose open or close lies outside.", _TELL_SENDER),
    "internal": Reason("A stage of ours failed on it.", "Report a defect with the bytes and the detail. Release after the fix."),
}  # fmt: skip

# A conflict's identity belongs to another stored event; poison would end the consumer that tries it again.
NOT_RELEASABLE: Final = frozenset({"conflict", "poison"})

_UNKNOWN: Final = Reason("A code that this version has no words for.", "See docs/events.md.")


def reason(code: str) -> Reason:
    """Give the words for a reason code; a code of a newer version has words that say so."""
    return REASONS.get(code, _UNKNOWN)
