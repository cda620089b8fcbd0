"""A fast reader for plain JSON events: one compiled pass from bytes to columns, without a Python object per event.

Plain means: trades and quotes of the three forms in printable ASCII, without escapes and exponents, each key once, everything
as the contract says. Anything else is *declined*, never judged: `json_forms.read_event` reads it again and says what it is.
So this module may decline too much, but must never accept what the reference refuses or reads otherwise (tests compare them).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from integration.market.identifiers import MAX_EVENT_ID
from integration.market.ticks import CANCEL, CONDITIONS, CORRECT, QUOTE, TRADE

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    # _nrt=False: nothing here allocates, and without it every call counts references of its arrays, 2.5 times slower in all
    options: dict[str, Any] = {"cache": True, "nogil": True, "forceinline": True, "_nrt": False}
    return cast("_Function", numba.njit(**options)(function))


# ---- what the contract allows, as tables ----------------------------------------------------------------------------

# What a value may be. `_OBJECT` targets an object, the others a slot.
_OBJECT, _TEXT, _DECIMAL, _TIME, _INTEGER, _NUMBER, _NULLABLE, _SENT, _WORDS = range(9)

# Where values go. The first ones are columns of the result; of a text the slot holds its position, `length` its length.
SLOTS: Final = (
    "kind", "action", "channel", "session", "sequence", "trade_id", "ts_event", "price", "size", "ask_price", "ask_size",
    "conditions", "event_id", "event_id_length", "numbered", "instrument", "source", "currency",
    "symbol", "exchange", "origin", "money", "kind_text", "action_text", "version", "nothing",
)  # fmt: skip
RESULTS: Final = SLOTS.index("symbol")  # how many of them are results
_SLOT: Final = {name: number for number, name in enumerate(SLOTS)}

_NUMBERS: Final = {"channel": "channel", "session": "session", "sequence": "sequence"}
# object -> key -> (rule, target)
_OBJECTS: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "event": {
        "event_id": (_TEXT, "event_id"),
        "timestamp": (_SENT, "nothing"),
        "market_data": (_OBJECT, "market_data"),
        "distribution": (_OBJECT, "distribution"),
        "data": (_OBJECT, "data"),
        "routing": (_OBJECT, "routing"),
        "normalized_data": (_OBJECT, "normalized_data"),
        "processing_metadata": (_OBJECT, "processing_metadata"),
        "derived_fields": (_OBJECT, "derived_fields"),
    },
    "market_data": {
        "instrument_id": (_TEXT, "symbol"),
        "timestamp": (_TIME, "ts_event"),
        "price_data": (_OBJECT, "price_data"),
        "volume_data": (_OBJECT, "volume_data"),
        "metadata": (_OBJECT, "metadata"),
    },
    "price_data": {"price": (_DECIMAL, "price"), "bid": (_DECIMAL, "price"), "ask": (_DECIMAL, "ask_price")},
    "volume_data": {"size": (_DECIMAL, "size"), "bid_size": (_DECIMAL, "size"), "ask_size": (_DECIMAL, "ask_size")},
    "metadata": {
        "source": (_TEXT, "origin"),
        "kind": (_TEXT, "kind_text"),
        **{key: (_INTEGER, slot) for key, slot in _NUMBERS.items()},
        "conditions": (_WORDS, "conditions"),
        "trade_id": (_INTEGER, "trade_id"),
        "action": (_TEXT, "action_text"),
    },
    "distribution": {"source": (_TEXT, "origin"), **{key: (_INTEGER, slot) for key, slot in _NUMBERS.items()}},
    "data": {
        "symbol": (_TEXT, "symbol"),
        "exchange": (_TEXT, "exchange"),
        "timestamp": (_TIME, "ts_event"),
        "price": (_DECIMAL, "price"),
        "volume": (_DECIMAL, "size"),
    },
    "routing": {"key": (_TEXT, "nothing")},
    "normalized_data": {
        "symbol": (_TEXT, "symbol"),
        "exchange": (_TEXT, "exchange"),
        "currency": (_TEXT, "money"),
        "timestamp": (_TIME, "ts_event"),
        "data_type": (_TEXT, "kind_text"),
        "price": (_DECIMAL, "price"),
        "volume": (_DECIMAL, "size"),
        "bid": (_DECIMAL, "price"),
        "ask": (_DECIMAL, "ask_price"),
        "bid_size": (_DECIMAL, "size"),
        "ask_size": (_DECIMAL, "ask_size"),
        "spread": (_NULLABLE, "nothing"),
        "mid_price": (_NULLABLE, "nothing"),
        "vwap": (_NULLABLE, "nothing"),
        "market_cap": (_NULLABLE, "nothing"),
    },
    "processing_metadata": {
        "original_provider": (_TEXT, "origin"),
        "processing_time_ms": (_NUMBER, "nothing"),
        "quality_score": (_NUMBER, "nothing"),
        "normalization_version": (_TEXT, "version"),
        **{key: (_INTEGER, slot) for key, slot in _NUMBERS.items()},
    },
    "derived_fields": {},
}
_FIELDS: Final = [(owner, key) for owner, keys in _OBJECTS.items() for key in keys]


def _bits(*names: str) -> int:
    """Give the bit set of keys written `object.key key key`."""
    pairs = [(name.split(".")[0], key) for name in names for key in name.split(".")[1].split()]
    return sum(1 << _FIELDS.index(pair) for pair in pairs)


# The keys that must be there, and those that may, for (form, kind).
_LAYOUTS: Final = [
    (
        1,
        TRADE,
        _bits(
            "event.event_id timestamp market_data",
            "market_data.instrument_id timestamp price_data volume_data metadata",
            "price_data.price",
            "volume_data.size",
            "metadata.source kind",
        ),
        _bits("metadata.channel session sequence conditions trade_id action"),
    ),
    (
        1,
        QUOTE,
        _bits(
            "event.event_id timestamp market_data",
            "market_data.instrument_id timestamp price_data volume_data metadata",
            "price_data.bid ask",
            "volume_data.bid_size ask_size",
            "metadata.source kind",
        ),
        _bits("metadata.channel session sequence conditions trade_id action"),
    ),
    (
        2,
        TRADE,
        _bits(
            "event.event_id timestamp distribution data routing",
            "distribution.source",
            "data.symbol exchange timestamp price volume",
        ),
        _bits("distribution.channel session sequence", "routing.key"),
    ),
    (
        3,
        TRADE,
        _bits(
            "event.event_id timestamp normalized_data processing_metadata derived_fields",
            "normalized_data.symbol exchange currency timestamp data_type price volume",
            "processing_metadata.original_provider processing_time_ms quality_score normalization_version",
        ),
        _bits("normalized_data.spread mid_price vwap market_cap", "processing_metadata.channel session sequence"),
    ),
    (
        3,
        QUOTE,
        _bits(
            "event.event_id timestamp normalized_data processing_metadata derived_fields",
            "normalized_data.symbol exchange currency timestamp data_type bid ask",
            "processing_metadata.original_provider processing_time_ms quality_score normalization_version",
        ),
        _bits(
            "normalized_data.bid_size ask_size spread mid_price vwap market_cap",
            "processing_metadata.channel session sequence",
        ),
    ),
]


def _words(texts: Sequence[str]) -> Bytes:
    """Give texts as rows of bytes, filled up with zeros; the last column is always zero."""
    rows = np.zeros((len(texts), max(map(len, texts)) + 1), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    return rows


_OBJECT_NAMES: Final = list(_OBJECTS)
_KEYS: Final = _words([key for _, key in _FIELDS])
_KEY_LENGTHS: Final = np.array([len(key) for _, key in _FIELDS], np.int64)
_RULES: Final = np.array([_OBJECTS[owner][key][0] for owner, key in _FIELDS], np.int64)
_TARGETS: Final = np.array(
    [
        _OBJECT_NAMES.index(target) if rule == _OBJECT else _SLOT[target]
        for rule, target in (_OBJECTS[owner][key] for owner, key in _FIELDS)
    ],
    np.int64,
)
_FIRST: Final = np.array(
    [sum(len(_OBJECTS[name]) for name in _OBJECT_NAMES[:n]) for n in range(len(_OBJECTS) + 1)], np.int64
)
_LAYOUT_TABLE: Final = np.array(_LAYOUTS, np.int64)
_CONDITION_WORDS: Final = _words(CONDITIONS)
_KIND_WORDS: Final = _words(["", "trade", "quote"])  # index = kind
_ACTION_WORDS: Final = _words(["new", "correct", "cancel"])  # index = action
_VERSION_WORDS: Final = _words(["1.0"])
_SEQUENCE_BITS: Final = _bits("metadata.sequence", "distribution.sequence", "processing_metadata.sequence")
_FORM_BITS: Final = np.array(
    [0, _bits("event.market_data"), _bits("event.distribution"), _bits("event.normalized_data")], np.int64
)

_ACTION, _KIND, _CHANNEL, _SEQUENCE = _SLOT["action"], _SLOT["kind"], _SLOT["channel"], _SLOT["sequence"]
_TRADE_ID, _EVENT_ID, _EVENT_ID_LENGTH = _SLOT["trade_id"], _SLOT["event_id"], _SLOT["event_id_length"]
_NUMBERED, _INSTRUMENT, _SOURCE, _CURRENCY = _SLOT["numbered"], _SLOT["instrument"], _SLOT["source"], _SLOT["currency"]
_SYMBOL, _EXCHANGE, _ORIGIN, _MONEY = _SLOT["symbol"], _SLOT["exchange"], _SLOT["origin"], _SLOT["money"]
_KIND_TEXT, _ACTION_TEXT, _VERSION = _SLOT["kind_text"], _SLOT["action_text"], _SLOT["version"]

_QUOTATION, _COMMA, _MINUS, _POINT, _COLON, _BACKSLASH = 34, 44, 45, 46, 58, 92
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93
_MAX_DIGITS: Final = 30  # of a number that is not kept
_MAX_PROBES: Final = 64  # of the text table, so that texts chosen to collide cost little
_DECLINED: Final = -1


# ---- values: each gives the position after the value, or _DECLINED. Every message is followed by a NUL, which stops them all --


@_compiled
def _space(buffer: Bytes, at: int) -> int:
    while buffer[at] == 32 or buffer[at] == 10 or buffer[at] == 13 or buffer[at] == 9:
        at += 1
    return at


@_compiled
def _digits(buffer: Bytes, at: int) -> int:
    while 48 <= buffer[at] <= 57:
        at += 1
    return at


@_compiled
def _digit(buffer: Bytes, at: int) -> int:
    # by way of int64: a byte is unsigned, and signed with unsigned makes a float in compiled code
    return int(np.int64(buffer[at])) - 48


@_compiled
def _text(buffer: Bytes, at: int) -> int:
    if buffer[at] != _QUOTATION:
        return _DECLINED
    at += 1
    while buffer[at] != _QUOTATION:
        if buffer[at] < 32 or buffer[at] > 126 or buffer[at] == _BACKSLASH:
            return _DECLINED
        at += 1
    return at + 1


@_compiled
def _fixed(buffer: Bytes, at: int, count: int) -> int:
    """Give the number that exactly `count` digits make, or a negative one."""
    value = 0
    for position in range(at, at + count):
        if buffer[position] < 48 or buffer[position] > 57:
            return -1
        value = value * 10 + _digit(buffer, position)
    return value


@_compiled
def _integer(buffer: Bytes, at: int, value: Ints, slot: int) -> int:
    end = _digits(buffer, at)
    count = end - at
    if count == 0 or count > 19 or (count > 1 and buffer[at] == 48):
        return _DECLINED
    number = 0
    for position in range(at, end):
        digit = _digit(buffer, position)
        if position - at == 18 and (number > 922337203685477580 or (number == 922337203685477580 and digit > 7)):
            return _DECLINED
        number = number * 10 + digit
    value[slot] = number
    return end


@_compiled
def _decimal(buffer: Bytes, at: int, value: Ints, slot: int) -> int:
    quoted = buffer[at] == _QUOTATION
    at += 1 if quoted else 0
    negative = buffer[at] == _MINUS
    at += 1 if negative else 0
    point = _digits(buffer, at)
    if point == at or point - at > 10 or (point - at > 1 and buffer[at] == 48):
        return _DECLINED
    nanos = 0
    for position in range(at, point):
        nanos = nanos * 10 + _digit(buffer, position)
    if nanos >= 9_200_000_000:
        return _DECLINED
    end = point
    if buffer[point] == _POINT:
        end = _digits(buffer, point + 1)
        if end == point + 1 or end - point > 10:
            return _DECLINED
    for position in range(point + 1, point + 10):
        nanos = nanos * 10 + (_digit(buffer, position) if position < end else 0)
    return _signed(buffer, end, quoted, negative, nanos, value, slot)


@_compiled
def _signed(buffer: Bytes, at: int, quoted: bool, negative: bool, nanos: int, value: Ints, slot: int) -> int:
    if (negative and nanos == 0) or (quoted and buffer[at] != _QUOTATION):
        return _DECLINED
    value[slot] = -nanos if negative else nanos
    return at + 1 if quoted else at


@_compiled
def _number(buffer: Bytes, at: int) -> int:
    negative = buffer[at] == _MINUS
    at += 1 if negative else 0
    end = _digits(buffer, at)
    if end == at or end - at > _MAX_DIGITS or (buffer[at] == 48 and end - at > 1):
        return _DECLINED
    if negative and buffer[at] == 48 and buffer[end] != _POINT:
        return _DECLINED
    if buffer[end] == _POINT:
        point = end
        end = _digits(buffer, point + 1)
        if end == point + 1 or end - point > _MAX_DIGITS:
            return _DECLINED
    return _exponent(buffer, end) if buffer[end] in (69, 101) else end


@_compiled
def _exponent(buffer: Bytes, at: int) -> int:
    at += 2 if buffer[at + 1] in (43, _MINUS) else 1
    end = _digits(buffer, at)
    return end if 1 <= end - at <= 2 else _DECLINED  # three digits may leave the range of a float


@_compiled
def _null(buffer: Bytes, at: int) -> int:
    is_null = buffer[at] == 110 and buffer[at + 1] == 117 and buffer[at + 2] == 108 and buffer[at + 3] == 108
    return at + 4 if is_null else _DECLINED


@_compiled
def _days(year: int, month: int, day: int) -> int:
    """Count the days from 1970-01-01 to a date of 1970 to 2261, or give a negative number when no calendar has it."""
    if year < 1970 or year > 2261 or month < 1 or month > 12 or day < 1:
        return -1
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = 31 - (month in (4, 6, 9, 11))
    if month == 2:
        longest = 29 if leap else 28
    if day > longest:
        return -1
    # the year is taken to begin in March, so that the leap day is its last
    shifted = year - 1 if month <= 2 else year
    from_march = (month + 9) % 12
    return 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + (153 * from_march + 2) // 5 + day - 719_469


@_compiled
def _iso(buffer: Bytes, at: int, value: Ints, slot: int) -> int:
    """Read ISO 8601 text between quotation marks; `at` is behind the first."""
    end = at
    while buffer[end] >= 43 and buffer[end] <= 90:  # all that such a text is made of lies between + and Z
        end += 1
    if end - at < 20 or end - at > 35 or buffer[end] != _QUOTATION or buffer[at + 10] != 84:
        return _DECLINED
    if buffer[at + 4] != _MINUS or buffer[at + 7] != _MINUS or buffer[at + 13] != _COLON or buffer[at + 16] != _COLON:
        return _DECLINED
    days = _days(_fixed(buffer, at, 4), _fixed(buffer, at + 5, 2), _fixed(buffer, at + 8, 2))
    seconds = _clock(_fixed(buffer, at + 11, 2), _fixed(buffer, at + 14, 2), _fixed(buffer, at + 17, 2))
    zone = at + 19
    nanos = 0
    if buffer[zone] == _POINT:
        zone = _digits(buffer, at + 20)
        count = zone - at - 20
        if count < 1 or count > 9:
            return _DECLINED
        nanos = _fixed(buffer, at + 20, count) * 10 ** (9 - count)
    offset = _offset(buffer, zone, end)
    if days < 0 or seconds < 0 or offset == _NO_OFFSET:
        return _DECLINED
    total = (np.int64(days) * 86_400 + seconds - offset) * 1_000_000_000 + nanos
    if total < 0:
        return _DECLINED
    value[slot] = total
    return end + 1


_NO_OFFSET: Final = 1_000_000


@_compiled
def _clock(hour: int, minute: int, second: int) -> int:
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return -1
    return hour * 3600 + minute * 60 + second


@_compiled
def _offset(buffer: Bytes, at: int, end: int) -> int:
    """Give the seconds east of UTC that `Z` or `±hh:mm` says."""
    if buffer[at] == 90:
        return 0 if end == at + 1 else _NO_OFFSET
    if end != at + 6 or (buffer[at] != 43 and buffer[at] != _MINUS) or buffer[at + 3] != _COLON:
        return _NO_OFFSET
    hours, minutes = _fixed(buffer, at + 1, 2), _fixed(buffer, at + 4, 2)
    if hours < 0 or minutes < 0 or minutes > 59 or hours * 60 + minutes > 840:
        return _NO_OFFSET
    seconds = hours * 3600 + minutes * 60
    return -seconds if buffer[at] == _MINUS else seconds


@_compiled
def _word(buffer: Bytes, at: int, length: int, words: Bytes) -> int:
    """Give the row of `words` that the text is, or a negative number."""
    for row in range(len(words)):
        position = 0
        while position < length and position < words.shape[1] and buffer[at + position] == words[row, position]:
            position += 1
        if position == length and words[row, position] == 0:
            return row
    return -1


@_compiled
def _conditions(buffer: Bytes, at: int, value: Ints, slot: int) -> int:
    if buffer[at] != _OPEN_LIST:
        return _DECLINED
    bits = 0
    at = _space(buffer, at + 1)
    while bits or buffer[at] != _CLOSE_LIST:
        end = _text(buffer, at)
        row = _word(buffer, at + 1, end - at - 2, _CONDITION_WORDS) if end > 0 else -1
        if row < 0 or bits >> row & 1:
            return _DECLINED
        bits |= 1 << row
        at = _space(buffer, end)
        if buffer[at] == _CLOSE_LIST:
            break
        if buffer[at] != _COMMA:
            return _DECLINED
        at = _space(buffer, at + 1)
    value[slot] = bits
    return at + 1


@_compiled
def _value(buffer: Bytes, at: int, field: int, value: Ints, length: Ints) -> int:
    rule, slot = _RULES[field], _TARGETS[field]
    quoted = buffer[at] == _QUOTATION
    if rule == _DECIMAL:
        return _decimal(buffer, at, value, slot)
    if rule == _INTEGER or (not quoted and rule in (_TIME, _SENT)):
        return _integer(buffer, at, value, slot)
    if rule == _TIME:
        return _iso(buffer, at + 1, value, slot)
    if rule in (_TEXT, _SENT):
        end = _text(buffer, at)
        value[slot], length[slot] = at + 1, end - at - 2
        return end
    if rule == _WORDS:
        return _conditions(buffer, at, value, slot)
    return _unkept(buffer, at, rule)


@_compiled
def _unkept(buffer: Bytes, at: int, rule: int) -> int:
    if rule == _OBJECT:
        return at + 1 if buffer[at] == _OPEN else _DECLINED
    if rule == _NULLABLE and buffer[at] == 110:
        return _null(buffer, at)
    return _number(buffer, at)


# ---- one message ----------------------------------------------------------------------------------------------------


@_compiled
def _field(buffer: Bytes, at: int, owner: int, hint: int) -> int:
    """Find which key of an object begins at `at` (behind its quotation mark); `hint` is the likely one."""
    first, last = _FIRST[owner], _FIRST[owner + 1]
    for step in range(last - first):
        field = hint + step
        if field >= last:
            field -= last - first
        size = _KEY_LENGTHS[field]
        position = 0
        while position < size and buffer[at + position] == _KEYS[field, position]:
            position += 1
        if position == size and buffer[at + size] == _QUOTATION:
            return field
    return _DECLINED


@_compiled
def _after_key(buffer: Bytes, at: int, field: int, seen: int) -> int:
    """Give the position of a key's value, or _DECLINED when the key is unknown or was seen before; `at` is its quotation mark."""
    if field < 0 or seen >> field & 1:
        return _DECLINED
    at = _space(buffer, at + _KEY_LENGTHS[field] + 2)
    return _space(buffer, at + 1) if buffer[at] == _COLON else _DECLINED


