"""Ticks as bytes: PostgreSQL binary COPY buffers built by numpy, and the Arrow payload of a batch row. Pure."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from integration.market.ticks import QUOTE, TICK_COLUMNS, TRADE, Ticks

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
_TRAILER: Final = b"\xff\xff"
COPY_HEAD: Final = len(_SIGNATURE)  # bytes before the first row
COPY_TAIL: Final = len(_TRAILER)  # bytes after the last
_ROWS_A_PIECE: Final = 2_048
_PG_EPOCH_DAY: Final = 10_957  # 2000-01-01 in days since 1970-01-01

# Column of the table -> (column of Ticks or None for the batch id, width in bytes).
Layout = dict[str, tuple[str | None, int]]
_SHARED: Final[Layout] = {
    "ts_event": ("ts_event", 8),
    "ts_publish": ("ts_publish", 8),
    "instrument_id": ("instrument_id", 4),
    "source_id": ("source_id", 4),
    "channel": ("channel", 4),
    "session": ("session", 8),
    "sequence": ("sequence", 8),
    "batch_id": (None, 8),
    "conditions": ("conditions", 4),
    "flags": ("flags", 4),
    "session_date": ("session_date", 4),
}
TRADE_LAYOUT: Final[Layout] = {**_SHARED, "price": ("price", 8), "size": ("size", 8), "trade_id": ("trade_id", 8)}
QUOTE_LAYOUT: Final[Layout] = {
    **_SHARED, "bid": ("price", 8), "bid_size": ("size", 8), "ask": ("ask_price", 8), "ask_size": ("ask_size", 8)
}  # fmt: skip
LAYOUTS: Final = {"trade": (TRADE, TRADE_LAYOUT), "quote": (QUOTE, QUOTE_LAYOUT)}

PAYLOAD_COLUMNS: Final = tuple(name for name in TICK_COLUMNS if name not in ("message", "row"))
_PAYLOAD_TYPES: Final = {name: pa.from_numpy_dtype(TICK_COLUMNS[name]) for name in PAYLOAD_COLUMNS}
_CONSTANTS: Final = b"constants"


def copy_statement(table: str) -> str:
    """Give the COPY statement for `trade` or `quote`."""
    return f"COPY integration_{table} ({', '.join(LAYOUTS[table][1])}) FROM STDIN (FORMAT BINARY)"


def _record_dtype(layout: Layout) -> np.dtype[Any]:
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for name, (_, width) in layout.items():
        fields += [(f"{name}_length", ">i4"), (name, f">i{width}")]
    return np.dtype(fields)


def _template(layout: Layout) -> npt.NDArray[Any]:
    """Give one row with its lengths filled in; copied for every batch."""
    row = np.zeros(1, _record_dtype(layout))
    row["fields"] = len(layout)
    for name, (_, width) in layout.items():
        row[f"{name}_length"] = width
    return row


_TEMPLATES: Final = {table: _template(layout) for table, (_, layout) in LAYOUTS.items()}


def copy_pieces(table: str, ticks: Ticks, batch_id: int) -> Iterator[bytes]:
    """Build the COPY data of ticks that all belong to `table` (at least one), piece by piece: PostgreSQL works on one while we build the next."""
    for start in range(0, len(ticks), _ROWS_A_PIECE):
        part = slice(start, start + _ROWS_A_PIECE)
        rows = np.repeat(_TEMPLATES[table], len(ticks.kind[part]))
        for name, (column, _) in LAYOUTS[table][1].items():
            rows[name] = batch_id if column is None else getattr(ticks, column)[part]
        rows["session_date"] -= _PG_EPOCH_DAY
        is_first, is_last = start == 0, start + _ROWS_A_PIECE >= len(ticks)
        yield b"".join((_SIGNATURE if is_first else b"", rows.tobytes(), _TRAILER if is_last else b""))


def pack_payload(ticks: Ticks) -> bytes:
    """Write ticks as an Arrow stream for the batch row; no ticks are no bytes.

    A column of one value (source, channel, session, most flags) is kept once, in the schema's metadata: that is over half of a
    payload, which is written to disk with every batch.
    """
    if not len(ticks):
        return b""
    columns = {name: getattr(ticks, name) for name in PAYLOAD_COLUMNS}
    constants = {name: int(column[0]) for name, column in columns.items() if (column == column[0]).all()}
    constants["rows"] = len(ticks)
    varying = [name for name in PAYLOAD_COLUMNS if name not in constants]
    fields = [pa.field(name, _PAYLOAD_TYPES[name], nullable=False) for name in varying]
    schema = pa.schema(fields, metadata={_CONSTANTS: msgspec.json.encode(constants)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array(columns[name]) for name in varying], schema=schema))
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def unpack_payload(payload: bytes | memoryview) -> Ticks:
    """Read what `pack_payload` wrote; columns are read-only, most are views of the payload."""
    if not len(payload):
        return Ticks.zeros(0)
    stream = pa.ipc.open_stream(payload)
    constants = msgspec.json.decode(stream.schema.metadata[_CONSTANTS], type=dict[str, int])
    rows = constants.pop("rows")
    varying = {
        name: column.to_numpy() for name, column in zip(stream.schema.names, stream.read_next_batch(), strict=True)
    }
    same = {name: np.full(rows, value, TICK_COLUMNS[name]) for name, value in constants.items()}
    empty = np.zeros(rows, np.int32)
    return Ticks(**varying, **same, message=empty, row=empty)
