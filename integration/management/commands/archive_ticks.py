"""`manage.py archive_ticks`: moves closed days of ticks to the lake now, instead of tonight."""

import time
from argparse import ArgumentParser
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration import archive
from integration.market.errors import MarketDataError
from integration.rows import LAYOUTS


class Command(BaseCommand):
    """Move one day, or every day older than `MDI_HOT_DAYS`."""

    help = "Move closed days of trades and quotes from PostgreSQL to the lake. Can be run again at any time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--day", type=date.fromisoformat, help="Only this UTC day (2026-01-05); default: all that are due."
        )
        parser.add_argument("--table", choices=tuple(LAYOUTS), help="Only trades or only quotes.")

    def handle(self, *args: Any, **options: Any) -> None:
        day, table = options["day"], options["table"]
        if day and day >= date.fromordinal(date(1970, 1, 1).toordinal() + time.time_ns() // (86_400 * 10**9)):
            raise CommandError(f"a day is archived when it is over (UTC), was {day}")
        due = [(name, day) for name in LAYOUTS] if day else archive.closed_days(time.time_ns())
        failed = 0
        for name, when in due:
            if table in (None, name):
                failed += not self._archive(name, when)
        if failed:
            raise CommandError(f"{failed} of {len(due)} days did not move; nothing of them is lost, run again")

    def _archive(self, table: str, day: date) -> bool:
        try:
            done = archive.archive_day(table, day)
        except MarketDataError as problem:
            self.stderr.write(f"{table} {day}: {problem}")
            return False
        if done is None:
            self.stdout.write(f"{table} {day}: nothing to move")
        else:
            rate = int(done.moved / done.seconds)
            self.stdout.write(
                f"{table} {day}: {done.moved} ticks moved in {done.seconds:.1f} s ({rate}/s), {done.rows} in the lake, generation {done.generation}"
            )
        return True
