"""Moves closed days of ticks from PostgreSQL to the lake: each tick is in one of the two for every reader, whatever crashes when.

1. hold (table, day) by an advisory lock of the session          2. read its slices, and its rows in the lake if it has any
3. write the day to the lake, sorted, as the next generation     4. read it back and compare count, sum and checksum
5. in one transaction: stop writers of these slices, see that nothing came since, keep readers out for a moment, set the manifest,
   empty the slices                                              6. drop the empty slices, a few at a time

Until 5 commits nobody looks at what 3 wrote; after it nobody needs the slices. A run that died is done again from 1.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from psycopg import sql

from integration import history, lake
from integration.history import Piece
from integration.lake import DAY_NS, Columns, Tally
from integration.market.errors import FatalError, RetriableError
from integration.models import LakeDay, Slice
from integration.rows import LAYOUTS

log = structlog.get_logger(__name__)

Checkpoint = Callable[[str], None]

_LOCK_SPACE: Final = 0x4C4B  # "LK"; the first half of the advisory lock's two numbers
_ROWS_A_PART: Final = 1_000_000  # sorted at a time: about 350 MB
_RANKS: Final = 65_536  # instruments in a part: rank and time of day share 64 bits
_MOVE_ATTEMPTS: Final = 40
_MOVE_PAUSE_S: Final = 0.5
_READS_AHEAD: Final = 2
_SLICES_A_DROP: Final = 8


def reach_nothing(_point: str) -> None:
    """Do nothing at a named point; tests end the process there instead."""


@dataclass(frozen=True, slots=True)
class Archived:
    """What a run moved: the rows the day has now, and those of them that came from PostgreSQL."""

    table: str
    day: date
    generation: int
    rows: int
    moved: int
    seconds: float


def closed_days(now_ns: int) -> list[tuple[str, date]]:
    """Give (table, day) of the days that are older than `MDI_HOT_DAYS` and still have a slice; the oldest first."""
    if not settings.MDI.hot_days:
        return []
    border = (now_ns // DAY_NS - settings.MDI.hot_days) * DAY_NS
    found = set()
    for table, start, end in Slice.objects.filter(start__lt=border).values_list("table", "start", "end"):
        for ns in range(start - start % DAY_NS, min(end, border), DAY_NS):
            found.add((table, lake.day_of(ns)))
    return sorted(found, key=lambda item: (item[1], item[0]))


def archive_day(table: str, day: date, reached: Checkpoint = reach_nothing) -> Archived | None:
    """Move what PostgreSQL holds of a table's day to the lake; None when that is nothing. Runs outside of transactions.

    RetriableError when another run has the day, when ticks of it kept coming, or when readers did not let go; FatalError when
    the lake does not hold what was written to it, or belongs to another database. Nothing has moved then.
    """
    began = time.monotonic()
    with _held(table, day):
        reached("held")
        pieces = _pieces(table, day)
        if not any(piece.size for piece in pieces):
            drop_empty(table, day, reached)
            return None
        done = _move(table, day, pieces, reached)
        drop_empty(table, day, reached)
    if done is not None:
        seconds = time.monotonic() - began
        log.info(
            "archived", table=table, day=str(day), generation=done.generation, rows=done.row_count, seconds=seconds
        )
        return Archived(table, day, done.generation, done.row_count, done.moved, seconds)
    return None


@dataclass(slots=True)
class _Done:
    generation: int
    row_count: int
    moved: int


def _pieces(table: str, day: date) -> list[Piece]:
    return history.slices_between(connection, table, lake.start_of(day), lake.start_of(day) + DAY_NS)


def _move(table: str, day: date, pieces: Sequence[Piece], reached: Checkpoint) -> _Done | None:
    manifest = LakeDay.objects.filter(table=table, day=day).first()
    writer = lake.DayWriter(table, day)
    writer.refuse_strange_rows(manifest)
    with tempfile.TemporaryDirectory(prefix="mdi-archive-", dir=_spool_folder()) as folder:
        runs = _Runs(table, day, Path(folder))
        if manifest is not None:
            runs.take_lake(manifest)
        stored = runs.tally
        moved = runs.take_slices(pieces)
        if not moved.rows:
            return None
        reached("read")
        generation = writer.generation_after(manifest)
        version = writer.write(generation, runs.sorted_batches())
    reached("written")
    _verify(table, day, version, stored + moved)
    reached("verified")
    row = LakeDay(
        table=table,
        day=day,
        generation=generation,
        delta_version=version,
        row_count=stored.rows + moved.rows,
        checksum=(stored + moved).stored_checksum,
    )
    _take_over(row, manifest, pieces, runs.counts, reached)
    reached("moved")
    return _Done(generation, row.row_count, moved.rows)


def _spool_folder() -> Path:
    folder = Path(settings.MDI.var_dir) / "spool"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _verify(table: str, day: date, version: int, expected: Tally) -> None:
    """Read the day back from the lake, every column, and hold it against what was read from PostgreSQL."""
    found = Tally()
    for part in lake.read_day(lake.version_at(table, version), day, lake.columns_of(table)):
        for batch in part.to_batches():
            found.add(table, lake.columns_in(batch))
    if found != expected:
        raise FatalError(
            f"the lake does not hold what was written: {table} of {day} at version {version} has {found}, should have {expected}",
            code="lake_differs",
        )


# -- one day at a time ------------------------------------------------------------------------------------------------


@contextmanager
def _held(table: str, day: date) -> Iterator[None]:
    """Hold a table's day against other runs for as long as this connection lives."""
    numbers = [_LOCK_SPACE, _lock_number(table, day)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", numbers)
        if not cursor.fetchone()[0]:
            raise RetriableError(f"another run has {table} of {day}", code="day_held")
    try:
        yield
    finally:
        # A connection that was lost has lost its locks too.
        if connection.connection is not None and not connection.connection.closed and not connection.in_atomic_block:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", numbers)


def _lock_number(table: str, day: date) -> int:
    return day.toordinal() * len(LAYOUTS) + list(LAYOUTS).index(table)


# -- reading and sorting ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """Sorted rows on disk: columns are views of the file's pages. `counts` has the rows of each instrument."""

    columns: Columns
    instruments: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    def place(self, instrument: int, ts: int) -> int:
        """Give the place of the first row that is not before (instrument, ts)."""
        low, high = np.searchsorted(self.columns["instrument_id"], [instrument, instrument + 1])
        return int(low + np.searchsorted(self.columns["ts_event"][low:high], ts))


@dataclass(slots=True)
class _Runs:
    """What a day consists of, as sorted runs in a folder: one for each piece of a slice, one for each row group of the lake."""

    table: str
    day: date
    folder: Path
    tally: Tally = field(default_factory=Tally)  # of the rows that were in the lake already
    counts: list[int] = field(default_factory=list)  # rows of the day in each slice
    runs: list[_Run] = field(default_factory=list)

    def take_lake(self, manifest: LakeDay) -> None:
        """Take the rows that the manifest names; FatalError when they are not those that were written."""
        version = lake.version_for(self.table, [manifest])(manifest)
        for part in lake.read_day(version, self.day, lake.columns_of(self.table)):
            for batch in part.to_batches():
                columns = lake.columns_in(batch)
                self.tally.add(self.table, columns)
                self._keep(columns)
        if (self.tally.rows, self.tally.stored_checksum) != (manifest.row_count, manifest.checksum):
            raise FatalError(
                f"the lake has changed: {self.table} of {self.day} has {self.tally.rows} rows, should have {manifest.row_count}",
                code="lake_differs",
            )

    def take_slices(self, pieces: Sequence[Piece]) -> Tally:
        """Read the day's rows of the slices, the next pages while the last are sorted; give what they add up to."""
        moved = Tally()
        self.counts = [0] * len(pieces)
        tasks = [(at, pages) for at, piece in enumerate(pieces) for pages in history.page_ranges(piece)]
        with ThreadPoolExecutor(_READS_AHEAD, thread_name_prefix="archive") as readers:
            waiting: list[tuple[int, Future[Columns]]] = []
            for at, pages in [*tasks, *[(-1, (0, 0))] * _READS_AHEAD]:
                if at >= 0:
                    waiting.append((at, readers.submit(self._read, pieces[at], pages)))
                if waiting and (at < 0 or len(waiting) > _READS_AHEAD):
                    self._take(*waiting.pop(0), moved)
            for left in waiting:
                self._take(*left, moved)
        return moved

    def _read(self, piece: Piece, pages: tuple[int, int]) -> Columns:
        start = lake.start_of(self.day)
        condition = sql.SQL("ts_event >= {} AND ts_event < {}").format(sql.Literal(start), sql.Literal(start + DAY_NS))
        wrapper = connection.copy()
        try:
            found = history.pages_of(wrapper, self.table, piece, tuple(LAYOUTS[self.table][1]), pages, condition)
            history.add_batch_times(wrapper, found)
        finally:
            wrapper.close()
        return found

    def _take(self, at: int, reading: "Future[Columns]", moved: Tally) -> None:
        columns = reading.result()
        rows = len(columns["ts_event"])
        if not rows:
            return
        self.counts[at] += rows
        moved.add(self.table, columns)
        order = self._order(columns)
        self._keep({name: columns[name][order] for name in lake.columns_of(self.table)})

    def _order(self, columns: Columns) -> npt.NDArray[np.intp]:
        """Order rows by (instrument, time), equal ones as they come."""
        instruments, rank = np.unique(columns["instrument_id"], return_inverse=True)
        if len(instruments) > _RANKS:
            return np.lexsort((columns["ts_event"], columns["instrument_id"]))
        keys = (rank.astype(np.int64) << 47) | (columns["ts_event"] - lake.start_of(self.day))
        return np.argsort(keys, kind="stable")

    def _keep(self, columns: Columns) -> None:
        path = self.folder / f"{len(self.runs)}.arrow"
        batch = lake.batch_of(self.table, columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        mapped = lake.columns_in(pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0))
        instruments, counts = np.unique(columns["instrument_id"], return_counts=True)
        self.runs.append(_Run(mapped, instruments, counts))

    def sorted_batches(self) -> Iterator[pa.RecordBatch]:
        """Give all rows in order of (instrument, time), a part at a time."""
        cuts = self._cuts()
        places = [[run.place(*cut) for cut in cuts] + [len(run.columns["ts_event"])] for run in self.runs]
        for at in range(len(cuts)):
            parts = [
                {name: column[spots[at] : spots[at + 1]] for name, column in run.columns.items()}
                for run, spots in zip(self.runs, places, strict=True)
                if spots[at] < spots[at + 1]
            ]
            if parts:
                yield self._joined(parts)

    def _joined(self, parts: Sequence[Columns]) -> pa.RecordBatch:
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if len(parts) > 1:
            order = self._order(joined)
            joined = {name: column[order] for name, column in joined.items()}
        return lake.batch_of(self.table, joined)

    def _cuts(self) -> list[tuple[int, int]]:
        """Give the (instrument, time) at which each part begins, so that none is much larger than it should be."""
        ids = np.concatenate([run.instruments for run in self.runs])
        counts = np.concatenate([run.counts for run in self.runs])
        instruments, place = np.unique(ids, return_inverse=True)
        rows = np.bincount(place, weights=counts).astype(np.int64)
        cuts: list[tuple[int, int]] = []
        filled = members = 0
        for instrument, count in zip(instruments.tolist(), rows.tolist(), strict=True):
            if not cuts or filled + count > _ROWS_A_PART or members == _RANKS:
                cuts.append((instrument, 0))
                filled = members = 0
            filled, members = filled + count, members + 1
            if count > _ROWS_A_PART:
                cuts += [(instrument, ts) for ts in self._times_of(instrument, count)]
        return cuts

    def _times_of(self, instrument: int, count: int) -> list[int]:
        """Give times that cut an instrument with very many rows into parts; rows of one time stay together."""
        found = np.concatenate([_times(run, instrument) for run in self.runs])
        steps = np.arange(_ROWS_A_PART, count, _ROWS_A_PART)
        return sorted(set(np.partition(found, steps)[steps].tolist())) if len(steps) else []


def _times(run: _Run, instrument: int) -> npt.NDArray[Any]:
    return run.columns["ts_event"][run.place(instrument, 0) : run.place(instrument + 1, 0)]


# -- the move ---------------------------------------------------------------------------------------------------------


def _take_over(
    row: LakeDay, before: LakeDay | None, pieces: Sequence[Piece], counts: Sequence[int], reached: Checkpoint
) -> None:
    """Let the lake count from now on instead of the slices; try again for a while when somebody is in the way."""
    for attempt in range(1, _MOVE_ATTEMPTS + 1):
        try:
            with transaction.atomic():
                _take_over_once(row, before, pieces, counts)
                reached("before_commit")
            return
        except OperationalError as problem:  # a lock that did not come in time
            if attempt == _MOVE_ATTEMPTS:
                raise RetriableError(
                    f"{row} cannot be moved, somebody holds it: {str(problem).strip()}", code="day_busy"
                ) from problem
        time.sleep(_MOVE_PAUSE_S)


def _take_over_once(row: LakeDay, before: LakeDay | None, pieces: Sequence[Piece], counts: Sequence[int]) -> None:
    names = [piece.relation for piece in pieces]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '300ms'")
        # Still ours, even if Django has connected anew meanwhile.
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [_LOCK_SPACE, _lock_number(row.table, row.day)])
        if not cursor.fetchone()[0]:
            raise RetriableError(f"another run has {row.table} of {row.day}", code="day_held")
        generation = LakeDay.objects.filter(table=row.table, day=row.day).values_list("generation", flat=True).first()
        if generation != (before.generation if before else None):
            raise RetriableError(f"{row.table} of {row.day} was archived by another run", code="day_held")
        # Waits for writers that are in the middle of a transaction, and keeps new ones out; readers go on.
        _lock(cursor, names, "SHARE ROW EXCLUSIVE")
        for name, count in zip(names, counts, strict=True):
            _expect(cursor, row, name, count)
        # Readers look at the manifest first and hold it: from here on none is between its snapshot and its rows.
        _lock(cursor, ["integration_lakeday"], "ACCESS EXCLUSIVE")
        _set_manifest(row, before)
        inside = [piece.relation for piece in pieces if _is_inside(piece, row.day)]
        if inside:
            _lock(cursor, inside, "ACCESS EXCLUSIVE")
            cursor.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, inside))))
        for piece in pieces:
            if not _is_inside(piece, row.day):  # a slice that somebody made across midnight: only this day's rows go
                cursor.execute(
                    sql.SQL("DELETE FROM {} WHERE ts_event >= %s AND ts_event < %s").format(sql.Identifier(piece.relation)),
                    _range(row.day),
                )  # fmt: skip


