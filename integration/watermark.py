"""Is there room on the disks that hold our data? Consumption pauses below a mark, and goes on above a higher one.

Looks at `var/` and, where PostgreSQL runs on this machine, its data folder. A server elsewhere watches its own disk. Knows no flow.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

_MB: Final = 1024 * 1024
# Free space must rise this much above the mark before work goes on: else each batch would stop and start it.
RESUME_FACTOR: Final = 1.25

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Tell how many bytes an ordinary user may still write on a folder's disk."""
    return shutil.disk_usage(folder).free


@dataclass
class Watermark:
    """Watches folders. `is_low` has a memory: once low, it stays low until there is clearly more room."""

    folders: tuple[Path, ...]
    least_bytes: int
    free: FreeBytes = free_bytes
    is_low: bool = False

    def look(self) -> list[tuple[Path, int]]:
        """Look at all disks; give the folders that have too little room, with their free bytes."""
        mark = self.least_bytes * RESUME_FACTOR if self.is_low else self.least_bytes
        short = []
        for folder in self.folders:
            try:
                free = self.free(folder)
            except OSError:
                continue  # a folder that is not here (yet) fills no disk
            if free < mark:
                short.append((folder, free))
        self.is_low = bool(short)
        return short


def watermark() -> Watermark:
    """Give a watermark over the disks of this installation, by MDI_DISK_FREE_MB; 0 watches nothing."""
    least = settings.MDI.disk_free_mb * _MB
    return Watermark(_folders() if least else (), least)


def _folders() -> tuple[Path, ...]:
    var = Path(settings.MDI.var_dir)
    data = _postgres_folder() or var / "postgres"
    return (var, data) if data.is_dir() else (var,)


def _postgres_folder() -> Path | None:
    """Ask PostgreSQL where its data are; only a privileged role is told, and only here does it name a folder of this machine."""
    if settings.DATABASES["default"]["HOST"] not in ("127.0.0.1", "localhost", "::1", ""):
        return None
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('data_directory', true) WHERE pg_has_role('pg_read_all_settings', 'USAGE')"
            )
            row = cursor.fetchone()
    except DatabaseError:
        return None
    return Path(row[0]) if row and row[0] else None


_watched: list[Watermark] = []


def full_disks() -> list[tuple[str, str]]:
    """Give (folder, words) of disks without room, for alerts and probes; remembers between calls, as consumers do."""
    if not _watched:
        _watched.append(watermark())
    return [(str(folder), pause_words(folder, free)) for folder, free in _watched[0].look()]


def pause_words(folder: Path, free: int) -> str:
    """Say which disk is short of room."""
    return f"paused: disk, {free // _MB:,} MB free on the disk of {folder}, MDI_DISK_FREE_MB is {settings.MDI.disk_free_mb:,}"
