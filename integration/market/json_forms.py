"""The three JSON forms of `docs/events.md`: their structure, and one upcaster each into a canonical event.

Strict and exact: numbers are read from their own text, never through a binary float. One event at a time; this is the
reference that the fast scan of plain messages (`json_scan.py`) must agree with, and what judges every message it declines.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from integration.market.errors import (
    BAR_INVARIANT,
    DUPLICATE_KEY,
    EMPTY,
    ENCODING,
    IDENTIFIER,
    MALFORMED,
    NUMBER,
    SCHEMA,
    TIME,
    TOO_LARGE,
    UNKNOWN_FORM,
    UNSUPPORTED_VERSION,
    SkippableError,
)
from integration.market.identifiers import (
    currency_problem,
    event_id_problem,
    identity_hash,
    instrument_problem,
    listing_problem,
    source_problem,
)
from integration.market.ticks import (
    CANCEL,
    CONDITION_BITS,
    CORRECT,
    NEW,
    QUOTE,
    TRADE,
    UNNUMBERED,
    UNREADABLE,
    DeliveredBar,
    Message,
    Rejection,
    StatusChange,
)
from integration.market.times import checked_ns, ns_from_text
from integration.market.units import nanos_from_text

MAX_JSON_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 8
NORMALIZATION_VERSION: Final = "1.0"
ACTIONS: Final = {"new": NEW, "correct": CORRECT, "cancel": CANCEL}
_MAX_INT64: Final = 2**63 - 1
_ABSENT: Final = Raw(b"")

Channel = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Session = Annotated[int, Meta(ge=0, le=_MAX_INT64)]
Sequence = Annotated[int, Meta(ge=1, le=_MAX_INT64)]
TradeId = Annotated[int, Meta(ge=0, le=_MAX_INT64)]
Time = int | str
Derived = float | int | None | UnsetType


class _Strict(Struct, forbid_unknown_fields=True, gc=False):
    """An object with exactly these keys."""


class _PriceData(_Strict):
    price: Raw = _ABSENT
    bid: Raw = _ABSENT
    ask: Raw = _ABSENT


class _VolumeData(_Strict):
    size: Raw = _ABSENT
    bid_size: Raw = _ABSENT
    ask_size: Raw = _ABSENT


class _Metadata(_Strict):
    source: str
    kind: Literal["trade", "quote", "status"]
    channel: Channel = 0
    session: Session = 0
    sequence: Sequence | UnsetType = UNSET
    conditions: list[str] | UnsetType = UNSET
    trade_id: TradeId = 0
    action: Literal["new", "correct", "cancel"] = "new"
    status: Literal["open", "halted", "auction", "closed"] | UnsetType = UNSET


class _MarketData(_Strict):
    instrument_id: str
    timestamp: Time
    price_data: _PriceData
    volume_data: _VolumeData
    metadata: _Metadata


class _Distribution(_Strict):
    source: str
    channel: Channel = 0
    session: Session = 0
    sequence: Sequence | UnsetType = UNSET


class _Data(_Strict):
    symbol: str
    exchange: str
    timestamp: Time
    price: Raw
    volume: Raw


class _Routing(_Strict):
    key: str = ""


class _NormalizedData(_Strict):
    symbol: str
    exchange: str
    currency: str
    timestamp: Time
    data_type: Literal["trade", "quote", "ohlc"]
    price: Raw = _ABSENT
    volume: Raw = _ABSENT
    bid: Raw = _ABSENT
    ask: Raw = _ABSENT
    bid_size: Raw = _ABSENT
    ask_size: Raw = _ABSENT
    open: Raw = _ABSENT
    high: Raw = _ABSENT
    low: Raw = _ABSENT
    close: Raw = _ABSENT
    timeframe: Literal["1m", "5m", "15m", "1h", "4h", "1d"] | UnsetType = UNSET
    spread: Derived = UNSET
    mid_price: Derived = UNSET
    vwap: Derived = UNSET
    market_cap: Derived = UNSET


class _ProcessingMetadata(_Strict):
    original_provider: str
    processing_time_ms: float
    quality_score: float
    normalization_version: str
    channel: Channel = 0
    session: Session = 0
    sequence: Sequence | UnsetType = UNSET


class _MarketDataNormalized(_Strict):
    event_id: str
    timestamp: Time
    market_data: _MarketData


class _MarketDataDistributed(_Strict):
    event_id: str
    timestamp: Time
    distribution: _Distribution
    data: _Data
    routing: _Routing


class _NormalizedDataEvent(_Strict):
    event_id: str
    timestamp: Time
    normalized_data: _NormalizedData
    processing_metadata: _ProcessingMetadata
    derived_fields: Annotated[dict[str, float | int | str | None], Meta(max_length=64)]


class TickEvent(Struct, gc=False):
    """One trade or quote in the canonical form; the numeric fields have the names and units of `TICK_COLUMNS`."""

    kind: int
    instrument: str
    source: str
    currency: str
    channel: int
    session: int
    sequence: int
    ts_event: int
    price: int
    size: int
    ask_price: int = 0
    ask_size: int = 0
    action: int = NEW
    trade_id: int = 0
    conditions: int = 0


Event = TickEvent | DeliveredBar | StatusChange
_Identity = tuple[int, int, int]


def read_event(message: Message, index: int) -> Event | Rejection:
    """Read one JSON message, the `index`-th of its batch; whatever is wrong with it becomes the Rejection that says so."""
    data = message.data
    try:
        text = _checked_text(data)
    except SkippableError as error:
        return Rejection(index, error.code, str(error), sequence=identity_hash(data))
    try:
        form = _form_of(_parse(text))
        return form.upcast(form.decoder.decode(data), message, index)
    except SkippableError as error:
        return _rejection(index, data, text, error.code, str(error))
    except msgspec.ValidationError as error:
        return _rejection(index, data, text, NUMBER if _OUT_OF_RANGE.match(str(error)) else SCHEMA, str(error))
    except (msgspec.DecodeError, ValueError) as error:
        return _rejection(index, data, text, MALFORMED, str(error))


# What msgspec says of a number that has the right type and lies outside its bounds.
_OUT_OF_RANGE: Final = re.compile(r"Number out of range|Integer value out of range|Expected `int` [<>]=")


# ---- bytes to text: size, encoding, depth -------------------------------------------------------------------------


def _checked_text(data: bytes) -> str:
    if not data:
        raise SkippableError("no bytes", code=EMPTY)
    if len(data) > MAX_JSON_BYTES:
        raise SkippableError(f"a JSON event has at most {MAX_JSON_BYTES} bytes, was {len(data)}", code=TOO_LARGE)
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise SkippableError("starts with a byte order mark", code=ENCODING)
    if b"\0" in data[:4]:
        raise SkippableError("looks like UTF-16 or UTF-32, or starts with NUL", code=ENCODING)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SkippableError(f"not UTF-8 at byte {error.start}", code=ENCODING) from None
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise SkippableError(f"nested more than {MAX_DEPTH} deep", code=TOO_LARGE)
    return text


_NOT_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[^"\[\]{}]++', re.DOTALL)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _NOT_BRACKETS.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


# ---- text to a document: what a JSON decoder would let pass in silence -----------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SkippableError(f"the key {twice[:40]!r} occurs twice in one object", code=DUPLICATE_KEY)
    return document


_AMBIGUOUS: Final = object()


def _doubting(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key given twice neither value can be believed; that it is there can."""
    document: dict[str, Any] = {}
    for key, value in pairs:
        document[key] = _AMBIGUOUS if key in document else value
    return document