def _lock(cursor: Any, names: Sequence[str], mode: str) -> None:
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    cursor.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(listed, sql.SQL(mode)))


def _expect(cursor: Any, row: LakeDay, name: str, count: int) -> None:
    """Raise RetriableError when a slice has other rows of the day than were read: a late tick has come."""
    cursor.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE ts_event >= %s AND ts_event < %s").format(sql.Identifier(name)),
        _range(row.day),
    )
    found = cursor.fetchone()[0]
    if found != count:
        raise RetriableError(
            f"ticks of {row.table} of {row.day} came while it moved: {name} has {found}, was {count}",
            code="day_changed",
        )


def _range(day: date) -> list[int]:
    return [lake.start_of(day), lake.start_of(day) + DAY_NS]


def _is_inside(piece: Piece, day: date) -> bool:
    return lake.start_of(day) <= piece.start and piece.end <= lake.start_of(day) + DAY_NS


def _set_manifest(row: LakeDay, before: LakeDay | None) -> None:
    values = {
        "generation": row.generation,
        "delta_version": row.delta_version,
        "row_count": row.row_count,
        "checksum": row.checksum,
        "archived_at": timezone.now(),
    }
    if before is None:
        LakeDay.objects.create(table=row.table, day=row.day, **values)
        return
    LakeDay.objects.filter(pk=before.pk).update(**values)


