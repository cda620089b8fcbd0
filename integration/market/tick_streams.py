"""Arrow IPC streams of ticks: form 4 of `docs/events.md` in and out, and the stream of `integrated/ticks`.

Nothing of a stream is believed before it is checked: framing, sizes and compression first, then Arrow's own full validation.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from integration.market.errors import (
    ARROW_INVALID,
    ARROW_ROWS,
    ARROW_SCHEMA,
    IDENTIFIER,
    NUMBER,
    SCHEMA,
    TIME,
    TOO_LARGE,
    UNSUPPORTED_VERSION,
    SkippableError,
)
from integration.market.identifiers import identity_hash, instrument_problem, source_problem
from integration.market.ticks import (
    CANCEL,
    CONDITIONS,
    CORRECT,
    FLAG_CANCEL,
    FLAG_CORRECTION,
    NEW,
    QUOTE,
    TICK_COLUMNS,
    TRADE,
    UNREADABLE,
    Column,
    Mask,
    Message,
    Rejection,
    Ticks,
)
from integration.market.units import MAX_NANOS

STREAM_PREFIX: Final = b"\xff\xff\xff\xff"  # continuation marker; never the beginning of UTF-8
CONTENT_TYPE: Final = "application/vnd.apache.arrow.stream"
MAX_STREAM_BYTES: Final = 5 * 1024 * 1024
MAX_STREAM_ROWS: Final = 65_536
VERSION: Final = "1"
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"
_METADATA_KEYS: Final = frozenset({b"version", b"source", b"channel", b"session"})
_MAX_INT64: Final = 2**63 - 1


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


SCHEMA_IN: Final = _schema(
    {
        "sequence": pa.int64(),
        "kind": pa.uint8(),
        "action": pa.uint8(),
        "instrument": pa.utf8(),
        "ts_event": pa.int64(),
        "price": pa.int64(),
        "size": pa.int64(),
        "ask_price": pa.int64(),
        "ask_size": pa.int64(),
        "conditions": pa.uint32(),
        "trade_id": pa.int64(),
    }
)
SCHEMA_OUT: Final = _schema(
    {
        "instrument_id": pa.int32(),
        "epoch": pa.int32(),
        "sequence": pa.int64(),
        "kind": pa.uint8(),
        "action": pa.uint8(),
        "source_id": pa.int32(),
        "ts_event": pa.int64(),
        "ts_publish": pa.int64(),
        "price": pa.int64(),
        "size": pa.int64(),
        "ask_price": pa.int64(),
        "ask_size": pa.int64(),
        "conditions": pa.uint32(),
        "flags": pa.uint32(),
        "session_date": pa.date32(),
        "trade_id": pa.int64(),
    }
)
_NUMERIC_IN: Final = tuple(name for name in SCHEMA_IN.names if name != "instrument")
# The least that a row takes in the body of an uncompressed batch: its fixed widths and one string offset.
_ROW_BYTES: Final = sum(SCHEMA_IN.field(name).type.bit_width // 8 for name in _NUMERIC_IN) + 4


# ---- in -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TickStream:
    """The good rows of one stream, and one rejection for each other row; `instrument` indexes `instruments`."""

    ticks: Ticks
    instrument: npt.NDArray[np.int32]
    instruments: list[str]
    source: str
    rejections: list[Rejection]


def read_stream(message: Message, index: int) -> TickStream | Rejection:
    """Read one Arrow message, the `index`-th of its batch; a stream that breaks the contract is one Rejection."""
    source = ""
    try:
        schema, batches = _open(message.data)
        source, channel, session = _claims(schema)
        table = _table(schema, batches)
    except SkippableError as error:
        return Rejection(index, error.code, str(error), source=source, sequence=identity_hash(message.data))
    return _rows(table, message, index, (source, channel, session))


def _open(data: bytes) -> tuple[pa.Schema, Iterator[pa.Message]]:
    if len(data) > MAX_STREAM_BYTES:
        raise SkippableError(f"a stream has at most {MAX_STREAM_BYTES} bytes, was {len(data)}", code=TOO_LARGE)
    if not data.endswith(_END_OF_STREAM):
        raise SkippableError("no end-of-stream marker at the end: cut off, or something follows it", code=ARROW_INVALID)
    messages = _messages(data)
    try:
        first = next(messages, None)
        if first is None or first.type != "schema":
            raise SkippableError("the first message of a stream is its schema", code=ARROW_INVALID)
        return ipc.read_schema(first), messages
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _invalid(error) from None


def _messages(data: bytes) -> Iterator[pa.Message]:
    source = pa.BufferReader(data)
    reader = ipc.MessageReader.open_stream(source)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            break
    if source.tell() != len(data):
        raise SkippableError("bytes follow the end of the stream", code=ARROW_INVALID)


def _invalid(error: Exception) -> SkippableError:
    return SkippableError(f"Arrow refuses it: {str(error)[:200]}", code=ARROW_INVALID)


def _claims(schema: pa.Schema) -> tuple[str, int, int]:
    metadata = schema.metadata or {}
    if metadata.get(b"version", b"1") != VERSION.encode():
        raise SkippableError(f"version is {VERSION}, was {metadata[b'version'][:40]!r}", code=UNSUPPORTED_VERSION)
    if metadata.keys() != _METADATA_KEYS:
        raise SkippableError(
            f"schema metadata is version, source, channel, session, was {sorted(metadata)[:8]}", code=ARROW_SCHEMA
        )
    if not schema.equals(SCHEMA_IN):
        raise SkippableError("columns, their types, order or nullability are not those of form 4", code=ARROW_SCHEMA)
    source = metadata[b"source"].decode("ascii", "replace")
    if source_problem(source):
        raise SkippableError(source_problem(source), code=ARROW_SCHEMA)
    return source, _number(metadata[b"channel"], 2**31 - 1), _number(metadata[b"session"], _MAX_INT64)


def _number(text: bytes, largest: int) -> int:
    if text.isdigit() and len(text) <= 19 and str(int(text)).encode() == text and int(text) <= largest:
        return int(text)
    raise SkippableError(f"channel and session are plain integers in their range, was {text[:40]!r}", code=ARROW_SCHEMA)


def _table(schema: pa.Schema, messages: Iterator[pa.Message]) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    rows = 0
    try:
        for message in messages:
            claimed = _check_claims(message)
            rows += claimed
            if rows > MAX_STREAM_ROWS:
                raise SkippableError(f"a stream has at most {MAX_STREAM_ROWS} rows", code=ARROW_ROWS)
            batch = ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            if batch.num_rows != claimed or any(column.null_count for column in batch.columns):
                raise SkippableError("a batch holds nulls, or not the rows that it claims", code=ARROW_INVALID)
            batches.append(batch)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise _invalid(error) from None
    if rows == 0:
        raise SkippableError("a stream has at least one row", code=ARROW_ROWS)
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _check_claims(message: pa.Message) -> int:
    """Give the rows that a record batch claims; refuse what would make Arrow allocate more than was sent."""
    if message.type != "record batch":
        raise SkippableError(f"a {message.type} message in a stream without dictionaries", code=ARROW_SCHEMA)
    length, compressed = _batch_header(message.metadata.to_pybytes())
    if compressed:
        raise SkippableError("compressed buffers", code=ARROW_SCHEMA)
    if length < 0 or length * _ROW_BYTES > message.body.size:
        raise SkippableError(f"a batch claims {length} rows in {message.body.size} bytes", code=ARROW_INVALID)
    return length


# Positions in the tables of Arrow's Message.fbs; pyarrow shows neither field before it has decompressed the buffers.
_MESSAGE_HEADER: Final = 2
_BATCH_LENGTH: Final = 0
_BATCH_COMPRESSION: Final = 3


def _batch_header(flatbuffer: bytes) -> tuple[int, bool]:
    message = struct.unpack_from("<I", flatbuffer, 0)[0]
    header = _field(flatbuffer, message, _MESSAGE_HEADER)
    if header == 0:
        raise SkippableError("a message without a header", code=ARROW_INVALID)
    batch = header + struct.unpack_from("<I", flatbuffer, header)[0]
    length = _field(flatbuffer, batch, _BATCH_LENGTH)
    rows = struct.unpack_from("<q", flatbuffer, length)[0] if length else 0
    return rows, _field(flatbuffer, batch, _BATCH_COMPRESSION) != 0


def _field(flatbuffer: bytes, table: int, number: int) -> int:
    """Give the position of a table's field in a flatbuffer, 0 when it is absent; struct.error outside the bytes."""
    vtable = table - struct.unpack_from("<i", flatbuffer, table)[0]
    if vtable < 0:
        raise struct.error("a table before the beginning")
    size = struct.unpack_from("<H", flatbuffer, vtable)[0]
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", flatbuffer, vtable + entry)[0] if entry < size else 0
    return table + offset if offset else 0


