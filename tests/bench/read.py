"""SUITE=read: one instrument out of a day of ticks in PostgreSQL and of a closed day in the lake, and the move between the two.

The day is made by SQL (BENCH_TICKS, else 20 million rows; 500 instruments, a few of them busy), in slices that are indexed as
the service indexes them. Reads go through `history`, as everybody's do.
"""

import os
import statistics
import sys
import time
from datetime import date
from typing import Final

from django.core.management import call_command
from django.db import connection

from integration import archive, history, jobs, lake
from integration.lake import DAY_NS
from integration.models import Slice

TICKS: Final = 20_000_000
ROWS_A_SLICE: Final = 250_000
DAY: Final = date(2026, 1, 5)
_COLUMNS: Final = ("ts_event", "price", "size")
_ROUNDS: Final = 7
# One instrument with 750,000 of 20 million rows and one with 50,000; the others share what is left.
_FILL: Final = """
  INSERT INTO "{relation}" (ts_event, ts_publish, instrument_id, source_id, channel, session, sequence, batch_id, conditions, flags,
    session_date, price, size, trade_id)
  SELECT {start} + n * {step}, {start} + n * {step} + 900000 + n % 977,
         CASE WHEN n % 80 IN (7, 33, 61) THEN 1 WHEN n % 400 = 0 THEN 2 ELSE 3 + (498 * random() * random())::int END,
         1, n % 4, 20260105, {first} + n, ({first} + n) / 5000, (n % 17 = 0)::int, 0, '2026-01-05',
         100000000000 + (random() * 1000)::bigint * 10000000, (1 + random() * 100)::bigint * 1000000000, {first} + n
    FROM generate_series(0::bigint, {rows} - 1) AS n
"""


def run(ticks: int = 0) -> dict[str, float]:
    """Make the day, read it, move it, read it again; milliseconds are medians."""
    call_command("migrate", verbosity=0)
    ticks = fill(ticks or int(os.environ.get("BENCH_TICKS", TICKS)))
    figures = {"ticks": float(ticks)}
    for name, instrument_id in (("today_750k", 1), ("today_50k", 2)):
        figures[f"{name}_rows"], figures[f"{name}_ms"] = read(instrument_id)
    say("the day moves to the lake")
    began = time.perf_counter()
    done = archive.archive_day("trade", DAY)
    assert done is not None
    assert done.rows == ticks
    figures["archive_ticks_per_s"] = ticks / (time.perf_counter() - began)
    figures["closed_day_rows"], figures["closed_day_ms"] = read(2)
    figures["closed_day_750k_rows"], figures["closed_day_750k_ms"] = read(1)
    return {name: round(value, 1) for name, value in figures.items()}


def fill(ticks: int) -> int:
    """Make the slices of the day, as full as the service makes them; give the number of ticks."""
    count = max(1, ticks // ROWS_A_SLICE)
    width, rows = DAY_NS // count, ticks // count
    for at in range(count):
        start = lake.start_of(DAY) + at * width
        made = Slice.objects.create(table="trade", start=start, end=start + width)
        with connection.cursor() as cursor:
            cursor.execute(
                f'CREATE TABLE "{made.relation}" PARTITION OF integration_trade FOR VALUES FROM ({start}) TO ({start + width})'
            )
            cursor.execute(
                _FILL.format(
                    relation=made.relation, start=start, step=width // rows, first=at * rows, rows=rows
                )
            )  # fmt: skip
        jobs.index_slice(f"trade:{start}")
        if at % 10 == 9:
            say(f"{at + 1} of {count} slices made")
    return rows * count


def read(instrument_id: int) -> tuple[float, float]:
    """Give the rows and the median milliseconds of one instrument's day as an Arrow table; the first read is not counted."""
    took, rows = [], 0
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        rows = history.read_ticks(
            "trade", instrument_id, lake.start_of(DAY), lake.start_of(DAY) + DAY_NS, _COLUMNS
        ).num_rows
        took.append((time.perf_counter() - began) * 1000)
    return float(rows), statistics.median(took[1:])


def say(text: str) -> None:
    """Print progress beside the figures."""
    print(text, file=sys.stderr, flush=True)
