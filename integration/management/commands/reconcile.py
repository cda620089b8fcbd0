"""`manage.py reconcile`: what came = what is stored + turned away + repeats, exactly. The work is `integration.reconciliation`."""

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from integration.reconciliation import Balance, ChannelSequences, channel_sequences, reconcile, totals


class Command(BaseCommand):
    """Hold every batch that was not looked at yet against the tables, then print the sums; exit 1 when they do not balance."""

    help = (
        "Reconcile: for each source, channel and session, received = ticks + beside ticks (status, bars, quarantined, parked) + repeats "
        "+ refused claims, and the tables hold exactly these. Exit 1 when not."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object")
        parser.add_argument(
            "--again", action="store_true", help="look at all batches that are kept, not at new ones only"
        )
        parser.add_argument(
            "--seconds", type=float, default=3_600.0, help="stop after so long; the next run goes on (3600)"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        balance = reconcile(now_ns=time.time_ns(), again=options["again"], seconds=options["seconds"])
        sums, numbers = totals(), channel_sequences()
        if options["json"]:
            told = {
                "balances": balance.is_even,
                "batches": balance.batches,
                "batches_without_tally": balance.without_tally,
                "differences": balance.differences,
                "more_differences": balance.more,
                "channels": sums,
                "sequences": [asdict(item) | {"missing": item.missing} for item in numbers],
            }
            self.stdout.write(json.dumps(told, separators=(",", ":")))
        else:
            self._tell(balance, sums, numbers)
        if not balance.is_even:
            raise CommandError("does not balance", returncode=1)

    def _tell(self, balance: Balance, sums: list[dict[str, Any]], numbers: list[ChannelSequences]) -> None:
        self.stdout.write(
            f"{'source':<20}{'channel':>8}{'session':>20}{'received':>12}{'ticks':>12}{'beside':>9}{'repeats':>9}{'claims':>8}{'released':>9}"
        )
        for row in sums:
            self.stdout.write(
                f"{row['source'] or '(by bytes)':<20}{row['channel']:>8}{row['session']:>20}{row['received']:>12,}{row['ticks']:>12,}"
                f"{row['others']:>9,}{row['repeats']:>9,}{row['refused_claims']:>8,}{row['released']:>9,}"
            )
        for item in numbers:
            if item.missing or item.in_gaps:
                self.stdout.write(
                    f"{item.source} channel {item.channel} session {item.session}: {item.seen:,} numbers of {item.lowest:,} to {item.highest:,},"
                    f" {item.missing:,} missing, {item.in_gaps:,} in the gap ledger"
                )
        for words in balance.differences:
            self.stdout.write(f"DIFFERENCE {words}")
        if balance.without_tally:
            self.stdout.write(
                f"{balance.without_tally:,} batches were stored by a version that kept no tally: tables only"
            )
        self.stdout.write(
            f"{balance.batches:,} batches looked at: {'balances' if balance.is_even else 'DOES NOT BALANCE'}"
        )