def _rows(table: pa.Table, message: Message, index: int, claims: tuple[str, int, int]) -> TickStream:
    source, channel, session = claims
    columns = {name: table.column(name).chunk(0).to_numpy() for name in _NUMERIC_IN}
    names = table.column("instrument").chunk(0).dictionary_encode()
    instruments: list[str] = names.dictionary.to_pylist()
    which = names.indices.to_numpy()
    rows = table.num_rows
    filled = {"channel": channel, "session": session, "ts_publish": message.ts_publish, "message": index}
    columns |= {name: np.full(rows, value, TICK_COLUMNS[name]) for name, value in filled.items()}
    columns["row"] = np.arange(rows, dtype=np.int32)
    columns["flags"] = flags_of(columns["action"])
    zeros = {name: np.zeros(rows, kind) for name, kind in TICK_COLUMNS.items() if name not in columns}
    ticks = Ticks(**columns, **zeros)
    problems = list(map(instrument_problem, instruments))
    misnamed = np.array(list(map(bool, problems)), np.bool_)[which] if any(problems) else np.zeros(rows, np.bool_)
    code = _judge(ticks, misnamed)
    bad = np.flatnonzero(code)
    if not len(bad):
        return TickStream(ticks, which, instruments, source, [])
    rejections = [
        _row_rejection(ticks, int(row), instruments[which[row]], source, _ROW_CODES[code[row]], message) for row in bad
    ]
    good = code == 0
    used, which = np.unique(which[good], return_inverse=True)
    return TickStream(
        ticks.take(good), which.astype(np.int32), [instruments[number] for number in used], source, rejections
    )


