"""`manage.py query_ticks`: an instrument's stored ticks, from PostgreSQL and the lake as one, in a format of choice."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from django.core.management.base import BaseCommand, CommandError

from integration import asking, history, lake
from integration.rows import LAYOUTS


class Command(BaseCommand):
    """Write ticks in order of `ts_event`."""

    help = "Write an instrument's stored trades or quotes: exact prices, times in ns."

    def add_arguments(self, parser: ArgumentParser) -> None:
        asking.add_arguments(parser)
        parser.add_argument("--table", choices=tuple(LAYOUTS), default="trade")
        parser.add_argument("--columns", help="Names separated by commas; default: all.")

    def handle(self, *args: Any, **options: Any) -> None:
        table = options["table"]
        columns = tuple(options["columns"].split(",")) if options["columns"] else lake.columns_of(table)
        spans = asking.spans_of(options["instrument"], options["start"], options["end"])
        try:
            asking.answer(options, lake.schema_of(table, columns), _rows(table, spans, columns))
        except (KeyError, ValueError) as problem:
            raise CommandError(f"no such column: {problem}") from problem


def _rows(table: str, spans: list[asking.Span], columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    for span in spans:
        yield from history.stream_ticks(table, span.instrument_id, span.start_ns, span.end_ns, columns)
