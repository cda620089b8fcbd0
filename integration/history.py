"""The one way to read stored ticks: head, indexed slices and lake as one whole, each tick once, while days move between them.

A reader first locks the manifest against the move (`archive`), then takes one snapshot of manifest and rows; the lake is read
afterwards, at the versions which that manifest names. No transaction is open while a caller takes its time over what it is given.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from integration import lake
from integration.lake import DAY_NS, Columns, Identity, columns_of
from integration.models import LakeDay
from integration.rows import LAYOUTS

# PostgreSQL gives at most 1 GB in one value; a row is at most 112 bytes of it, and at least 100 bytes of its table.
_BYTES_A_READ: Final = 512 * 1024**2
_PAGES_A_READ: Final = 4_096  # about 270,000 rows
_PAGE: Final = 8_192
_SLICES_A_READ: Final = 128  # bounds the locks of one statement
_HELD_BYTES: Final = 256 * 1024**2  # rows of slices beyond this wait on disk
_PG_EPOCH_DAY: Final = 10_957
_BATCH_TIMES: Final = ("ts_received", "ts_processed")


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice as the catalogue of slices has it."""

    relation: str
    start: int
    end: int
    size: int  # bytes on disk


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for: a table, one instrument or all, times from `start_ns` to before `end_ns`, the columns in order."""

    table: str
    instrument_id: int | None
    start_ns: int
    end_ns: int
    columns: tuple[str, ...]


def read_ticks(
    table: str, instrument_id: int | None, start_ns: int, end_ns: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read ticks of `trade` or `quote` with start_ns <= ts_event < end_ns (ns UTC) into one Arrow table.

    One instrument's come in order of `ts_event`. Prices and sizes are nanos; `lake.columns_of` names the columns.
    ValueError for a table or column that there is not.
    """
    batches = list(stream_ticks(table, instrument_id, start_ns, end_ns, columns))
    return pa.Table.from_batches(batches, lake.schema_of(table, columns))