def flags_of(action: Column) -> npt.NDArray[np.uint32]:
    """Give the flag bits that follow from actions alone: correction and cancel."""
    flags = np.zeros(len(action), np.uint32)
    flags[action == CORRECT] = FLAG_CORRECTION
    flags[action == CANCEL] = FLAG_CANCEL
    return flags


# index: what _judge gives for a row
_ROW_CODES: Final = (
    ("", ""),
    (SCHEMA, "kind, action or conditions are none that exist"),
    (SCHEMA, "a trade has no ask"),
    (SCHEMA, "correct and cancel name a trade by its trade_id"),
    (NUMBER, "sequence or trade_id out of range"),
    (NUMBER, "absolute value is not below 9.2e9"),
    (TIME, "ts_event before 1970"),
    (IDENTIFIER, "instrument"),
)


def _judge(ticks: Ticks, misnamed: Mask) -> npt.NDArray[np.int8]:
    """Give the first reason against each row, an index into `_ROW_CODES`; 0 for a good row."""
    trade = ticks.kind == TRADE
    reasons = (
        (ticks.kind - TRADE > QUOTE - TRADE)
        | (ticks.action > CANCEL)
        | (ticks.conditions >> np.uint32(len(CONDITIONS)) != 0),
        trade & ((ticks.ask_price != 0) | (ticks.ask_size != 0)),
        (ticks.action != NEW) & (~trade | (ticks.trade_id == 0)),
        (ticks.sequence < 1) | (ticks.trade_id < 0),
        _too_large(ticks.price) | _too_large(ticks.size) | _too_large(ticks.ask_price) | _too_large(ticks.ask_size),
        ticks.ts_event < 0,
        misnamed,
    )
    code = np.zeros(len(ticks), np.int8)
    for number in range(len(reasons), 0, -1):
        code[reasons[number - 1]] = number
    return code


def _too_large(column: Column) -> Mask:
    return (column >= MAX_NANOS) | (column <= -MAX_NANOS)


