"""`manage.py load_demo`: the demo's reference data as rows. What is there stays as it is, since operators may have changed it."""

from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import transaction

from integration.demo.catalogue import INSTRUMENTS, SOURCES, VENUES, DemoInstrument, DemoSource
from integration.market.units import decimal_from_nanos
from integration.models import Instrument, InstrumentAlias, Issuer, Listing, Source, SourceBinding, Venue

Scheme = InstrumentAlias.Scheme


class Command(BaseCommand):
    """Add venues, sources and instruments of the demo that are missing."""

    help = (
        "Add the demo's venues, sources, instruments and aliases where they are missing; changes nothing that exists."
    )

    def handle(self, *_: Any, **options: Any) -> None:
        with transaction.atomic():
            for venue in VENUES:
                Venue.objects.get_or_create(
                    mic=venue.mic,
                    defaults={"name": venue.name, "calendar": "24/7", "timezone": venue.timezone, "is_internal": True},
                )
            for source in SOURCES:
                _add_source(source)
            added = sum(_add_instrument(instrument) for instrument in INSTRUMENTS)
        self.stdout.write(f"demo reference data: {len(INSTRUMENTS)} instruments, {added} of them new")


def _add_source(source: DemoSource) -> None:
    row, is_new = Source.objects.get_or_create(
        code=source.code, defaults={"name": source.name, "is_simulated": source.is_simulated}
    )
    if is_new:  # a binding that an operator took away stays away
        SourceBinding.objects.bulk_create(
            SourceBinding(source=row, topic=settings.NORMALIZED_TOPICS[asset_class])
            for asset_class in source.asset_classes
        )


def _add_instrument(demo: DemoInstrument) -> bool:
    """Add an instrument with its listing and aliases; False when its ticker names one already, now or in the past."""
    if InstrumentAlias.objects.filter(scheme=Scheme.TICKER, value=demo.ticker).exists():
        return False
    issuer = Issuer.objects.get_or_create(name=demo.issuer, defaults={"country": "US"})[0] if demo.issuer else None
    row = Instrument.objects.create(
        name=demo.name,
        asset_class=demo.asset_class,
        issuer=issuer,
        price_decimals=demo.decimals,
        allows_negative_price=demo.allows_negative,
    )
    Listing.objects.create(
        instrument=row,
        venue_id=demo.mic,
        currency=demo.currency,
        price_unit=Decimal(1),
        tick_size=decimal_from_nanos(demo.tick),
    )
    InstrumentAlias.objects.create(instrument=row, scheme=Scheme.TICKER, value=demo.ticker)
    if demo.isin and not InstrumentAlias.objects.filter(scheme=Scheme.ISIN, value=demo.isin).exists():
        InstrumentAlias.objects.create(instrument=row, scheme=Scheme.ISIN, value=demo.isin)
    return True
