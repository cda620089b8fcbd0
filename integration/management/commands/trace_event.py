"""`manage.py trace_event`: says where one event is. The search is `integration.trace`; this is its command line."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration.market.times import ns_from_text, text_from_ns
from integration.models import Source
from integration.trace import BUDGET_S, UNKNOWN, EventName, Trace, trace


class Command(BaseCommand):
    """Print what is known of an event; exit 1 when it was never seen, 3 when it is stored more than once."""

    help = (
        "Say where an event is: received, stored, numbered, published, quarantined, parked, released, missing or unknown. "
        "Give its event_id, or --source, --channel, --session and --sequence. Exit 1: never seen. Exit 3: stored twice, a defect."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("event_id", nargs="?", help="event_id, where the source does not number its events")
        parser.add_argument("--source", default="", help="code of the source")
        parser.add_argument("--channel", type=int, default=0, help="channel (0)")
        parser.add_argument("--session", type=int, default=0, help="session (0)")
        parser.add_argument("--sequence", type=int, help="sequence")
        parser.add_argument("--around", help="time of the event, ISO 8601 or ns: where to search first")
        parser.add_argument("--seconds", type=float, default=BUDGET_S, help=f"search so long at most ({BUDGET_S:.0f})")
        parser.add_argument("--json", action="store_true", help="one JSON object")

    def handle(self, *_: Any, **options: Any) -> None:
        found = trace(_name(options), around_ns=_around(options["around"]), budget_s=options["seconds"])
        if options["json"]:
            self.stdout.write(json.dumps(found.as_dict(), separators=(",", ":")))
        else:
            self._tell(found)
        if found.rows > 1:
            raise CommandError("stored more than once", returncode=3)
        if found.state == UNKNOWN:
            raise CommandError("never seen", returncode=1)

    def _tell(self, found: Trace) -> None:
        self.stdout.write(f"{found.name.source or 'any source'}, {found.name.words}")
        self.stdout.write(f"{found.state}: {found.words}")
        for step in found.steps:
            self.stdout.write(f"  {text_from_ns(step.at) if step.at else '–':<31}{step.stage:<18}{step.words}")
            facts = ", ".join(f"{key} {value}" for key, value in step.facts.items() if value is not None)
            if facts:
                self.stdout.write(f"{'':<51}{facts}")
        for note in found.notes:
            self.stdout.write(f"  note: {note}")


def _name(options: dict[str, Any]) -> EventName:
    source, sequence = options["source"], options["sequence"]
    if source and not Source.objects.filter(code=source).exists():
        raise CommandError(f"no source of this code, was {source!r}")
    if (options["event_id"] is None) == (sequence is None):
        raise CommandError("give either an event_id, or --sequence with --source, --channel and --session")
    if sequence is None:
        return EventName.of_event_id(options["event_id"], source)
    return EventName(options["channel"], options["session"], sequence, source)


def _around(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return int(text) if text.isdigit() else ns_from_text(text)
    except ValueError as problem:
        raise CommandError(f"--around must be ISO 8601 with a zone, or ns, was {text!r}") from problem
