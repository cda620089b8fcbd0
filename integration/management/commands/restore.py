"""`manage.py restore DIR --replace`: everything as it was in a backup; the broker gives what came since. See `integration.backup`."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration.backup import BackupError, restore_backup


class Command(BaseCommand):
    """Replace all tables and the lake's folder by a backup's, in one transaction."""

    help = (
        "Restore a backup: every table and the lake's folder are REPLACED. Stop the service first. Started again, it reads from the broker "
        "what came since the backup; nothing is lost and nothing counted twice as long as the broker still has it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="a folder that `backup` wrote")
        parser.add_argument("--replace", action="store_true", help="yes, replace what is there")

    def handle(self, *_: Any, **options: Any) -> None:
        if not options["replace"]:
            raise CommandError("this replaces every table and the lake: say --replace")
        try:
            manifest = restore_backup(options["folder"], self.stdout.write)
        except (BackupError, OSError) as problem:
            raise CommandError(str(problem)) from problem
        self.stdout.write(f"restored backup {manifest.id} of {manifest.made_at}; start the service")
