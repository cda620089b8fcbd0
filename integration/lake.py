"""Closed days as columns: one Delta Lake table each for trades and quotes, partitioned by day, sorted by (instrument, time).

Writes a day whole, by predicate and with its generation as the application's transaction; reads what a manifest row names, never
"whatever is newest". When a day moves is decided in `archive`; what readers see of both worlds is put together in `history`.
"""

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from django.conf import settings
from django.db import connection

from integration.market.errors import FatalError
from integration.models import LakeDay
from integration.rows import LAYOUTS

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, RemoveAction
    from pyarrow.fs import FileSystem
    from pyarrow.parquet import FileMetaData

Columns = dict[str, npt.NDArray[Any]]
Identity = tuple[int, int, int, int]

IDENTITY: Final = ("source_id", "channel", "session", "sequence")

DAY_NS: Final = 86_400_000_000_000
KEPT_HOURS: Final = 7 * 24  # files that no version needs any more stay this long: a reader may be on them
_ROW_GROUP: Final = (
    131_072  # an instrument's day is read by row groups: smaller ones read less, larger ones pack better
)
_ROWS_A_FILE: Final = 4_000_000
_FOOTERS_KEPT: Final = 512
_BATCH_TIMES: Final = ("ts_received", "ts_processed")
# Running numbers and times: deltas of 64 bits pack several times better than a dictionary.
_DELTA_PACKED: Final = ("ts_event", "ts_publish", "ts_received", "ts_processed", "sequence", "trade_id")


def columns_of(table: str) -> tuple[str, ...]:
    """Name the columns of a tick in the lake: the table's own, and the two times of its batch (0 where the batch is gone)."""
    return (*LAYOUTS[table][1], *_BATCH_TIMES)


def width_of(table: str, column: str) -> int:
    """Give the bytes of a column: 4 or 8."""
    return 8 if column in _BATCH_TIMES else LAYOUTS[table][1][column][1]


def schema_of(table: str, columns: Sequence[str] | None = None) -> pa.Schema:
    """Give the Arrow schema of ticks with these columns (all by default): int64 and int32, `session_date` a date."""
    return pa.schema(
        [pa.field(name, _type_of(table, name), nullable=False) for name in columns or columns_of(table)],
        metadata={"table": table},
    )


def _type_of(table: str, name: str) -> pa.DataType:
    if name == "session_date":
        return pa.date32()
    return pa.int64() if width_of(table, name) == 8 else pa.int32()


def batch_of(table: str, columns: Columns) -> pa.RecordBatch:
    """Make a record batch of numpy columns, in their order; nothing is copied."""
    schema = schema_of(table, tuple(columns))
    return pa.record_batch([pa.array(column).cast(kind.type) if kind.type == pa.date32() else pa.array(column)
                            for column, kind in zip(columns.values(), schema, strict=True)], schema=schema)  # fmt: skip