@_compiled
def _keys(buffer: Bytes, at: int, end: int, value: Ints, length: Ints, stack: Ints) -> int:
    """Read one event from `at` to `end`; give the bit set of the keys seen, or _DECLINED."""
    at = _space(buffer, at)
    at = at + 1 if buffer[at] == _OPEN else _DECLINED
    seen = 0
    depth, owner, hint = 0, 0, 0
    may_close, may_open = True, True
    while at >= 0:
        at = _space(buffer, at)
        if buffer[at] == _CLOSE and may_close:
            at = _space(buffer, at + 1)
            depth -= 1
            if depth < 0:
                break
            owner, hint = stack[2 * depth], stack[2 * depth + 1]
        elif buffer[at] == _QUOTATION and may_open:
            field = _field(buffer, at + 1, owner, hint)
            at = _after_key(buffer, at, field, seen)
            at = _value(buffer, at, field, value, length) if at >= 0 else at
            seen |= 1 << max(field, 0)
            hint = field + 1
            if at >= 0 and _RULES[field] == _OBJECT:
                stack[2 * depth], stack[2 * depth + 1] = owner, hint
                depth += 1
                owner = _TARGETS[field]
                hint = _FIRST[owner]
                may_close, may_open = True, True
                continue
        else:
            at = _DECLINED
        may_close, may_open, at = _separator(buffer, at)
    return seen if at == end else _DECLINED


