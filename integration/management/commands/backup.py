"""`manage.py backup DIR`: one consistent copy of everything, while the service works. See `integration.backup`."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration.backup import BackupError, make_backup


class Command(BaseCommand):
    """Write a backup into a new or empty folder."""

    help = "Back up every table (one snapshot) and the lake's folder into DIR, with checksums. The service may go on working."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="a folder that is new or empty")

    def handle(self, *_: Any, **options: Any) -> None:
        try:
            manifest = make_backup(options["folder"], self.stdout.write)
        except (BackupError, OSError) as problem:
            raise CommandError(str(problem)) from problem
        rows = sum(item.rows for item in manifest.tables)
        self.stdout.write(f"backup {manifest.id} of {rows:,} rows in {options['folder']}")
