"""`manage.py query_bars`: an instrument's bars as they are, as they were first published, or as they were known at a time."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from integration import asking
from integration.models import Source

_ROWS: Final = 10_000
_SCHEMA: Final = pa.schema(
    [("instrument_id", pa.int32()), ("timeframe", pa.string()), ("start", pa.int64()), ("end", pa.int64()),
     ("session_date", pa.date32()), ("open", pa.int64()), ("high", pa.int64()), ("low", pa.int64()), ("close", pa.int64()),
     ("volume", pa.decimal128(38, 9)), ("turnover", pa.decimal256(50, 18)), ("trade_count", pa.int64()), ("revision", pa.int32()),
     ("reason", pa.string()), ("is_partial", pa.bool_()), ("is_final", pa.bool_())]
)  # fmt: skip
# Revision 0 is a bar without a price yet: it was never published. A batch row outlives its payload for as long as its bars.
_STATEMENT: Final = """
  SELECT DISTINCT ON (b.start) {columns} FROM integration_bar b LEFT JOIN integration_batch x ON x.pub_seq = b.pub_seq
   WHERE b.instrument_id = %s AND b.timeframe = %s AND b.source_id = %s AND b.start >= %s AND b.start < %s AND b.revision > 0
     AND coalesce(x.ts_processed, 0) <= %s
   ORDER BY b.start, b.revision {direction}
"""


class Command(BaseCommand):
    """Write bars in order of their start."""

    help = "Write an instrument's bars: --revision final (newest, the default), first (as first published), asof TIME (as known then)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        asking.add_arguments(parser)
        parser.add_argument("--timeframe", choices=("1m", "5m", "15m", "1h", "4h", "1d"), default="1m")
        parser.add_argument("--source", default="consolidated", help="A source's code; with a leading “-”, the bars it delivered itself.")  # fmt: skip
        parser.add_argument(
            "--revision", nargs="+", default=["final"], metavar="WHICH", help="first, final, or asof TIME"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        spans = asking.spans_of(options["instrument"], options["start"], options["end"])
        direction, known_at = _revision(options["revision"])
        source_id = _source(options["source"])
        names = ", ".join(f'b."{name}"' for name in _SCHEMA.names)
        statement = _STATEMENT.format(columns=names, direction=direction)
        rows = (
            batch
            for span in spans
            for batch in _bars(
                statement,
                [span.instrument_id, options["timeframe"], source_id, span.start_ns, span.end_ns, known_at],
            )
        )
        asking.answer(options, _SCHEMA, rows)


def _revision(words: list[str]) -> tuple[str, int]:
    """Give the order in which revisions are looked at, and the time (ns) up to which they must have been known."""
    if words == ["first"]:
        return "ASC", 2**63 - 1
    if words == ["final"]:
        return "DESC", 2**63 - 1
    if len(words) == 2 and words[0] == "asof":
        return "DESC", asking.time_from(words[1])
    raise CommandError(f"--revision is first, final, or asof TIME, was {' '.join(words)!r}")


def _source(text: str) -> int:
    if text == "consolidated":
        return 0
    code = text.removeprefix("-")
    found = Source.objects.filter(code=code).values_list("pk", flat=True).first()
    if found is None:
        raise CommandError(f"no such source, was {code!r}")
    return -found if text.startswith("-") else found


def _bars(statement: str, values: list[Any]) -> Iterator[pa.RecordBatch]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        while rows := cursor.fetchmany(_ROWS):
            columns = [
                pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
