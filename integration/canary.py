"""The canary: a numbered event of one internal instrument that travels the whole path, so that readiness is measured.

Holds its names, its bytes and its age. The consumer's process sends it, the sequencer's end of the path marks it as seen; it is in
no count and in no table of ticks (docs/events.md).
"""

from typing import Final

import msgspec
from django.conf import settings
from django.core.cache import cache

from integration.models import Batch

VENUE: Final = "MDIX"
INSTRUMENT: Final = "CANARY.MDIX"
SOURCE: Final = "mdi-canary"
CACHE_KEY: Final = "canary"  # the cache's prefix makes it mdi:1:canary in Valkey
_CACHE_SECONDS: Final = 3_600
_PRICE: Final = "1"


def canary_topic() -> str:
    """Name the topic of the canary, `persistent://market-data/canary/heartbeat` unless the tenant is set otherwise."""
    return str(settings.CANARY_TOPIC)


def canary_event(now_ns: int, session: int, sequence: int) -> bytes:
    """Write one canary as a form 1 event; `now_ns` is the send time, ns UTC, and its `ts_event`."""
    return msgspec.json.encode(
        {
            "event_id": f"canary-{session}-{sequence}",
            "timestamp": now_ns,
            "market_data": {
                "instrument_id": INSTRUMENT,
                "timestamp": now_ns,
                "price_data": {"price": _PRICE},
                "volume_data": {"size": 1},
                "metadata": {"source": SOURCE, "kind": "trade", "channel": 0, "session": session, "sequence": sequence},
            },
        }
    )


def mark_canary(ts_event: int) -> None:
    """Remember that the canary sent at `ts_event` (ns UTC) has reached the end of the path."""
    cache.set(CACHE_KEY, ts_event, _CACHE_SECONDS)


def canary_age(now_ns: int) -> float | None:
    """Tell the seconds since the newest canary at the end of the path was sent; None when none was ever seen.

    Reads the mark; where Valkey has lost it, the newest numbered batch of the canary's partition.
    """
    seen: int | None = cache.get(CACHE_KEY)
    if seen is None:
        newest = Batch.objects.filter(
            position__subscription__topic=canary_topic(), pub_seq__isnull=False, message_count__gt=0
        ).order_by("-id")
        seen = newest.values_list("clock", flat=True).first()
    return None if seen is None else max(0.0, (now_ns - seen) / 1e9)
