"""Rows that the tests of the desk share: one call, one row with plausible values."""

import itertools
import time
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User

from integration.models import (
    Instrument,
    InstrumentAlias,
    Listing,
    Position,
    QuarantinedEvent,
    Source,
    Subscription,
    Venue,
)

_numbers = itertools.count(1)


def operator() -> User:
    """Give a superuser."""
    return User.objects.create_superuser(f"operator{next(_numbers)}", password="secret")


def subscription() -> Subscription:
    """Give the subscription of equities."""
    return Subscription.objects.get_or_create(topic=settings.NORMALIZED_TOPICS["equities"])[0]


def position(number: int = 0) -> Position:
    """Give the position of a partition of equities."""
    topic = subscription()
    return Position.objects.get_or_create(
        partition=f"{topic.topic}-partition-{number}", defaults={"subscription": topic, "clock": time.time_ns()}
    )[0]


def quarantined(code: str = "price_sign", **values: Any) -> QuarantinedEvent:
    """Give an event that waits in quarantine."""
    now = time.time_ns()
    row: dict[str, Any] = {
        "position": position(),
        "batch_id": 1,
        "code": code,
        "detail": "a detail",
        "source": "simulated",
        "channel": 1,
        "session": 1,
        "sequence": next(_numbers),
        "instrument": "AAPL.XNAS",
        "ts_event": now,
        "ts_publish": now,
        "ts_received": now,
        "raw": b'{"event_id": "n-1"}',
    }
    return QuarantinedEvent.objects.create(**row | values)


def source(code: str = "simulated") -> Source:
    """Give a source that may use the topic of equities."""
    row, is_new = Source.objects.get_or_create(code=code, defaults={"name": "Simulated"})
    if is_new:
        row.bindings.create(topic=subscription().topic)
    return row


def instrument(ticker: str = "AAPL.XNAS", **values: Any) -> Instrument:
    """Give an instrument with a listing and a ticker."""
    venue = Venue.objects.get_or_create(
        mic=ticker.rpartition(".")[2], defaults={"name": "A venue", "is_internal": True}
    )[0]
    row = Instrument.objects.create(**{"name": ticker, "asset_class": "equities"} | values)
    Listing.objects.create(instrument=row, venue=venue, currency="USD")
    InstrumentAlias.objects.create(instrument=row, value=ticker)
    return row
