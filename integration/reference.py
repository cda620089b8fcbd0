"""Compiles the reference tables into `market.reference.Reference`, and again when their version moves. Reads only."""

import threading
import time
from datetime import UTC, datetime
from typing import Final

from django.utils import timezone

from integration.market.reference import FOREVER, PENCE, AliasSpan, InstrumentFacts, Reference, Sessions, SourceFacts
from integration.market.sessions import session_table
from integration.models import Instrument, InstrumentAlias, Listing, ReferenceVersion, Source, Venue

CHECK_EVERY_S: Final = 0.5
_PENCE_UNIT: Final = "0.01"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def load_reference() -> Reference:
    """Read all reference data; the version is read first, so that a change during the reading is noticed at the next check."""
    version = current_version()
    listings: dict[int, list[Listing]] = {}
    for listing in Listing.objects.order_by("instrument_id", "-is_primary", "venue_id"):
        listings.setdefault(listing.instrument_id, []).append(listing)
    return Reference(version, _aliases(), _sources(), _instruments(listings), _sessions())


def current_version() -> int:
    """Give the version that every change of reference data raises; 0 before the first."""
    return ReferenceVersion.objects.values_list("version", flat=True).filter(pk=1).first() or 0


class ReferenceCache:
    """The newest compiled reference of this process, shared by its threads; looks for a new version twice a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: Reference | None = None
        self._checked_at = 0.0

    def current(self) -> Reference:
        """Give reference data no older than half a second plus the time to compile it."""
        with self._lock:
            now = time.monotonic()
            if self._current is None or now - self._checked_at > CHECK_EVERY_S:
                self._checked_at = now
                if self._current is None or current_version() != self._current.version:
                    self._current = load_reference()
            return self._current


def _aliases() -> dict[str, tuple[AliasSpan, ...]]:
    spans: dict[str, list[AliasSpan]] = {}
    for alias in InstrumentAlias.objects.order_by("valid_from"):
        span = AliasSpan(_ns(alias.valid_from, 0), _ns(alias.valid_to, FOREVER), alias.instrument_id)
        spans.setdefault(alias.wire_text, []).append(span)
    return {text: tuple(sorted(found, key=lambda span: span.start)) for text, found in spans.items()}


def _sources() -> dict[str, SourceFacts]:
    return {
        source.code: SourceFacts(
            id=source.pk,
            topics=frozenset(binding.topic for binding in source.bindings.all()),
            is_active=source.is_active,
            sequence_jump_limit=source.sequence_jump_limit,
            future_limit_ns=source.future_limit_ms * 1_000_000,
            ancient_limit_ns=source.ancient_limit_s * 1_000_000_000,
            crossed_limit_bps=source.crossed_limit_bps,
        )
        for source in Source.objects.prefetch_related("bindings")
    }


def _instruments(listings: dict[int, list[Listing]]) -> dict[int, InstrumentFacts]:
    facts = {}
    tickers = {
        alias.instrument_id: alias.value
        for alias in InstrumentAlias.objects.filter(scheme=InstrumentAlias.Scheme.TICKER).order_by("valid_to")
    }
    for instrument in Instrument.objects.all():
        mine = listings.get(instrument.pk, [])
        currencies = {listing.currency for listing in mine}
        if any(str(listing.price_unit) == _PENCE_UNIT and listing.currency == "GBP" for listing in mine):
            currencies.add(PENCE)
        facts[instrument.pk] = InstrumentFacts(
            id=instrument.pk,
            venue=mine[0].venue_id if mine else "",
            currencies=frozenset(currencies),
            symbol=tickers.get(instrument.pk, ""),
            allows_negative=instrument.allows_negative_price,
            is_canary=bool(mine) and mine[0].venue_id == "MDIX",
        )
    return facts


def _sessions() -> dict[str, Sessions]:
    last_year = timezone.now().year + 1
    return {venue.mic: session_table(venue.calendar, last_year=last_year) for venue in Venue.objects.all()}


def _ns(moment: datetime | None, otherwise: int) -> int:
    if moment is None:
        return otherwise
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
