"""`manage.py feed`: play the upstream. The loop is `integration.demo.feeder`; this is its command line."""

import json
import signal
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Publish demo market data until SIGTERM, then print one JSON line of what was sent."""

    help = (
        "Publish demo market data to the normalized topics: real E-mini trades replayed, simulated instruments, and faults. "
        "Ends on SIGTERM or SIGINT with one JSON line of what was sent."
    )
    requires_system_checks: list[str] = []  # the feed uses no part of the service

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--speed", type=float, default=10.0, help="how much faster than real the trades are replayed (10)"
        )
        parser.add_argument(
            "--rate", type=float, default=200.0, help="simulated ticks a second in all; 0 for none (200)"
        )
        parser.add_argument("--faults", type=float, default=1.0, help="multiplies the rate of faults; 0 for none (1)")
        parser.add_argument("--seed", type=int, default=1, help="the same seed and start make the same events (1)")
        parser.add_argument("--start", type=int, default=None, help="schedule begins here, ns since 1970 UTC (now)")
        parser.add_argument(
            "--session", type=int, default=None, help="session of the sequence numbers (start in seconds)"
        )
        parser.add_argument("--count", type=int, default=None, help="stop after so many events")
        parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
        parser.add_argument(
            "--max-rate", action="store_true", help="send as fast as the broker takes it, stamped with the present"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        # Imported here: `manage.py help` and the tests of other commands need none of it.
        from integration.demo.events import Options
        from integration.demo.feeder import Feeder
        from integration.demo.history import MissingDataError
        from integration.demo.link import Link
        from integration.demo.stream import History, Stream

        _refuse_bad(options)
        start = options["start"] if options["start"] is not None else time.time_ns()
        session = options["session"] if options["session"] is not None else start // 1_000_000_000
        chosen = Options(options["seed"], start, options["rate"], options["speed"], options["faults"])
        try:
            history = History.load(chosen.seed)
        except MissingDataError as problem:
            raise CommandError(str(problem)) from problem
        feeder = Feeder(
            Stream(chosen, history, ceiling=time.time_ns if options["max_rate"] else None),
            Link(
                settings.PULSAR_URL, settings.PULSAR_FEED_TOKEN, settings.NORMALIZED_TOPICS, settings.MDI.pulsar_ca_file
            ),
            session=session,
            is_paced=not options["max_rate"],
            count=options["count"],
            seconds=options["seconds"],
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: feeder.stop())
        feeder.run()
        self.stdout.write(json.dumps(feeder.report(), separators=(",", ":")))


def _refuse_bad(options: dict[str, Any]) -> None:
    """Turn away numbers that would make no stream; NaN fails every comparison."""
    for name, lowest in (("rate", 0), ("faults", 0), ("seed", 0)):
        if not lowest <= options[name] < 1e9:
            raise CommandError(f"--{name} must be between {lowest} and a billion, was {options[name]}")
    if not 0.001 <= options["speed"] <= 1e6:
        raise CommandError(f"--speed must be between 0.001 and a million, was {options['speed']}")
    for name in ("start", "session", "count", "seconds"):
        if options[name] is not None and not 0 <= options[name] < 2**63:
            raise CommandError(f"--{name} must not be negative, was {options[name]}")