def _strict_integer(text: str) -> int:
    if text == "-0":
        raise SkippableError("negative zero", code=NUMBER)
    return _bounded_integer(text)


def _bounded_integer(text: str) -> int:
    # one past int64 stands for everything beyond it; int() of a long text takes quadratic time
    return int(text) if len(text) <= 20 else 2**63


def _not_finite(text: str) -> Any:
    raise SkippableError(f"not a finite number, was {text}", code=NUMBER)


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_strict_integer, parse_float=str, parse_constant=_not_finite
)
_LENIENT: Final = json.JSONDecoder(
    object_pairs_hook=_doubting, parse_int=_bounded_integer, parse_float=str, parse_constant=lambda _: None
)


def _parse(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise SkippableError(f"not JSON: {error.msg} at character {error.pos}", code=MALFORMED) from None


# ---- upcasters ------------------------------------------------------------------------------------------------------


def _nanos(raw: Raw, name: str) -> int:
    token = bytes(raw)
    if not token:
        raise SkippableError(f"{name} is missing", code=SCHEMA)
    if token[:1] not in b'"-0123456789':
        raise SkippableError(f"{name} is a number or a decimal string, was {token[:32]!r}", code=SCHEMA)
    try:
        text = msgspec.json.decode(token, type=str) if token[:1] == b'"' else token.decode()
        return nanos_from_text(text)
    except ValueError as error:
        raise SkippableError(f"{name}: {error}", code=NUMBER) from None


def _ns(value: Time) -> int:
    try:
        return checked_ns(value) if isinstance(value, int) else ns_from_text(value)
    except ValueError as error:
        raise SkippableError(f"timestamp: {error}", code=TIME) from None


def _refuse(problem: str, code: str) -> None:
    if problem:
        raise SkippableError(problem, code=code)


def _identity(event_id: str, numbers: "_Metadata | _Distribution | _ProcessingMetadata") -> _Identity:
    _refuse(event_id_problem(event_id), SCHEMA)
    if numbers.sequence is UNSET:
        return UNNUMBERED, UNNUMBERED, identity_hash(event_id.encode())
    return numbers.channel, numbers.session, numbers.sequence


def _conditions(words: list[str] | UnsetType) -> int:
    bits = 0
    for word in words or ():
        bit = CONDITION_BITS.get(word, 0)
        if bit == 0 or bits & bit:
            raise SkippableError(f"conditions: unknown or given twice, was {word[:40]!r}", code=SCHEMA)
        bits |= bit
    return bits


def _only(form: Struct, allowed: frozenset[str], what: str) -> None:
    for name in form.__struct_fields__:
        value = getattr(form, name)
        if isinstance(value, Raw) and name not in allowed and bytes(value):
            raise SkippableError(f"{what} has no {name}", code=SCHEMA)


_TRADE_PRICES: Final = frozenset({"price", "size", "volume"})
_QUOTE_PRICES: Final = frozenset({"bid", "ask", "bid_size", "ask_size"})
_BAR_PRICES: Final = frozenset({"open", "high", "low", "close", "volume"})


def _from_normalized(event: _MarketDataNormalized, message: Message, index: int) -> Event:
    body, meta = event.market_data, event.market_data.metadata
    prices, volumes = body.price_data, body.volume_data
    channel, session, sequence = _identity(event.event_id, meta)
    _refuse(source_problem(meta.source), SCHEMA)
    allowed = {"trade": _TRADE_PRICES, "quote": _QUOTE_PRICES, "status": frozenset[str]()}[meta.kind]
    _only(prices, allowed, f"a {meta.kind}")
    _only(volumes, allowed, f"a {meta.kind}")
    if meta.kind == "status":
        return _status(body, message, index, (channel, session, sequence))
    if meta.status is not UNSET:
        raise SkippableError(f"a {meta.kind} has no status", code=SCHEMA)
    if meta.action != "new" and (meta.kind != "trade" or meta.trade_id == 0):
        raise SkippableError("correct and cancel name a trade by its trade_id", code=SCHEMA)
    trade = meta.kind == "trade"
    tick = TickEvent(
        kind=TRADE if trade else QUOTE,
        instrument=body.instrument_id,
        source=meta.source,
        currency="",
        channel=channel,
        session=session,
        sequence=sequence,
        ts_event=_ns(body.timestamp),
        price=_nanos(prices.price, "price") if trade else _nanos(prices.bid, "bid"),
        size=_nanos(volumes.size, "size") if trade else _nanos(volumes.bid_size, "bid_size"),
        ask_price=0 if trade else _nanos(prices.ask, "ask"),
        ask_size=0 if trade else _nanos(volumes.ask_size, "ask_size"),
        action=ACTIONS[meta.action],
        trade_id=meta.trade_id,
        conditions=_conditions(meta.conditions),
    )
    _refuse(instrument_problem(tick.instrument), IDENTIFIER)
    return tick


def _status(body: _MarketData, message: Message, index: int, identity: _Identity) -> StatusChange:
    meta = body.metadata
    if meta.status is UNSET:
        raise SkippableError("a status event says its status", code=SCHEMA)
    if meta.conditions is not UNSET or meta.trade_id or meta.action != "new":
        raise SkippableError("a status has no conditions, trade_id and action", code=SCHEMA)
    _refuse(instrument_problem(body.instrument_id), IDENTIFIER)
    ts_event = _ns(body.timestamp)
    return StatusChange(index, body.instrument_id, meta.source, meta.status, ts_event, *identity, message.ts_publish)


def _from_distributed(event: _MarketDataDistributed, _message: Message, _index: int) -> Event:
    head, data = event.distribution, event.data
    channel, session, sequence = _identity(event.event_id, head)
    _refuse(source_problem(head.source), SCHEMA)
    tick = TickEvent(
        kind=TRADE,
        instrument=f"{data.symbol}.{data.exchange}",
        source=head.source,
        currency="",
        channel=channel,
        session=session,
        sequence=sequence,
        ts_event=_ns(data.timestamp),
        price=_nanos(data.price, "price"),
        size=_nanos(data.volume, "volume"),
    )
    _refuse(listing_problem(data.symbol, data.exchange), IDENTIFIER)
    return tick


def _from_normalized_data(event: _NormalizedDataEvent, message: Message, index: int) -> Event:
    data, meta = event.normalized_data, event.processing_metadata
    if meta.normalization_version != NORMALIZATION_VERSION:
        raise SkippableError(
            f"normalization_version is {NORMALIZATION_VERSION}, was {meta.normalization_version[:40]!r}",
            code=UNSUPPORTED_VERSION,
        )
    identity = _identity(event.event_id, meta)
    _refuse(source_problem(meta.original_provider), SCHEMA)
    allowed = {"trade": _TRADE_PRICES, "quote": _QUOTE_PRICES, "ohlc": _BAR_PRICES}[data.data_type]
    _only(data, allowed, f"data_type {data.data_type}")
    if data.data_type == "ohlc":
        return _bar(event, message, index, identity)
    if data.timeframe is not UNSET:
        raise SkippableError(f"data_type {data.data_type} has no timeframe", code=SCHEMA)
    trade = data.data_type == "trade"
    channel, session, sequence = identity
    tick = TickEvent(
        kind=TRADE if trade else QUOTE,
        instrument=f"{data.symbol}.{data.exchange}",
        source=meta.original_provider,
        currency=data.currency,
        channel=channel,
        session=session,
        sequence=sequence,
        ts_event=_ns(data.timestamp),
        price=_nanos(data.price, "price") if trade else _nanos(data.bid, "bid"),
        size=_nanos(data.volume, "volume") if trade else _optional_nanos(data.bid_size, "bid_size"),
        ask_price=0 if trade else _nanos(data.ask, "ask"),
        ask_size=0 if trade else _optional_nanos(data.ask_size, "ask_size"),
    )
    _refuse(listing_problem(data.symbol, data.exchange) or currency_problem(data.currency), IDENTIFIER)
    return tick


def _optional_nanos(raw: Raw, name: str) -> int:
    return _nanos(raw, name) if bytes(raw) else 0


def _bar(event: _NormalizedDataEvent, message: Message, index: int, identity: _Identity) -> DeliveredBar:
    data, meta = event.normalized_data, event.processing_metadata
    if data.timeframe is UNSET:
        raise SkippableError("data_type ohlc says its timeframe", code=SCHEMA)
    channel, session, sequence = identity
    bar = DeliveredBar(
        message=index,
        instrument=f"{data.symbol}.{data.exchange}",
        currency=data.currency,
        source=meta.original_provider,
        timeframe=data.timeframe,
        start=_ns(data.timestamp),
        open=_nanos(data.open, "open"),
        high=_nanos(data.high, "high"),
        low=_nanos(data.low, "low"),
        close=_nanos(data.close, "close"),
        volume=_nanos(data.volume, "volume"),
        channel=channel,
        session=session,
        sequence=sequence,
        ts_publish=message.ts_publish,
    )
    _refuse(listing_problem(data.symbol, data.exchange) or currency_problem(data.currency), IDENTIFIER)
    if not (bar.low <= bar.open <= bar.high and bar.low <= bar.close <= bar.high):
        raise SkippableError("low <= open, close <= high does not hold", code=BAR_INVARIANT)
    return bar


class _Form:
    """Which key marks a form, how it is decoded and upcast, and where a broken event would still say who it is."""

    def __init__(
        self,
        struct: type[Struct],
        upcast: Callable[[Any, Message, int], Event],
        *,
        numbers: tuple[str, ...],
        source: str,
        body: str,
    ) -> None:
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(struct)
        self.upcast = upcast
        self.numbers = numbers
        self.source = source
        self.body = body


_FORMS: Final = {
    "market_data": _Form(
        _MarketDataNormalized, _from_normalized, numbers=("market_data", "metadata"), source="source", body="market_data"
    ),
    "distribution": _Form(
        _MarketDataDistributed, _from_distributed, numbers=("distribution",), source="source", body="data"
    ),
    "normalized_data": _Form(
        _NormalizedDataEvent,
        _from_normalized_data,
        numbers=("processing_metadata",),
        source="original_provider",
        body="normalized_data",
    ),
}  # fmt: skip


def _form_of(document: Any) -> _Form:
    if isinstance(document, dict):
        for key, form in _FORMS.items():
            if key in document:
                return form
    raise SkippableError("none of market_data, distribution, normalized_data is a key of the event", code=UNKNOWN_FORM)


# ---- a rejected event keeps the identity that can still be read -----------------------------------------------------


def _rejection(index: int, data: bytes, text: str, code: str, detail: str) -> Rejection:
    try:
        document = _LENIENT.decode(text)
        form = _form_of(document)
    except (ValueError, SkippableError):
        return Rejection(index, code, detail, sequence=identity_hash(data))
    numbers, body = _inside(document, form.numbers), _inside(document, (form.body,))
    source = _text(numbers.get(form.source), source_problem)
    identity = _readable_identity(document, numbers) if source else None
    channel, session, sequence = identity or (UNREADABLE, UNREADABLE, identity_hash(data))
    return Rejection(
        index,
        code,
        detail,
        source=source,
        channel=channel,
        session=session,
        sequence=sequence,
        instrument=_readable_instrument(body),
        ts_event=_readable_time(body.get("timestamp")),
    )


def _inside(document: Any, path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def _text(value: Any, problem: Callable[[str], str]) -> str:
    return value if isinstance(value, str) and not problem(value) else ""


def _readable_identity(document: dict[str, Any], numbers: dict[str, Any]) -> _Identity | None:
    if "sequence" not in numbers:
        event_id = _text(document.get("event_id"), event_id_problem)
        return (UNNUMBERED, UNNUMBERED, identity_hash(event_id.encode("utf-8", "surrogatepass"))) if event_id else None
    identity = numbers.get("channel", 0), numbers.get("session", 0), numbers["sequence"]
    limits = (0, 2**31 - 1), (0, _MAX_INT64), (1, _MAX_INT64)
    if all(type(number) is int and low <= number <= high for number, (low, high) in zip(identity, limits, strict=True)):
        return identity
    return None


def _readable_instrument(body: dict[str, Any]) -> str:
    if "instrument_id" in body:
        return _text(body["instrument_id"], instrument_problem)
    symbol, exchange = body.get("symbol"), body.get("exchange")
    if isinstance(symbol, str) and isinstance(exchange, str):
        return "" if listing_problem(symbol, exchange) else f"{symbol}.{exchange}"
    return ""


def _readable_time(value: Any) -> int:
    try:
        return ns_from_text(value) if isinstance(value, str) else checked_ns(value) if type(value) is int else 0
    except ValueError:
        return 0
