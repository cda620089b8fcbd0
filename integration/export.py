"""Rows to people's formats: JSON lines, CSV, Parquet, Arrow; prices exact in each of them. Knows no Django and opens nothing.

Nanos become decimal128(19, 9) in Arrow and Parquet and decimal text in JSON and CSV; times become timestamps in ns, and ISO text.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
import pyarrow as pa

from integration.market.times import text_from_ns
from integration.market.units import text_from_nanos

FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
PRICES: Final = frozenset({"price", "size", "bid", "bid_size", "ask", "ask_size", "open", "high", "low", "close"})
TIMES: Final = frozenset(
    {"ts_event", "ts_publish", "ts_received", "ts_processed", "start", "end", "first_ts", "last_ts"}
)
NANOS_TYPE: Final = pa.decimal128(19, 9)
TIME_TYPE: Final = pa.timestamp("ns", "UTC")


def typed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give a batch of nanos and ns with the types that say what they are; the values stay."""
    columns = [_typed(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _typed(name: str, column: pa.Array) -> pa.Array:
    if name in PRICES and pa.types.is_int64(column.type):
        values = column.to_numpy(zero_copy_only=False)
        halves = np.empty((len(values), 2), np.int64)  # little-endian 128 bits: the low half, then its sign
        halves[:, 0], halves[:, 1] = values, values >> 63
        return pa.Array.from_buffers(NANOS_TYPE, len(values), [None, pa.py_buffer(halves.tobytes())])
    if name in TIMES and pa.types.is_int64(column.type):
        return column.cast(TIME_TYPE)
    return column


def write(format_: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], sink: BinaryIO) -> int:
    """Write batches of `schema` (nanos and ns) in a format of `FORMATS`; give the number of rows."""
    if format_ in ("jsonl", "csv"):
        return _write_text(format_, schema.names, batches, sink)
    return _write_columns(format_, schema, batches, sink)


def _write_columns(format_: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], sink: BinaryIO) -> int:
    shown, rows = typed(pa.RecordBatch.from_pylist([], schema)).schema, 0
    with _writer(format_, shown, sink) as writer:
        for batch in batches:
            writer.write_batch(typed(batch).cast(shown))
            rows += batch.num_rows
    return rows


def _writer(format_: str, schema: pa.Schema, sink: BinaryIO) -> Any:
    if format_ == "arrow":
        return pa.ipc.new_stream(sink, schema)
    import pyarrow.parquet as pq

    return pq.ParquetWriter(sink, schema, compression="zstd")


def _write_text(format_: str, names: list[str], batches: Iterable[pa.RecordBatch], sink: BinaryIO) -> int:
    rows = 0
    if format_ == "csv":
        sink.write(_line(names))
    for batch in batches:
        rows += batch.num_rows
        found = zip(*(_texts(name, column) for name, column in zip(names, batch.columns, strict=True)), strict=True)
        if format_ == "csv":
            sink.write(b"".join(_line(row) for row in found))
        else:
            sink.write(b"".join(orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE) for row in found))  # fmt: skip
    return rows


def _line(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _texts(name: str, column: pa.Array) -> Iterator[Any]:
    values = column.to_pylist()
    if name in PRICES:
        return map(text_from_nanos, values)
    if name in TIMES:
        return map(text_from_ns, values)
    return map(_plain, values)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value else "0"
    return value.isoformat() if hasattr(value, "isoformat") else value
