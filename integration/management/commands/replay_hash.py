"""`manage.py replay_hash DIR`: the pipeline run again over the input log (MDI_RECORD_DIR) gives the bytes that are stored."""

import hashlib
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import import_string

from integration.models import Batch, Position
from integration.recording import first_difference, log_path, run_again


class Command(BaseCommand):
    """Run the input log again, compare each batch with what is stored, print one hash over all; exit 1 at the first difference."""

    help = (
        "Run the recorded input (MDI_RECORD_DIR) through the pipeline again. Prints the hash of what it gives (batch payloads with flags, "
        "and what is beside ticks). Exit 1, naming batch, row, column and both values, where it differs from what is stored."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="the folder that MDI_RECORD_DIR named")
        parser.add_argument("--expect", default="", help="a hash that an earlier run gave")
        parser.add_argument("--json", action="store_true", help="one JSON object")

    def handle(self, *_: Any, **options: Any) -> None:
        slots, whole, count, missing = import_string(settings.TICK_PIPELINE)(), hashlib.sha256(), 0, 0
        for position in Position.objects.order_by("partition"):
            path = log_path(options["folder"], position.partition)
            if not path.exists():
                continue
            for ours in run_again(options["folder"], path, slots):
                whole.update(ours.number.to_bytes(8, "big") + ours.payload + ours.extras)
                count += 1
                stored = Batch.objects.filter(position=position, number=ours.number).first()
                if stored is None:
                    missing += 1  # never committed, or deleted by retention
                elif words := first_difference(ours, bytes(stored.payload), bytes(stored.extras)):
                    raise CommandError(
                        f"batch {stored.pk} (number {ours.number} of {position.partition}), {words}", returncode=1
                    )
        told = {"hash": whole.hexdigest(), "batches": count, "not_stored": missing}
        self.stdout.write(
            json.dumps(told)
            if options["json"]
            else f"{told['hash']}  {count:,} batches, {missing:,} not stored any more"
        )
        if options["expect"] and options["expect"] != told["hash"]:
            raise CommandError(f"expected {options['expect']}", returncode=1)
