"""`manage.py bootstrap`: what must exist before the first event; repeatable, and changes nothing that people have changed since."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import transaction

from integration import canary, services
from integration.models import (
    AssetClass,
    Instrument,
    InstrumentAlias,
    Listing,
    ReferenceVersion,
    SequencerState,
    Source,
    SourceBinding,
    Subscription,
    Venue,
)


class Command(BaseCommand):
    """Make operators, subscriptions, the canary's reference data and the single rows exist."""

    help = "Make the operators, the subscriptions and the canary exist; with --demo the demo's reference data too. Repeatable."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--demo", action="store_true", help="Also load the demo's reference data (load_demo).")

    def handle(self, *_: Any, **options: Any) -> None:
        with transaction.atomic():
            services.ensure_operators(operator_password=settings.MDI.operator_password)
            for topic in (*settings.NORMALIZED_TOPICS.values(), settings.CANARY_TOPIC):
                Subscription.objects.get_or_create(topic=topic)
            ReferenceVersion.objects.get_or_create(pk=1)
            SequencerState.objects.get_or_create(pk=1)
            _ensure_canary()
        if options["demo"]:
            call_command("load_demo", stdout=self.stdout)
        self.stdout.write(f"operators, {Subscription.objects.count()} subscriptions and the canary exist")


def _ensure_canary() -> None:
    """Make the canary's venue, instrument and source; a binding that an operator took away stays away."""
    Venue.objects.get_or_create(
        mic=canary.VENUE, defaults={"name": "Market data integration (internal)", "is_internal": True}
    )
    alias = {"scheme": InstrumentAlias.Scheme.TICKER, "value": canary.INSTRUMENT}
    if not InstrumentAlias.objects.filter(**alias).exists():
        instrument = Instrument.objects.create(name="Canary (internal)", asset_class=AssetClass.ALTERNATIVE)
        Listing.objects.create(instrument=instrument, venue_id=canary.VENUE, currency="USD")
        InstrumentAlias.objects.create(instrument=instrument, **alias)
    source, is_new = Source.objects.get_or_create(
        code=canary.SOURCE, defaults={"name": "Canary of this service", "is_simulated": True}
    )
    if is_new:
        SourceBinding.objects.create(source=source, topic=settings.CANARY_TOPIC)