@_compiled
def _separator(buffer: Bytes, at: int) -> tuple[bool, bool, int]:
    """Tell what may follow a value, a closing brace or another key, and where."""
    if at < 0:
        return False, False, at
    at = _space(buffer, at)
    comma = buffer[at] == _COMMA
    return not comma, comma, at + 1 if comma else at


@_compiled
def _finish(buffer: Bytes, seen: int, value: Ints, length: Ints) -> bool:
    """Fill kind, action and identity from what was read; false when form and kind do not have exactly these keys."""
    form = 0
    for number in range(1, 4):
        if seen & _FORM_BITS[number]:
            form = number
    kind = TRADE if form == 2 else _word(buffer, value[_KIND_TEXT], length[_KIND_TEXT], _KIND_WORDS)
    action = 0 if length[_ACTION_TEXT] < 0 else _word(buffer, value[_ACTION_TEXT], length[_ACTION_TEXT], _ACTION_WORDS)
    if not _has_layout(seen, form, kind) or action < 0:
        return False
    if (action in (CORRECT, CANCEL)) and (kind != TRADE or value[_TRADE_ID] == 0):
        return False
    if form == 3 and _word(buffer, value[_VERSION], length[_VERSION], _VERSION_WORDS) < 0:
        return False
    value[_KIND], value[_ACTION], value[_EVENT_ID_LENGTH] = kind, action, length[_EVENT_ID]
    value[_NUMBERED] = seen & _SEQUENCE_BITS != 0
    return _in_range(buffer, form, value, length)


