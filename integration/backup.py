"""A backup is one snapshot of every table, plain COPY files with their checksums, and the lake's folder; a restore puts all of it back.

No program of PostgreSQL is needed, and data may move between its major versions. What was published since a backup is read again from
the broker: a restored position says that it is on another history (`timeline`), and the sequencer begins a new epoch.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
from django.conf import settings
from django.db import connection, transaction
from psycopg import sql

from integration.market.errors import FatalError

VERSION: Final = 1
MANIFEST: Final = "manifest.json"
# Of the schema, not of the data: `migrate` makes them.
_NOT_OURS: Final = frozenset({"django_migrations"})
_BUSY_S: Final = 10.0

Say = Callable[[str], None]


class TableFile(msgspec.Struct):
    """One table as a file in PostgreSQL's binary COPY format."""

    table: str
    columns: list[str]
    rows: int
    size: int
    sha256: str


class Manifest(msgspec.Struct):
    """What a backup holds; written last, so that a folder without it is no backup."""

    version: int
    id: str
    made_at: str
    server_version: int
    migrations: list[tuple[str, str]]
    tables: list[TableFile]
    partitions: list[tuple[str, str, str]]  # parent, child, bounds
    sequences: list[tuple[str, int | None]]
    lake: list[tuple[str, int, str]]  # path below the lake's folder, size, sha256
    lake_url: str = ""  # an object store is not copied: its versions stay


class BackupError(FatalError):
    """A backup or restore that cannot be made; the text says why and that nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="backup")


# -- making one ---------------------------------------------------------------------------------------------------------


def make_backup(folder: Path, say: Say) -> Manifest:
    """Write a backup into a folder that is new or empty; the service may go on working. BackupError when it cannot be."""
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"the folder must be new or empty, was {folder}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with _snapshot():
        tables = [_copy_out(folder, table, say) for table in _tables()]
        manifest = Manifest(
            version=VERSION, id=uuid4().hex, made_at=datetime.now(UTC).isoformat(), server_version=_server_version(),
            migrations=_migrations(), tables=tables, partitions=_partitions(), sequences=_sequences(), lake=[],
        )  # fmt: skip
    # After the snapshot: what the manifest of days names is there, and stays for days; what is newer does no harm.
    if _lake_folder() is None:
        manifest.lake_url = settings.MDI.lake_url
        say(f"lake: at {manifest.lake_url}, not copied; the versions that this backup names must be kept there")
    else:
        manifest.lake = list(_copy_lake(folder, say))
    _publish(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


@contextmanager
def _snapshot() -> Iterator[None]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield


def _copy_out(folder: Path, table: str, say: Say) -> TableFile:
    columns = _columns(table)
    query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table)
    )
    digest, size = hashlib.sha256(), 0
    with _written(folder / f"{table}.copy") as file, connection.cursor() as cursor:
        with cursor.copy(query) as copy:
            for piece in copy:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        rows = cursor.rowcount
    if rows:
        say(f"{table}: {rows:,} rows, {size:,} bytes")
    return TableFile(table, columns, rows, size, digest.hexdigest())


def _copy_lake(folder: Path, say: Say) -> Iterator[tuple[str, int, str]]:
    """Copy the logs first: each version that they name has its files by then."""
    root = _lake_folder()
    if root is None or not root.is_dir():
        return
    files = sorted(
        (path for path in root.rglob("*") if path.is_file()), key=lambda path: "_delta_log" not in path.parts
    )
    total = 0
    for path in files:
        name = str(path.relative_to(root))
        target = folder / "lake" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        size, digest = _digest(target)
        total += size
        yield name, size, digest
    say(f"lake: {len(files):,} files, {total:,} bytes")


def _lake_folder() -> Path | None:
    """Give the lake's folder; None where it is an object store."""
    url = str(settings.MDI.lake_url)
    if "://" in url:
        return None
    return Path(url) if url else Path(settings.MDI.var_dir) / "lake"


# -- restoring ----------------------------------------------------------------------------------------------------------


def restore_backup(folder: Path, say: Say) -> Manifest:
    """Replace everything by a backup. BackupError, with nothing changed, when it is damaged, of another schema, or somebody works."""
    manifest = read_manifest(folder)
    _verify(folder, manifest, say)
    if manifest.migrations != _migrations():
        raise BackupError(
            "the backup is of another schema: check out the version that made it, migrate, restore, then upgrade"
        )
    number = _count_restore(folder)
    staged = _stage_lake(folder, manifest)
    with transaction.atomic():
        before = _refuse_if_busy()
        _replace_tables(folder, manifest, say)
        _begin_new_history(manifest, number, before)
    _swap_lake(staged)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read what a backup holds; BackupError when the folder is none."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BackupError(f"no backup, or one that was not finished: {folder / MANIFEST} is missing") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise BackupError(f"the manifest cannot be read: {problem}") from problem
    if manifest.version != VERSION:
        raise BackupError(f"a backup of this version cannot be read, was {manifest.version}")
    return manifest


def _verify(folder: Path, manifest: Manifest, say: Say) -> None:
    files = [(f"{item.table}.copy", item.size, item.sha256) for item in manifest.tables]
    files += [(f"lake/{name}", size, digest) for name, size, digest in manifest.lake]
    for name, size, digest in files:
        if not (folder / name).is_file() or _digest(folder / name) != (size, digest):
            raise BackupError(f"the backup is damaged, nothing was changed: {name} is missing or not what was written")
    say(f"{len(files):,} files are as they were written at {manifest.made_at}")