# -- empty slices -----------------------------------------------------------------------------------------------------


def drop_empty(table: str, day: date, reached: Checkpoint = reach_nothing) -> int:
    """Drop the slices of a day that is in the lake and have no rows; give how many. One that is in use stays for the next run.

    Dropping a partition locks its parent: a few at a time, so that consumers wait for milliseconds only.
    """
    if not LakeDay.objects.filter(table=table, day=day).exists():
        return 0
    inside = [piece for piece in _pieces(table, day) if _is_inside(piece, day)]
    dropped = 0
    for at in range(0, len(inside), _SLICES_A_DROP):
        try:
            dropped += _drop(table, inside[at : at + _SLICES_A_DROP])
        except OperationalError as problem:
            log.info("slices stay for now", table=table, day=str(day), reason=str(problem).strip())
        reached("dropping")
    return dropped


def _drop(table: str, pieces: Sequence[Piece]) -> int:
    parent = f"integration_{table}"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '200ms'")
        _lock(cursor, ["integration_lakeday"], "ACCESS EXCLUSIVE")
        # The parent first, as writers do it: the other way round is a deadlock.
        cursor.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(parent)))
        empty = []
        for piece in pieces:
            _lock(cursor, [piece.relation], "ACCESS EXCLUSIVE")
            cursor.execute(sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(sql.Identifier(piece.relation)))
            if not cursor.fetchone()[0]:
                empty.append(piece)
        if empty:
            names = sql.SQL(", ").join(sql.Identifier(piece.relation) for piece in empty)
            cursor.execute(sql.SQL("DROP TABLE {}").format(names))
            Slice.objects.filter(table=table, start__in=[piece.start for piece in empty]).delete()
    return len(empty)