def columns_in(batch: pa.RecordBatch) -> Columns:
    """Give the numpy columns of a record batch; dates are days since 1970."""
    return {
        name: (column.cast(pa.int32()) if column.type == pa.date32() else column).to_numpy(zero_copy_only=False)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


def day_of(ts: int) -> date:
    """Give the UTC day of a time (ns)."""
    return date.fromordinal(date(1970, 1, 1).toordinal() + ts // DAY_NS)


def start_of(day: date) -> int:
    """Give the first nanosecond of a UTC day."""
    return (day.toordinal() - date(1970, 1, 1).toordinal()) * DAY_NS


# -- what rows add up to ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """Count, sum of prices and checksum of rows in any order; the parts of a whole may be added. All modulo 2^64 but the count."""

    rows: int = 0
    price_sum: int = 0
    checksum: int = 0

    def add(self, table: str, columns: Columns) -> None:
        """Add rows that have every column of the table."""
        price = columns["bid" if table == "quote" else "price"]
        self.rows += len(price)
        with np.errstate(over="ignore"):
            self.price_sum = (self.price_sum + int(price.view(np.uint64).sum())) % 2**64
        for start in range(0, len(price), 65_536):
            part = [columns[name][start : start + 65_536] for name in columns_of(table)]
            self.checksum = (self.checksum + _checksum(part)) % 2**64

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.rows + other.rows,
            (self.price_sum + other.price_sum) % 2**64,
            (self.checksum + other.checksum) % 2**64,
        )

    @property
    def stored_checksum(self) -> int:
        """The checksum as PostgreSQL's bigint holds it."""
        return self.checksum - 2**64 if self.checksum >= 2**63 else self.checksum


def _checksum(columns: Sequence[npt.NDArray[Any]]) -> int:
    """Mix each row's columns, in order, into 64 bits and add the rows up: any changed, lost, doubled or exchanged value shows."""
    mixed = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        mixed ^= column.astype(np.int64).view(np.uint64)
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
        mixed ^= mixed >> np.uint64(32)
    return int(mixed.sum())


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class LakeFile:
    """One Parquet file of a day, with the instruments it may hold."""

    path: str
    rows: int
    first_instrument: int
    last_instrument: int


@dataclass(slots=True, frozen=True)
class Version:
    """One version of a lake table: its files by day. Immutable, so that threads share it."""

    delta: "DeltaTable"
    number: int
    files: dict[date, tuple[LakeFile, ...]]
    filesystem: "FileSystem"
    generations: dict[date, int] = field(default_factory=dict)


class _Kept:
    """Versions and Parquet footers of this process; both never change once written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.newest: dict[str, Version] = {}
        self.footers: OrderedDict[tuple[str, str], FileMetaData] = OrderedDict()


_kept = _Kept()


def address_of(table: str) -> str:
    """Give the address of a lake table: below `MDI_LAKE_URL`, else the folder `lake` of the data folder."""
    root = settings.MDI.lake_url.rstrip("/") or str(settings.MDI.var_dir / "lake")
    return f"{root}/{table}"


def open_table(table: str) -> "DeltaTable | None":
    """Open a lake table at its newest version; None when it was never written."""
    from deltalake import DeltaTable

    address = address_of(table)
    return DeltaTable(address) if DeltaTable.is_deltatable(address) else None


def open_or_create(table: str, schema: pa.Schema, partition: str) -> "DeltaTable":
    """Open a lake table, made on first use."""
    from deltalake import DeltaTable

    address = address_of(table)
    if not urlsplit(address).scheme:
        Path(address).mkdir(parents=True, exist_ok=True)
    return DeltaTable.create(
        address,
        schema=schema.remove_metadata(),
        mode="ignore",
        partition_by=partition,
        name=f"mdi_{table}",
        configuration={"delta.deletedFileRetentionDuration": f"interval {KEPT_HOURS // 24} days"},
    )


def database_name() -> str:
    """Name this database among all that might be pointed at the same lake."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.system_identifier || '.' || d.oid FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()"
        )
        return str(cursor.fetchone()[0])


def transaction_of(table: str, day: date) -> str:
    """Name the application's transaction of a table's day; its version is the generation that the lake holds."""
    return f"mdi:{database_name()}:{table}:{day}"


# -- writing ----------------------------------------------------------------------------------------------------------