def _refuse_if_busy() -> tuple[int, int]:
    """Make sure that no consumer or sequencer works; give the highest epochs of leases and of the sequencer before."""
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE integration_lease IN ACCESS EXCLUSIVE MODE")
        cursor.execute(
            "SELECT name, holder FROM integration_lease"
            " WHERE holder <> '' AND clock_timestamp() - renewed_at < make_interval(secs => %s) LIMIT 1",
            [_BUSY_S],
        )
        if busy := cursor.fetchone():
            raise BackupError(f"stop the service first, nothing was changed: {busy[1]} holds {busy[0]}")
        cursor.execute(
            "SELECT (SELECT coalesce(max(epoch), 0) FROM integration_lease), (SELECT coalesce(max(epoch), 0) FROM integration_sequencerstate)"
        )
        row = cursor.fetchone()
    return int(row[0]), int(row[1])


def _replace_tables(folder: Path, manifest: Manifest, say: Say) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        for _, child, _ in _partitions():
            cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(child)))
        names = sql.SQL(", ").join(sql.Identifier(table) for table in _tables())
        cursor.execute(sql.SQL("TRUNCATE {}").format(names))
        for parent, child, bounds in manifest.partitions:
            statement = sql.SQL(
                "CREATE TABLE {} PARTITION OF {} " + bounds
            )  # PostgreSQL's own words, from our checked manifest
            cursor.execute(statement.format(sql.Identifier(child), sql.Identifier(parent)))
        for item in manifest.tables:
            _copy_in(cursor, folder, item)
            if item.rows:
                say(f"{item.table}: {item.rows:,} rows")
        for _, child, _ in manifest.partitions:
            cursor.execute(
                sql.SQL("CREATE INDEX ON {} USING brin (ts_event) WITH (pages_per_range = 32)").format(
                    sql.Identifier(child)
                )
            )
        for name, value in manifest.sequences:
            if value is not None:
                cursor.execute("SELECT setval(%s::regclass, %s)", [name, value])


def _copy_in(cursor: Any, folder: Path, item: TableFile) -> None:
    query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(item.table), sql.SQL(", ").join(map(sql.Identifier, item.columns))
    )
    # What a trigger has written meanwhile, for another table's rows.
    cursor.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(item.table)))
    with (folder / f"{item.table}.copy").open("rb") as file, cursor.copy(query) as copy:
        while piece := file.read(1 << 20):
            copy.write(piece)
    if cursor.rowcount != item.rows:
        raise BackupError(f"nothing was changed: {item.table} took {cursor.rowcount:,} of {item.rows:,} rows")


def _begin_new_history(manifest: Manifest, number: int, before: tuple[int, int]) -> None:
    """Let consumers read again from the stored position, and the sequencer number anew in an epoch that was never used."""
    history = f"backup {manifest.id[:24]} {number}"
    with connection.cursor() as cursor:
        cursor.execute("UPDATE integration_position SET timeline = %s", [history])
        cursor.execute(
            "UPDATE integration_sequencerstate SET timeline = %s, epoch = greatest(epoch + %s, %s)",
            [history, number - 1, before[1]],
        )
        cursor.execute(
            "UPDATE integration_lease SET holder = '', backend_pid = NULL, backend_start = NULL, epoch = greatest(epoch, %s) + 1",
            [before[0]],
        )
        # Indexes of slices are made again by their job.
        cursor.execute("UPDATE integration_slice SET indexed_at = NULL")
        cursor.execute("UPDATE integration_referenceversion SET version = version + 1")


def _count_restore(folder: Path) -> int:
    """Count the restores of this backup, in it: two of them must not use the same epoch at the broker."""
    path = folder / "restores"
    number = int(path.read_text()) + 1 if path.exists() else 1
    _publish(path, str(number).encode())
    return number


def _stage_lake(folder: Path, manifest: Manifest) -> Path | None:
    root = _lake_folder()
    if root is None or not (manifest.lake or root.is_dir()):
        return None
    staged = root.with_name(f"{root.name}.restoring")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name, _, _ in manifest.lake:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "lake" / name, staged / name)
    return staged


def _swap_lake(staged: Path | None) -> None:
    """Put the restored lake in the old one's place; the old one is kept beside it."""
    root = _lake_folder()
    if staged is None or root is None:
        return
    if root.exists():
        root.rename(root.with_name(f"{root.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"))
    staged.rename(root)


# -- what there is ------------------------------------------------------------------------------------------------------


def _rows(query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def _tables() -> list[str]:
    """Name every table of ours by the catalogue, so that none is forgotten; slices are part of their parents."""
    found = _rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
    )
    return [name for (name,) in found if name not in _NOT_OURS]


def _columns(table: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            [f'public."{table}"'],
        )
        return [name for (name,) in cursor.fetchall()]


def _partitions() -> list[tuple[str, str, str]]:
    return [
        (parent, child, bounds)
        for parent, child, bounds in _rows(
            "SELECT parent.relname, child.relname, pg_get_expr(child.relpartbound, child.oid) FROM pg_inherits"
            " JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class child ON child.oid = inhrelid"
            " WHERE child.relispartition AND child.relnamespace = 'public'::regnamespace AND child.relkind = 'r' ORDER BY 1, 2"
        )
    ]


def _sequences() -> list[tuple[str, int | None]]:
    found = _rows("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1")
    return [(f'public."{name}"', value) for name, value in found if not name.startswith("django_migrations")]


def _migrations() -> list[tuple[str, str]]:
    return [(app, name) for app, name in _rows("SELECT DISTINCT app, name FROM django_migrations ORDER BY app, name")]


def _server_version() -> int:
    return int(_rows("SELECT current_setting('server_version_num')::int")[0][0])


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    """Give a file for its owner alone that is on the disk when the block ends."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _publish(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with _written(draft) as file:
        file.write(content)
    draft.replace(path)