@_compiled
def _has_layout(seen: int, form: int, kind: int) -> bool:
    for row in range(len(_LAYOUT_TABLE)):
        if _LAYOUT_TABLE[row, 0] == form and _LAYOUT_TABLE[row, 1] == kind:
            required, optional = _LAYOUT_TABLE[row, 2], _LAYOUT_TABLE[row, 3]
            return bool(seen & required == required and seen & ~(required | optional) == 0)
    return False


@_compiled
def _in_range(buffer: Bytes, form: int, value: Ints, length: Ints) -> bool:
    if value[_CHANNEL] > 2_147_483_647 or (value[_NUMBERED] and value[_SEQUENCE] < 1):
        return False
    if length[_EVENT_ID] < 1 or length[_EVENT_ID] > MAX_EVENT_ID:
        return False
    if form == 1:
        return True
    # a point inside the exchange would move the border between symbol and MIC; no currency is no currency of form 3
    if length[_EXCHANGE] != 4 or (form == 3 and length[_MONEY] != 3):
        return False
    for position in range(value[_EXCHANGE], value[_EXCHANGE] + 4):  # noqa: SIM110 - numba has no generators
        if buffer[position] == _POINT:
            return False
    return True


# ---- texts: each distinct one once ----------------------------------------------------------------------------------


