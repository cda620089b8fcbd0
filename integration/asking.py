"""What the query commands share: the instrument that a text named at a time, times as people write them, and where the answer goes."""

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandError

from integration import export
from integration.market.times import ns_from_text
from integration.reference import load_reference


@dataclass(frozen=True, slots=True)
class Span:
    """An instrument, and the times at which the text asked for named it."""

    instrument_id: int
    start_ns: int
    end_ns: int


def time_from(text: str) -> int:
    """Read ns since 1970, an ISO date (its UTC midnight) or an ISO time with a zone; ns UTC."""
    if text.isdecimal() and len(text) > 8:
        return int(text)
    try:
        return ns_from_text(f"{text}T00:00:00Z" if len(text) == 10 else text)
    except ValueError as problem:
        raise ArgumentTypeError(str(problem)) from problem


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that both commands have."""
    parser.add_argument("instrument", help="As an event names it: AAPL.XNAS, ISIN:US0378331005, FIGI:…; or #7, our id.")
    parser.add_argument(
        "--from", dest="start", type=time_from, required=True, help="ISO date or time, or ns; inclusive."
    )
    parser.add_argument("--to", dest="end", type=time_from, required=True, help="ISO date or time, or ns; exclusive.")
    parser.add_argument("--format", choices=export.FORMATS, default="jsonl")
    parser.add_argument("--output", help="A file; default: standard output.")


def spans_of(text: str, start_ns: int, end_ns: int) -> list[Span]:
    """Give what a text named over a range, in order of time; CommandError when nothing."""
    if text.startswith("#") and text[1:].isdecimal():
        return [Span(int(text[1:]), start_ns, end_ns)]
    found = [
        Span(alias.instrument_id, max(start_ns, alias.start), min(end_ns, alias.end))
        for alias in load_reference().aliases.get(text, ())
        if alias.start < end_ns and alias.end > start_ns
    ]
    if not found:
        raise CommandError(f"no instrument has that name in that time, was {text!r}")
    return found


@contextmanager
def sink_of(output: str | None) -> Iterator[BinaryIO]:
    """Give the file to write to; one that was not written whole is not left under its name."""
    if not output:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = Path(f"{output}.part")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def answer(options: dict[str, Any], schema: Any, batches: Any) -> int:
    """Write what was asked for where it was asked for; give the number of rows."""
    with sink_of(options["output"]) as sink:
        return export.write(options["format"], schema, batches, sink)
