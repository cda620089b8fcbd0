"""What can go wrong, grouped by what the caller must do. A bad *tick* is a value (`Rejection`), never an exception.

MarketDataError            code: the metric label, the quarantine column, the API body's "code"
├── SkippableError         this message cannot be read: quarantine it, acknowledge, go on
├── RetriableError         a server is away or busy: back off, do not acknowledge
└── FatalError             this process may not go on: exit; the supervisor restarts; start and recovery are one path
    └── FencedError        another process owns the lease now
"""

from typing import Final


class MarketDataError(Exception):
    """Base of the tree; `code` is stable and documented in `docs/events.md` or `docs/operations.md`."""

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class SkippableError(MarketDataError):
    """One message cannot be read; its neighbours can."""

    code = "malformed"


class RetriableError(MarketDataError):
    """A dependency is away; the same call may succeed later."""

    code = "dependency_unavailable"


class FatalError(MarketDataError):
    """The process must end; a restart reloads all state from PostgreSQL."""

    code = "fatal"


class FencedError(FatalError):
    """The lease has moved to another process: nothing of ours may be written any more."""

    code = "fenced"


# Reason codes of docs/events.md, in one place so that a typing error is an import error.
EMPTY: Final = "empty"
TOO_LARGE: Final = "too_large"
ENCODING: Final = "encoding"
MALFORMED: Final = "malformed"
DUPLICATE_KEY: Final = "duplicate_key"
UNKNOWN_FORM: Final = "unknown_form"
SCHEMA: Final = "schema"
UNSUPPORTED_VERSION: Final = "unsupported_version"
ARROW_SCHEMA: Final = "arrow_schema"
ARROW_INVALID: Final = "arrow_invalid"
ARROW_ROWS: Final = "arrow_rows"
POISON: Final = "poison"
NUMBER: Final = "number"
TIME: Final = "time"
IDENTIFIER: Final = "identifier"
SOURCE_UNKNOWN: Final = "source_unknown"
SOURCE_NOT_BOUND: Final = "source_not_bound"
SEQUENCE_JUMP: Final = "sequence_jump"
CONFLICT: Final = "conflict"
UNKNOWN_INSTRUMENT: Final = "unknown_instrument"
CURRENCY: Final = "currency"
PRICE_SIGN: Final = "price_sign"
SIZE_SIGN: Final = "size_sign"
CROSSED: Final = "crossed"
FUTURE: Final = "future"
ANCIENT: Final = "ancient"
UNROUTABLE: Final = "unroutable"
BAR_INVARIANT: Final = "bar_invariant"
INTERNAL: Final = "internal"

REASON_CODES: Final = frozenset(
    {
        EMPTY, TOO_LARGE, ENCODING, MALFORMED, DUPLICATE_KEY, UNKNOWN_FORM, SCHEMA, UNSUPPORTED_VERSION, ARROW_SCHEMA,
        ARROW_INVALID, ARROW_ROWS, POISON, NUMBER, TIME, IDENTIFIER, SOURCE_UNKNOWN, SOURCE_NOT_BOUND, SEQUENCE_JUMP,
        CONFLICT, UNKNOWN_INSTRUMENT, CURRENCY, PRICE_SIGN, SIZE_SIGN, CROSSED, FUTURE, ANCIENT, UNROUTABLE, BAR_INVARIANT, INTERNAL,
    }
)  # fmt: skip
