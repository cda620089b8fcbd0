"""Slices: the partitions of Trade and Quote, made ahead of the data so that each holds about `MDI_SLICE_ROWS` rows."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from django.conf import settings
from django.db import OperationalError, connection, transaction
from psycopg import sql

from integration.market.errors import RetriableError
from integration.market.ticks import Column
from integration.models import Slice

NS: Final = 1_000_000_000
WIDTHS_NS: Final = tuple(seconds * NS for seconds in (10, 60, 300, 900, 3_600, 21_600, 86_400))
MAX_NEW_SLICES: Final = 64
_END_OF_TIME: Final = 2**63 - 1
_RATE_WINDOW_S: Final = 600
_FIRST_WIDTH_NS: Final = 900 * NS
# Any number that no other part of the service locks: "slice" as ASCII.
_ADVISORY_LOCK: Final = 0x736C696365


def width_for(rows_per_second: float, rows_per_slice: int) -> int:
    """Give the widest slice (ns) that holds at most `rows_per_slice` at this rate; the narrowest if none does."""
    fitting = [width for width in WIDTHS_NS if rows_per_second * width / NS <= rows_per_slice]
    return fitting[-1] if fitting else WIDTHS_NS[0]


def plan(ts: int, width: int, starts: list[int], ends: list[int]) -> tuple[int, int]:
    """Give the half-open range of a new slice around `ts`: aligned to its width, cut where it would overlap others.

    `starts` and `ends` are sorted and belong together; `ts` lies in none of them.
    """
    start, end = ts - ts % width, ts - ts % width + width
    after = bisect_right(starts, ts)
    if after > 0:
        start = max(start, ends[after - 1])
    if after < len(starts):
        end = min(end, starts[after])
    return start, min(end, _END_OF_TIME)


@dataclass(slots=True)
class SliceMap:
    """The slices of one table as this process knows them; others may have made more."""

    table: str
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def load(self) -> None:
        """Read the slices that exist."""
        rows = list(Slice.objects.filter(table=self.table).order_by("start").values_list("start", "end"))
        self.starts, self.ends = [row[0] for row in rows], [row[1] for row in rows]

    def uncovered(self, ts: Column) -> Column:
        """Give the times that no known slice covers."""
        if not self.starts:
            return ts
        index = np.searchsorted(np.array(self.starts), ts, side="right") - 1
        ends: npt.NDArray[np.int64] = np.array(self.ends)
        return ts[(index < 0) | (ts >= ends[index])]

    def ensure(self, ts: Column) -> Column:
        """Make slices for all times and give those that got none because they would need too many; own transaction.

        The slice after the newest one is made as well, so that live data seldom waits. RetriableError when PostgreSQL is busy.
        """
        missing = self.uncovered(ts)
        if len(missing):
            try:
                self._make(missing)
            except OperationalError as problem:
                raise RetriableError(f"cannot make a slice of {self.table}: {problem}", code="slice_busy") from problem
            missing = self.uncovered(missing)
        return missing

    def _make(self, missing: Column) -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '2s'")
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
            self.load()
            width = width_for(_rows_per_second(), settings.MDI.slice_rows)
            left = np.sort(self.uncovered(missing))
            for _ in range(MAX_NEW_SLICES):
                if not len(left):
                    break
                start, end = plan(int(left[0]), width, self.starts, self.ends)
                self._create(start, end)
                left = left[left >= end]
            # Live data moves into the slice behind the newest one: it should find it there.
            newest = self.ends[-1]
            if missing.max() >= self.starts[-1] and newest < _END_OF_TIME - 2 * width:
                self._create(newest, newest - newest % width + width)

    def _create(self, start: int, end: int) -> None:
        made = Slice.objects.create(table=self.table, start=start, end=end)
        parent = sql.Identifier(f"integration_{self.table}")
        child, bounds = sql.Identifier(made.relation), {"start": sql.Literal(start), "end": sql.Literal(end)}
        with connection.cursor() as cursor:
            # A table of its own first, attached by a check that already holds: neither writers nor readers wait.
            cursor.execute(
                sql.SQL(
                    "CREATE TABLE {child} (LIKE {parent} INCLUDING STORAGE INCLUDING DEFAULTS, "
                    "CONSTRAINT bounds CHECK (ts_event >= {start} AND ts_event < {end}))"
                ).format(child=child, parent=parent, **bounds)
            )
            cursor.execute(
                sql.SQL("CREATE INDEX ON {child} USING brin (ts_event) WITH (pages_per_range = 32)").format(child=child)
            )
            cursor.execute(
                sql.SQL("ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ({start}) TO ({end})").format(
                    parent=parent, child=child, **bounds
                )
            )
            cursor.execute(sql.SQL("ALTER TABLE {child} DROP CONSTRAINT bounds").format(child=child))
        at = bisect_right(self.starts, start)
        self.starts.insert(at, start)
        self.ends.insert(at, end)


def _rows_per_second() -> float:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(sum(tick_count), 0) FROM integration_batch"
            " WHERE ts_processed > (extract(epoch FROM clock_timestamp()) - %s)::bigint * 1000000000",
            [_RATE_WINDOW_S],
        )
        rows = float(cursor.fetchone()[0])
    # Before anything has been stored nobody knows the rate: a quarter of an hour is neither many slices nor a huge one.
    return rows / _RATE_WINDOW_S if rows else settings.MDI.slice_rows * NS / _FIRST_WIDTH_NS