def stream_ticks(
    table: str, instrument_id: int | None, start_ns: int, end_ns: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Read ticks as `read_ticks` does, in record batches day by day: any range in bounded memory.

    Rows are those of the moment at which the first batch is asked for. Of all instruments, a day's rows are in order of
    (instrument, ts_event) as far as they come from the lake; rows that are still in slices follow in order of their slices.
    """
    if table not in LAYOUTS:
        raise ValueError(f"ticks are trade or quote, was {table!r}")
    chosen = tuple(columns or columns_of(table))
    if strange := [name for name in chosen if name not in columns_of(table)]:
        raise ValueError(f"{table} has no such column, was {', '.join(map(repr, strange))}")
    return _stream(Query(table, instrument_id, start_ns, end_ns, chosen))


def _stream(query: Query) -> Iterator[pa.RecordBatch]:
    with ExitStack() as held:
        rows = held.enter_context(_Held(query))
        with _snapshot() as wrapper:
            manifest = _days_between(wrapper, query)
            for found in _rows_of_slices(wrapper, query):
                rows.add(found)
        # From here on nothing of PostgreSQL is needed: a day in the lake keeps its files for a week.
        find = lake.version_for(query.table, manifest) if manifest else None
        days = {row.day: row for row in manifest}
        for day in sorted({*days, *rows.days}):
            here = days.get(day)
            version = find(here) if find is not None and here is not None else None
            yield from _day(query, day, version, rows.of(day))


def _day(
    query: Query, day: date, version: lake.Version | None, late: Sequence[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Give a day's rows of the lake, then of the slices; one instrument's are merged in order of time."""
    needed = _needed(query)
    found: Iterator[pa.Table] = iter(())
    if version is not None:
        found = lake.read_day(
            version, day, needed, instrument_id=query.instrument_id, start_ns=query.start_ns, end_ns=query.end_ns
        )
    if query.instrument_id is None or not late:
        for table in found:
            yield from table.select(list(query.columns)).cast(_schema(query)).to_batches()
        late = [_in_order(batch) for batch in late] if query.instrument_id is not None else late
    else:
        schema = lake.schema_of(query.table, needed)
        tables = [table.cast(schema) for table in found] + [pa.Table.from_batches(late, schema)]
        late = [_in_order(_one_batch(pa.concat_tables(tables)))]
    for batch in late:
        yield batch.select(list(query.columns)).replace_schema_metadata(_schema(query).metadata)


def _schema(query: Query) -> pa.Schema:
    return lake.schema_of(query.table, query.columns)


def _needed(query: Query) -> tuple[str, ...]:
    """Give the columns to read: what is wanted, and the time by which rows are put into days and in order."""
    return tuple(dict.fromkeys((*query.columns, "ts_event")))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    whole = table.combine_chunks()
    return whole.to_batches()[0] if whole.num_rows else pa.RecordBatch.from_pylist([], whole.schema)


def _in_order(batch: pa.RecordBatch) -> pa.RecordBatch:
    ts = batch.column("ts_event").to_numpy()
    if len(ts) < 2 or bool((ts[1:] >= ts[:-1]).all()):
        return batch
    return batch.take(pa.array(np.argsort(ts, kind="stable")))


class _Held:
    """Rows of slices by UTC day, in the order they were read; on disk once they are many."""

    def __init__(self, query: Query) -> None:
        self.schema = lake.schema_of(query.table, _needed(query))
        self.days: dict[date, list[pa.RecordBatch]] = {}
        self.is_one_instrument = query.instrument_id is not None
        self.spool = tempfile.NamedTemporaryFile(prefix="mdi-ticks-")  # noqa: SIM115 - closed by __exit__
        self.bytes = 0

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.days.clear()
        self.spool.close()

    def add(self, found: pa.RecordBatch) -> None:
        """Keep rows; they may belong to more than one day."""
        for day, part in _by_day(found):
            self.bytes += part.nbytes
            self.days.setdefault(day, []).append(part if self.bytes <= _HELD_BYTES else self._on_disk(part))

    def of(self, day: date) -> list[pa.RecordBatch]:
        """Give a day's rows and forget them; an instrument's as one batch."""
        parts = self.days.get(day, [])
        self.days[day] = []
        if self.is_one_instrument and len(parts) > 1:
            return [_one_batch(pa.Table.from_batches(parts, self.schema))]
        return parts

    def _on_disk(self, part: pa.RecordBatch) -> pa.RecordBatch:
        self.spool.seek(0, 2)
        start = self.spool.tell()
        with pa.ipc.new_stream(self.spool, part.schema) as writer:
            writer.write_batch(part)
        self.spool.flush()
        # A view of the file's pages: the kernel keeps or drops them as memory allows.
        mapped = pa.memory_map(self.spool.name, "r")
        mapped.seek(start)
        return pa.ipc.open_stream(mapped).read_next_batch()


def _by_day(found: pa.RecordBatch) -> Iterator[tuple[date, pa.RecordBatch]]:
    if not found.num_rows:
        return
    numbers = found.column("ts_event").to_numpy() // DAY_NS
    if numbers[0] == numbers[-1] and bool((numbers == numbers[0]).all()):
        yield lake.day_of(int(numbers[0]) * DAY_NS), found
        return
    for number in np.unique(numbers).tolist():
        yield lake.day_of(number * DAY_NS), found.filter(pa.array(numbers == number))


# -- the snapshot -----------------------------------------------------------------------------------------------------


@contextmanager
def _snapshot() -> Iterator[BaseDatabaseWrapper]:
    """Give a connection in a transaction that sees one moment, and whose moment no move of a day can divide.

    TRUNCATE is seen by older snapshots too: so the lock comes first, and LOCK TABLE takes no snapshot.
    """
    wrapper = connections[DEFAULT_DB_ALIAS]
    is_own = wrapper.in_atomic_block
    if is_own:  # a transaction that has begun has its snapshot, or will take one too early
        wrapper = wrapper.copy()
    try:
        with _atomic(wrapper), wrapper.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute("LOCK TABLE integration_lakeday IN ACCESS SHARE MODE")
            yield wrapper
    finally:
        if is_own:
            wrapper.close()


@contextmanager
def _atomic(wrapper: BaseDatabaseWrapper) -> Iterator[None]:
    """Begin and end a transaction on a connection that Django may not know by its alias."""
    if wrapper is connections[DEFAULT_DB_ALIAS]:
        with transaction.atomic():
            yield
        return
    wrapper.set_autocommit(False)
    try:
        yield
    finally:
        wrapper.rollback()


def _days_between(wrapper: BaseDatabaseWrapper, query: Query) -> list[LakeDay]:
    names = ("table", "day", "generation", "delta_version", "row_count", "checksum", "archived_at")
    low, high = lake.day_of(_clamped(query.start_ns)), lake.day_of(_clamped(query.end_ns - 1))
    with wrapper.cursor() as cursor:
        cursor.execute(
            'SELECT "table", day, generation, delta_version, row_count, checksum, archived_at FROM integration_lakeday'
            ' WHERE "table" = %s AND day BETWEEN %s AND %s ORDER BY day',
            [query.table, low, high],
        )
        return [LakeDay(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def _clamped(ns: int) -> int:
    return max(0, min(ns, 2**63 - 1))


# -- rows of slices ---------------------------------------------------------------------------------------------------


def slices_between(wrapper: BaseDatabaseWrapper, table: str, start_ns: int, end_ns: int) -> list[Piece]:
    """Give the slices that may hold times from `start_ns` to before `end_ns`, oldest first, with their size on disk."""
    with wrapper.cursor() as cursor:
        cursor.execute(
            "SELECT start, \"end\", coalesce(pg_relation_size(to_regclass(format('%%I', %s || start))), 0) FROM integration_slice"
            ' WHERE "table" = %s AND start < %s AND "end" > %s ORDER BY start',
            [f"integration_{table}_", table, _clamped(end_ns), _clamped(start_ns)],
        )
        return [Piece(f"integration_{table}_{start}", start, end, size) for start, end, size in cursor.fetchall()]


def _rows_of_slices(wrapper: BaseDatabaseWrapper, query: Query) -> Iterator[pa.RecordBatch]:
    pieces = [piece for piece in slices_between(wrapper, query.table, query.start_ns, query.end_ns) if piece.size]
    if query.instrument_id is None:
        for piece in pieces:
            for pages in page_ranges(piece):
                condition = _within(query, piece)
                yield _batch(wrapper, query, pages_of(wrapper, query.table, piece, _stored(query), pages, condition))
        return
    for group in _groups(pieces):
        low, high = max(query.start_ns, group[0].start), min(query.end_ns, group[-1].end)
        condition = sql.SQL("instrument_id = {} AND ts_event >= {} AND ts_event < {}").format(
            sql.Literal(query.instrument_id), sql.Literal(low), sql.Literal(high)
        )
        parent = f"integration_{query.table}"
        yield _batch(wrapper, query, _fetch(wrapper, query.table, parent, _stored(query), condition))


def _stored(query: Query) -> tuple[str, ...]:
    """Give the columns that PostgreSQL's rows must give for this query."""
    names = [name for name in _needed(query) if name not in _BATCH_TIMES]
    if len(names) < len(_needed(query)):
        names.append("batch_id")
    return tuple(dict.fromkeys(names))


def _within(query: Query, piece: Piece) -> sql.Composable:
    if query.start_ns <= piece.start and query.end_ns >= piece.end:
        return sql.SQL("true")
    return sql.SQL("ts_event >= {} AND ts_event < {}").format(
        sql.Literal(_clamped(query.start_ns)), sql.Literal(_clamped(query.end_ns))
    )


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Put neighbours together so far as one statement may touch them and one value hold what they give."""
    group: list[Piece] = []
    for piece in pieces:
        if group and (len(group) == _SLICES_A_READ or sum(one.size for one in group) + piece.size > _BYTES_A_READ):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def page_ranges(piece: Piece) -> Iterator[tuple[int, int]]:
    """Give ranges of pages that together are the whole slice."""
    pages = -(-piece.size // _PAGE)
    for first in range(0, pages, _PAGES_A_READ):
        yield first, first + _PAGES_A_READ


def pages_of(
    wrapper: BaseDatabaseWrapper,
    table: str,
    piece: Piece,
    columns: Sequence[str],
    pages: tuple[int, int],
    condition: sql.Composable | None = None,
) -> Columns:
    """Read the rows on some pages of a slice, in the order they were stored."""
    here = sql.SQL("ctid >= {}::tid AND ctid < {}::tid AND {}").format(
        sql.Literal(f"({pages[0]},0)"), sql.Literal(f"({pages[1]},0)"), condition or sql.SQL("true")
    )
    return _fetch(wrapper, table, piece.relation, columns, here)


def _fetch(
    wrapper: BaseDatabaseWrapper, table: str, relation: str, columns: Sequence[str], condition: sql.Composable
) -> Columns:
    """Read columns as one binary value: an eighth of the time that rows take."""
    parts = sql.SQL(" || ").join(
        sql.SQL("{}({})").format(sql.SQL(_sender(table, name)), sql.Identifier(name)) for name in columns
    )
    statement = sql.SQL("SELECT string_agg({}, '') FROM {} WHERE {}").format(parts, sql.Identifier(relation), condition)
    wrapper.ensure_connection()
    with wrapper.wrap_database_errors, psycopg.Cursor(wrapper.connection) as cursor:
        cursor.format = psycopg.pq.Format.BINARY
        cursor.execute(statement)
        row = cursor.fetchone()
    data = row[0] if row and row[0] is not None else b""
    rows = np.frombuffer(data, np.dtype([(name, f">i{lake.width_of(table, name)}") for name in columns]))
    found: Columns = {name: rows[name].astype(f"<i{lake.width_of(table, name)}") for name in columns}
    if "session_date" in found:
        found["session_date"] += _PG_EPOCH_DAY
    return found


def _sender(table: str, name: str) -> str:
    if name == "session_date":
        return "date_send"
    return f"int{lake.width_of(table, name)}send"


def _batch(wrapper: BaseDatabaseWrapper, query: Query, found: Columns) -> pa.RecordBatch:
    needed = _needed(query)
    if any(name in _BATCH_TIMES for name in needed):
        add_batch_times(wrapper, found)
    return lake.batch_of(query.table, {name: found[name] for name in needed})


def add_batch_times(wrapper: BaseDatabaseWrapper, found: Columns) -> None:
    """Add when each row's batch was received and processed (ns UTC); 0 where the batch is gone."""
    ids, place = np.unique(found["batch_id"], return_inverse=True)
    times: dict[int, tuple[int, int]] = {}
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT id, ts_received, ts_processed FROM integration_batch WHERE id = ANY(%s)", [ids.tolist()])
        times = {row[0]: (row[1], row[2]) for row in cursor.fetchall()}
    pairs: npt.NDArray[Any] = np.array([times.get(id_, (0, 0)) for id_ in ids.tolist()], np.int64).reshape(-1, 2)
    for at, name in enumerate(_BATCH_TIMES):
        found[name] = pairs[place, at]


# -- by identity ------------------------------------------------------------------------------------------------------

_CONTENT: Final = {
    "trade": ("instrument_id", "ts_event", "price", "size", "", "", "conditions", "trade_id"),
    "quote": ("instrument_id", "ts_event", "bid", "bid_size", "ask", "ask_size", "conditions", ""),
}


def archived_ticks(keys: Sequence[Identity], low: int, high: int) -> dict[Identity, tuple[int, ...]]:
    """Look identities up among the days in the lake that hold times from `low` to `high`; give their content as a consumer compares it.

    Ask PostgreSQL's rows first: a day that moves in between is then found here. Reads a day's sequences, and all else only where one fits.
    """
    days = LakeDay.objects.filter(day__range=(lake.day_of(_clamped(low)), lake.day_of(_clamped(high))))
    found: dict[Identity, tuple[int, ...]] = {}
    for table, (kind, _) in LAYOUTS.items():
        manifest = [row for row in days if row.table == table]
        find = lake.version_for(table, manifest) if manifest else None
        for row in manifest:
            assert find is not None  # noqa: S101 - there is a manifest
            found.update(_archived(table, kind, lake.rows_with(find(row), row.day, keys), low, high))
    return found


def _archived(
    table: str, kind: int, rows: Iterator[Columns], low: int, high: int
) -> Iterator[tuple[Identity, tuple[int, ...]]]:
    for columns in rows:
        for at in np.flatnonzero((columns["ts_event"] >= low) & (columns["ts_event"] <= high)).tolist():
            action = (int(columns["flags"][at]) & 12) >> 2
            content = [int(columns[name][at]) if name else 0 for name in _CONTENT[table]]
            source_id, channel, session, sequence = (int(columns[name][at]) for name in lake.IDENTITY)
            yield (source_id, channel, session, sequence), (kind, action, *content)