def _row_rejection(
    ticks: Ticks, row: int, instrument: str, source: str, reason: tuple[str, str], message: Message
) -> Rejection:
    code, detail = reason
    problem = instrument_problem(instrument)
    sequence = int(ticks.sequence[row])
    identity = (int(ticks.channel[row]), int(ticks.session[row]), sequence)
    if sequence < 1:
        # a row without a number of its own is known by the stream's bytes and its place in them
        identity = (UNREADABLE, UNREADABLE, identity_hash(message.data + row.to_bytes(4, "big")))
    return Rejection(
        int(ticks.message[row]),
        code,
        problem if code == IDENTIFIER else detail,
        row,
        source,
        *identity,
        instrument="" if problem else instrument,
        ts_event=max(int(ticks.ts_event[row]), 0),
    )


def row_bytes(message: Message, row: int) -> bytes:
    """Give the raw bytes of one event: the stream of that one row, or the whole message when it is JSON or `row` is -1."""
    if row < 0 or not message.data.startswith(STREAM_PREFIX):
        return message.data
    # taken, not sliced: a slice is written with padding that depends on its place, and these bytes are compared
    return _write(_table_of(message.data).take([row]).combine_chunks())


@lru_cache(maxsize=1)
def _table_of(data: bytes) -> pa.Table:
    # rejected rows of one stream are asked for one after the other
    schema, messages = _open(data)
    return _table(schema, messages)


# ---- out ------------------------------------------------------------------------------------------------------------


def _write(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def encode_ticks_stream(
    columns: Mapping[str, Any], instruments: Sequence[str], *, source: str, channel: int = 0, session: int = 0
) -> bytes:
    """Build a form 4 stream, as a producer sends it.

    `columns` holds the numeric columns of form 4 by name (`sequence`, `kind`, `ts_event`, `price`, `size` required; `action`,
    `ask_price`, `ask_size`, `conditions`, `trade_id` default to zeros), `instruments` one text per row. Nothing is judged here.
    """
    rows = len(instruments)
    metadata = {"version": VERSION, "source": source, "channel": str(channel), "session": str(session)}
    optional = ("action", "ask_price", "ask_size", "conditions", "trade_id")
    arrays = [
        pa.array(instruments, pa.utf8())
        if field.name == "instrument"
        else _array(
            np.zeros(rows) if field.name in optional and field.name not in columns else columns[field.name], field
        )
        for field in SCHEMA_IN
    ]
    return _write(pa.Table.from_arrays(arrays, schema=SCHEMA_IN.with_metadata(metadata)))


def _array(values: Any, field: pa.Field) -> pa.Array:
    width = pa.int32() if field.type == pa.date32() else field.type
    return pa.array(np.asarray(values, width.to_pandas_dtype()), width).view(field.type)


def encode_numbered_ticks(
    ticks: Ticks, *, epochs: Column, sequences: Column, batch: int, pub_seq: int, epoch: int
) -> bytes:
    """Build the `integrated/ticks` message of a stored batch.

    `epochs` and `sequences` hold each row's place in its instrument's stream; `batch`, `pub_seq` and `epoch` name the message.
    """
    own = {"epoch": epochs, "sequence": sequences}
    arrays = [_array(own.get(field.name, getattr(ticks, field.name, None)), field) for field in SCHEMA_OUT]
    metadata = {"version": VERSION, "batch": str(batch), "pub_seq": str(pub_seq), "epoch": str(epoch)}
    return _write(pa.Table.from_arrays(arrays, schema=SCHEMA_OUT.with_metadata(metadata)))


@dataclass(slots=True, frozen=True)
class NumberedTicks:
    """An `integrated/ticks` message as a client sees it: columns by name, `session_date` in days since 1970-01-01."""

    batch: int
    pub_seq: int
    epoch: int
    columns: dict[str, Column]


def decode_numbered_ticks(data: bytes) -> NumberedTicks:
    """Read an `integrated/ticks` message; SkippableError when it is not one."""
    try:
        table = ipc.open_stream(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _invalid(error) from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"version") != VERSION.encode():
        raise SkippableError(f"version is {VERSION}, was {metadata.get(b'version')!r}", code=UNSUPPORTED_VERSION)
    if not table.schema.equals(SCHEMA_OUT):
        raise SkippableError("columns are not those of integrated/ticks", code=ARROW_SCHEMA)
    columns = {name: table.column(name).to_numpy() for name in SCHEMA_OUT.names}
    columns["session_date"] = columns["session_date"].astype("datetime64[D]").astype(np.int32)
    return NumberedTicks(int(metadata[b"batch"]), int(metadata[b"pub_seq"]), int(metadata[b"epoch"]), columns)