@_compiled
def _intern(
    buffer: Bytes, first: int, first_length: int, second: int, second_length: int, table: Ints, spans: Ints
) -> int:
    """Give the number of a text, made of one or two pieces of the buffer; new texts are added to `spans`.

    Row 0 of `spans` counts the texts; `table` is an open-addressing hash table of their numbers, 0 = free.
    """
    code = np.int64(-3750763034362895579)
    for position in range(first, first + first_length):
        code = (code ^ buffer[position]) * np.int64(1099511628211)
    code = (code ^ 256) * np.int64(1099511628211)
    for position in range(second, second + second_length):
        code = (code ^ buffer[position]) * np.int64(1099511628211)
    mask = len(table) - 1
    place = (code ^ (code >> 32)) & mask
    for _ in range(_MAX_PROBES):
        number = table[place]
        if number == 0:
            spans[0, 0] += 1
            number = spans[0, 0]
            spans[number, 0], spans[number, 1], spans[number, 2], spans[number, 3] = (
                first,
                first_length,
                second,
                second_length,
            )
            table[place] = number
            return int(number)
        same = spans[number, 1] == first_length and spans[number, 3] == second_length
        same = same and _equal(buffer, spans[number, 0], first, first_length)
        if same and _equal(buffer, spans[number, 2], second, second_length):
            return int(number)
        place = (place + 1) & mask
    return 0


