"""Ticks straight into slices, and what must come back of them: for the tests of lake, history and retention."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from django.db import connection

from integration import history, lake
from integration.lake import DAY_NS
from integration.market.ticks import QUOTE, TRADE, Ticks
from integration.models import Batch
from integration.rows import LAYOUTS, copy_pieces, copy_statement
from integration.slices import SliceMap
from tests.integration import desk

DAY = date(2026, 1, 5)
START = lake.start_of(DAY)
HOUR = DAY_NS // 24


def make_ticks(rows: int, *, table: str = "trade", start: int = START, span: int = DAY_NS, seed: int = 1) -> Ticks:
    """Give ticks of seven instruments in no order, every value within its column's range."""
    random = np.random.default_rng(seed)
    ticks = Ticks.zeros(rows)
    ticks.kind[:] = QUOTE if table == "quote" else TRADE
    ticks.instrument_id[:] = random.integers(1, 8, rows)
    ticks.ts_event[:] = start + random.integers(0, span, rows)
    ticks.ts_publish[:] = ticks.ts_event + random.integers(0, 10**9, rows)
    ticks.source_id[:] = 1
    ticks.channel[:] = random.integers(-2, 4, rows)
    ticks.session[:] = seed
    ticks.sequence[:] = np.arange(rows)
    ticks.price[:] = random.integers(-(2**62), 2**62, rows)
    ticks.size[:] = random.integers(1, 2**40, rows)
    ticks.ask_price[:] = random.integers(-(2**62), 2**62, rows)
    ticks.ask_size[:] = random.integers(1, 2**40, rows)
    ticks.conditions[:] = random.integers(0, 2**14, rows)
    ticks.flags[:] = random.integers(0, 512, rows)
    ticks.session_date[:] = 20458
    ticks.trade_id[:] = random.integers(0, 2**62, rows)
    return ticks


def store(ticks: Ticks, *, batch_id: int = 1) -> None:
    """Copy ticks of one kind into slices, made as consumers make them."""
    table = "quote" if ticks.kind[0] == QUOTE else "trade"
    slices = SliceMap(table)
    slices.load()
    while len(slices.ensure(ticks.ts_event)):
        pass  # so many at a time
    with connection.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
        for piece in copy_pieces(table, ticks, batch_id):
            copy.write(piece)


def add_batch(batch_id: int, *, received: int = 7, processed: int = 8) -> Batch:
    """Give a batch row with these times."""
    return Batch.objects.create(
        id=batch_id, position=desk.position(), number=batch_id, clock=0, ts_received=received, ts_processed=processed, reference_version=1
    )  # fmt: skip


def rows_of(ticks: Ticks, *, batch_id: int = 1, times: tuple[int, int] = (0, 0)) -> list[tuple[int, ...]]:
    """Give the rows that reading must give, sorted, in order of `lake.columns_of`."""
    table = "quote" if ticks.kind[0] == QUOTE else "trade"
    columns = [
        np.full(len(ticks), batch_id) if column is None else getattr(ticks, column)
        for column, _ in LAYOUTS[table][1].values()
    ]
    columns += [np.full(len(ticks), value) for value in times]
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def rows_in(found: pa.Table) -> list[tuple[int, ...]]:
    """Give the rows of a table, sorted; dates as days."""
    batches = [lake.columns_in(batch) for batch in found.to_batches()]
    return sorted(
        row for columns in batches for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    )


def read_all(table: str = "trade") -> list[tuple[int, ...]]:
    """Give all rows that a reader sees."""
    return rows_in(history.read_ticks(table, None, 0, 2**63 - 1))


class Crash(BaseException):
    """The process ends here: nothing catches it."""


@contextmanager
def crashing_at(point: str, *, nth: int = 1) -> Iterator[Any]:
    """Give a `reached` that ends the run at a named point, and lose the connection as the process's end would."""
    seen = 0

    def reached(name: str) -> None:
        nonlocal seen
        seen += name == point
        if name == point and seen == nth:
            raise Crash(point)

    try:
        yield reached
    except Crash:
        connection.close()
    else:
        raise AssertionError(f"the point {point} was not reached")