class DayWriter:
    """One attempt to write a table's day. Everything goes through one handle, so that another writer in between is an error, not a loss."""

    def __init__(self, table: str, day: date) -> None:
        self.table, self.day = table, day
        self.schema = schema_of(table).append(pa.field("day", pa.date32(), nullable=False)).remove_metadata()
        self.transaction = transaction_of(table, day)
        self.delta = open_or_create(table, self.schema, "day")
        self.written: int | None = self.delta.transaction_version(self.transaction)

    def refuse_strange_rows(self, manifest: LakeDay | None) -> None:
        """Raise FatalError when the lake holds this day and this database knows nothing of it: it is another database's lake."""
        if manifest is None and self.written is None and _files(self.delta, self.day):
            raise FatalError(
                f"the lake holds {self.table} of {self.day} from another database, at {address_of(self.table)}; "
                "give this database a lake of its own (MDI_LAKE_URL)",
                code="lake_of_another",
            )

    def generation_after(self, manifest: LakeDay | None) -> int:
        """Give the number of the next write: above what the manifest names and above what a crash has left."""
        return max(manifest.generation if manifest else 0, self.written or 0) + 1

    def write(self, generation: int, batches: Iterable[pa.RecordBatch]) -> int:
        """Replace the day by these rows (sorted, without the day column) and give the version that holds them, safe on the disk."""
        from deltalake import CommitProperties, Transaction

        before = int(self.delta.version())
        files: list[AddAction | RemoveAction] = [self._write_file(part) for part in _by_size(batches)]
        self.delta.create_write_transaction(
            files,
            "overwrite",
            self.schema,
            partition_by="day",
            partition_filters=[("day", "=", str(self.day))],
            commit_properties=CommitProperties(app_transactions=[Transaction(self.transaction, generation)]),
        )
        version = self._version_with(generation, before + 1)
        _flush(self.table, [*(file.path for file in files), f"_delta_log/{version:020}.json"])
        return version

    def _version_with(self, generation: int, first: int) -> int:
        """Find the version that our commit became: other days may have been written between."""
        from deltalake import DeltaTable

        newest = int(DeltaTable(address_of(self.table)).version())
        for number in range(first, newest + 1):
            at = DeltaTable(address_of(self.table), version=number)
            if at.transaction_version(self.transaction) == generation:
                return number
        raise FatalError(f"the lake lost generation {generation} of {self.table} of {self.day}", code="lake_differs")

    def _write_file(self, batches: Iterable[pa.RecordBatch]) -> "AddAction":
        """Write one Parquet file. Ours, not the library's writer: that one runs in parallel and does not keep the order of rows."""
        import pyarrow.parquet as pq
        from deltalake.transaction import AddAction

        path = f"day={self.day}/{uuid4()}.parquet"
        schema = schema_of(self.table).remove_metadata()
        filesystem = filesystem_of(self.table, self.delta)
        filesystem.create_dir(f"day={self.day}", recursive=True)
        rows = 0
        lowest: dict[str, int] = {}
        highest: dict[str, int] = {}
        options: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": 1,
            "use_dictionary": [name for name in schema.names if name not in _DELTA_PACKED],
            "column_encoding": {name: "DELTA_BINARY_PACKED" for name in schema.names if name in _DELTA_PACKED},
        }
        with filesystem.open_output_stream(path) as sink, pq.ParquetWriter(sink, schema, **options) as writer:
            for batch in batches:
                part = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                writer.write_table(part, row_group_size=_ROW_GROUP)
                rows += batch.num_rows
                for name in ("instrument_id", "ts_event"):
                    values = batch.column(name).to_numpy()
                    lowest[name] = min(int(values.min()), lowest.get(name, 2**63))
                    highest[name] = max(int(values.max()), highest.get(name, 0))
        facts = {
            "numRecords": rows,
            "minValues": lowest,
            "maxValues": highest,
            "nullCount": dict.fromkeys(schema.names, 0),
        }
        size = filesystem.get_file_info(path).size
        return AddAction(path, size, {"day": str(self.day)}, time.time_ns() // 1_000_000, True, json.dumps(facts))


def _by_size(batches: Iterable[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Split a stream of batches where a file has enough rows; each part must be read before the next is asked for."""
    stream = iter(batches)

    def part(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        rows = first.num_rows
        yield first
        while rows < _ROWS_A_FILE and (batch := next(stream, None)) is not None:
            rows += batch.num_rows
            yield batch

    while (first := next(stream, None)) is not None:
        yield part(first)


def _flush(table: str, paths: Iterable[str]) -> None:
    """Wait until files of a local lake, and their names, are on the disk: the slices that held the same rows go next."""
    address = address_of(table)
    if urlsplit(address).scheme:
        return  # an object store answers when it has stored
    names = {Path(address, path) for path in paths}
    for name in sorted({*names, *(path.parent for path in names), Path(address)}):
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# -- reading ----------------------------------------------------------------------------------------------------------


def version_for(table: str, manifest: Sequence[LakeDay]) -> Callable[[LakeDay], Version]:
    """Give what finds the version to read each of these days from.

    The newest version serves every day that it holds in the generation of the manifest; a day that was written again and not yet
    taken over (a crash in between) is read from the version that the manifest names.
    """
    newest = _newest(table, max((row.delta_version for row in manifest), default=0))
    old: dict[int, Version] = {}

    def find(row: LakeDay) -> Version:
        if _generation(newest, table, row.day) == row.generation:
            return newest
        if row.delta_version not in old:
            old[row.delta_version] = _load(table, row.delta_version)
        return old[row.delta_version]

    return find


def version_at(table: str, number: int) -> Version:
    """Open a lake table at a version."""
    return _load(table, number)


def _newest(table: str, at_least: int) -> Version:
    address = address_of(table)
    with _kept.lock:
        kept = _kept.newest.get(address)
        if kept is None or kept.number < at_least:
            kept = _kept.newest[address] = _load(table, None)
        return kept


def _generation(version: Version, table: str, day: date) -> int:
    if day not in version.generations:
        version.generations[day] = version.delta.transaction_version(transaction_of(table, day)) or 0
    return version.generations[day]


def forget_versions() -> None:
    """Read the lake's log anew at the next use; for tests and after deletions."""
    with _kept.lock:
        _kept.newest.clear()


def _load(table: str, number: int | None) -> Version:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    address = address_of(table)
    try:
        delta = DeltaTable(address, version=number)
    except TableNotFoundError as problem:
        raise FatalError(
            f"the manifest names days of {table}, and there is no lake at {address}", code="lake_missing"
        ) from problem
    return Version(delta, int(delta.version()), _files_by_day(delta), filesystem_of(table, delta))


def filesystem_of(table: str, delta: "DeltaTable") -> "FileSystem":
    """Give the folder or bucket of a lake table as pyarrow sees it."""
    import pyarrow.fs as pa_fs

    address = address_of(table)
    if not urlsplit(address).scheme:
        return pa_fs.SubTreeFileSystem(address, pa_fs.LocalFileSystem())
    from deltalake.fs import DeltaStorageHandler

    handler = DeltaStorageHandler.from_table(delta._table)  # noqa: SLF001 - the library's own dataset does it so
    return pa_fs.PyFileSystem(handler)


def _files_by_day(delta: "DeltaTable") -> dict[date, tuple[LakeFile, ...]]:
    actions = pa.table(delta.get_add_actions(flatten=True))
    if not actions.num_rows:
        return {}
    names = ("partition.day", "path", "num_records", "min.instrument_id", "max.instrument_id")
    files: dict[date, list[LakeFile]] = {}
    for day, *facts in zip(*(actions[name].to_pylist() for name in names), strict=True):
        files.setdefault(day, []).append(LakeFile(*facts))
    return {day: tuple(sorted(found, key=lambda file: file.first_instrument)) for day, found in files.items()}


def _files(delta: "DeltaTable", day: date) -> tuple[LakeFile, ...]:
    return _files_by_day(delta).get(day, ())


def read_day(
    version: Version,
    day: date,
    columns: Sequence[str],
    *,
    instrument_id: int | None = None,
    start_ns: int = 0,
    end_ns: int = 2**63 - 1,
) -> Iterator[pa.Table]:
    """Give a day's rows in pieces of a row group, in order of (instrument, time), as the lake holds them at this version."""
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys((*columns, "instrument_id", "ts_event")))
    is_whole = start_ns <= start_of(day) and end_ns >= start_of(day) + DAY_NS
    for file in version.files.get(day, ()):
        if instrument_id is not None and not file.first_instrument <= instrument_id <= file.last_instrument:
            continue
        with version.filesystem.open_input_file(file.path) as source:
            parquet = pq.ParquetFile(source, metadata=_footer(version, file.path))
            for group in _groups_with(parquet.metadata, instrument_id):
                found = parquet.read_row_group(group, columns=wanted)
                found = _cut(found, instrument_id, None if is_whole else (start_ns, end_ns))
                if found.num_rows:
                    yield found.select(list(columns))


def rows_with(version: Version, day: date, keys: Sequence[Identity]) -> Iterator[Columns]:
    """Give a day's rows, all columns, whose (source, channel, session, sequence) is one of `keys`."""
    import pyarrow.parquet as pq

    wanted = set(keys)
    sequences = np.unique(np.array([key[3] for key in keys], np.int64))
    for file in version.files.get(day, ()):
        with version.filesystem.open_input_file(file.path) as source:
            parquet = pq.ParquetFile(source, metadata=_footer(version, file.path))
            for group in range(parquet.metadata.num_row_groups):
                column = parquet.read_row_group(group, columns=["sequence"])["sequence"].combine_chunks().to_numpy()
                rows = np.flatnonzero(np.isin(column, sequences))
                if not len(rows):
                    continue
                names = [name for name in parquet.schema_arrow.names if name != "day"]
                (batch,) = (
                    parquet.read_row_group(group, columns=names).take(pa.array(rows)).combine_chunks().to_batches()
                )
                columns = columns_in(batch)
                found = zip(*(columns[name].tolist() for name in IDENTITY), strict=True)
                mask = np.fromiter((key in wanted for key in found), np.bool_, len(rows))
                yield {name: values[mask] for name, values in columns.items()}


def _footer(version: Version, path: str) -> "FileMetaData | None":
    import pyarrow.parquet as pq

    key = (str(version.delta.table_uri), path)
    with _kept.lock:
        footer = _kept.footers.pop(key, None)
    if footer is None:
        with version.filesystem.open_input_file(path) as source:
            footer = pq.read_metadata(source)
    with _kept.lock:
        _kept.footers[key] = footer
        while len(_kept.footers) > _FOOTERS_KEPT:
            _kept.footers.popitem(last=False)
    return footer


def _groups_with(footer: "FileMetaData", instrument_id: int | None) -> Iterator[int]:
    if instrument_id is None:
        yield from range(footer.num_row_groups)
        return
    place = footer.schema.names.index("instrument_id")
    for group in range(footer.num_row_groups):
        known = footer.row_group(group).column(place).statistics
        if known is None or known.min <= instrument_id <= known.max:
            yield group


def _cut(found: pa.Table, instrument_id: int | None, times: tuple[int, int] | None) -> pa.Table:
    """Cut an instrument's rows, and the times inside them, out of a sorted row group; without an instrument filter by time."""
    if instrument_id is not None:
        ids = found["instrument_id"].combine_chunks().to_numpy() if found.num_rows else np.zeros(0, np.int32)
        low, high = np.searchsorted(ids, [instrument_id, instrument_id + 1])
        found = found.slice(low, high - low)
    if times is None or not found.num_rows:
        return found
    ts = found["ts_event"].combine_chunks().to_numpy()
    if instrument_id is None:
        return found.filter(pa.array((ts >= times[0]) & (ts < times[1])))
    low, high = np.searchsorted(ts, times)
    return found.slice(low, high - low)


# -- other rows, and what may go --------------------------------------------------------------------------------------


def append_once(table: str, rows: pa.Table) -> None:
    """Append rows that have an `id` and a `month`, but none whose id the table holds already."""
    from deltalake import write_deltalake

    delta = open_or_create(table, rows.schema, "month")
    ids = rows["id"].to_numpy()
    known = delta.to_pyarrow_table(columns=["id"], filters=[("id", ">=", int(ids.min())), ("id", "<=", int(ids.max()))])
    fresh = rows.filter(pa.array(~np.isin(ids, known["id"].to_numpy())))
    if fresh.num_rows:
        before = int(delta.version())
        write_deltalake(delta, fresh, mode="append")
        paths = pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist()
        _flush(table, [*paths, f"_delta_log/{max(before + 1, int(delta.version())):020}.json"])


def delete_before(table: str, day: date) -> None:
    """Delete all days before one, and the files that nobody has needed for a week."""
    delta = open_table(table)
    if delta is None:
        return
    delta.delete(f"day < '{day}'")
    remove_unused_files(table)
    forget_versions()


def remove_unused_files(table: str) -> int:
    """Remove files that no version of the last week needs, crashes' leftovers too; give how many. A manifest's version keeps its own."""
    delta = open_table(table)
    if delta is None:
        return 0
    named = list(LakeDay.objects.filter(table=table).values_list("delta_version", "day", "generation"))
    pinned = [
        number
        for number, day, generation in named
        if delta.transaction_version(transaction_of(table, day)) != generation
    ]
    return len(delta.vacuum(retention_hours=KEPT_HOURS, dry_run=False, full=True, keep_versions=pinned or None))