@_compiled
def _equal(buffer: Bytes, one: int, other: int, length: int) -> bool:
    for position in range(length):  # noqa: SIM110 - numba has no generators
        if buffer[one + position] != buffer[other + position]:
            return False
    return True


@_compiled
def _intern_all(buffer: Bytes, value: Ints, length: Ints, tables: Ints, spans: Ints) -> bool:
    exchange = max(length[_EXCHANGE], 0)
    value[_INSTRUMENT] = _intern(
        buffer, value[_SYMBOL], length[_SYMBOL], value[_EXCHANGE], exchange, tables[0], spans[0]
    )
    value[_SOURCE] = _intern(buffer, value[_ORIGIN], length[_ORIGIN], 0, 0, tables[1], spans[1])
    value[_CURRENCY] = _intern(buffer, value[_MONEY], max(length[_MONEY], 0), 0, 0, tables[2], spans[2])
    return bool(value[_INSTRUMENT] and value[_SOURCE] and value[_CURRENCY])


@_compiled
def _scan(
    buffer: Bytes,
    starts: Ints,
    ends: Ints,
    results: Ints,
    read: npt.NDArray[np.bool_],
    texts: tuple[Ints, Ints],
    work: Ints,
) -> None:
    tables, spans = texts
    value, length, stack = work[0], work[1], work[2]
    for number in range(len(starts)):
        value[:] = 0
        length[:] = -1
        seen = _keys(buffer, starts[number], ends[number], value, length, stack)
        if seen < 0 or not _finish(buffer, seen, value, length):
            continue
        if not _intern_all(buffer, value, length, tables, spans):
            continue
        for slot in range(RESULTS):
            results[slot, number] = value[slot]
        read[number] = True


# ---- the door -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class PlainEvents:
    """What a scan read. `read[i]` tells whether message i was plain; the columns of the others mean nothing.

    `instrument`, `source` and `currency` of `columns` are positions in the lists of the same name.
    """

    read: npt.NDArray[np.bool_]
    columns: dict[str, Ints]
    instruments: list[str]
    sources: list[str]
    currencies: list[str]
    buffer: bytes

    def event_id(self, index: int) -> bytes:
        """Give the event_id of message `index` as it was written."""
        start = int(self.columns["event_id"][index])
        return self.buffer[start : start + int(self.columns["event_id_length"][index])]


def scan(messages: Sequence[bytes]) -> PlainEvents:
    """Read the plain ones among JSON messages; the cost is linear in their bytes whatever they hold."""
    count = len(messages)
    # a NUL is nowhere allowed in JSON text: it ends every loop of the scan at the end of its message
    buffer = b"\0".join(messages) + b"\0" * 40
    lengths = np.fromiter(map(len, messages), np.int64, count)
    ends = np.cumsum(lengths + 1) - 1
    results = np.zeros((RESULTS, count), np.int64)
    read = np.zeros(count, np.bool_)
    tables = np.zeros((3, 1 << (2 * count + 1).bit_length()), np.int64)
    spans = np.zeros((3, count + 1, 4), np.int64)
    work = np.zeros((3, len(SLOTS)), np.int64)
    _scan(np.frombuffer(buffer, np.uint8), ends - lengths, ends, results, read, (tables, spans), work)
    columns = {name: results[slot] for slot, name in enumerate(SLOTS[:RESULTS])}
    for name in ("instrument", "source", "currency"):
        columns[name] -= 1  # number 0 says that there is no text
    instruments, sources, currencies = (_texts(buffer, spans[number]) for number in range(3))
    return PlainEvents(read, columns, instruments, sources, currencies, buffer)


def _texts(buffer: bytes, spans: Ints) -> list[str]:
    pieces = [(buffer[a : a + m], buffer[b : b + n]) for a, m, b, n in spans[1 : int(spans[0, 0]) + 1].tolist()]
    return [(f"{one.decode()}.{other.decode()}" if other else one.decode()) for one, other in pieces]
