"""The canary: a numbered event of one internal instrument that travels the whole path, so that readiness is measured.

Holds its names, its bytes and its age. The consumer's process sends it, the sequencer's end of the path marks it as seen; it is in
no count and in no table of ticks (docs/events.md).
"""

import threading
import time
from typing import Any, Final

import msgspec
import structlog
from django.conf import settings
from django.core.cache import cache
from redis.exceptions import RedisError

from integration.models import Batch

log = structlog.get_logger(__name__)

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
    """Remember that the canary sent at `ts_event` (ns UTC) has reached the end of the path; ticks flow on without Valkey."""
    try:
        cache.set(CACHE_KEY, ts_event, _CACHE_SECONDS)
    except (RedisError, OSError) as problem:
        log.warning("canary not marked", error=str(problem))


def canary_age(now_ns: int) -> float | None:
    """Tell the seconds since the newest canary at the end of the path was sent; None when none was ever seen.

    Reads the mark; where Valkey has lost it, the newest numbered batch of the canary's partition.
    """
    seen = _marked()
    if seen is None:
        newest = Batch.objects.filter(
            position__subscription__topic=canary_topic(), pub_seq__isnull=False, message_count__gt=0
        ).order_by("-id")
        seen = newest.values_list("clock", flat=True).first()
    return None if seen is None else max(0.0, (now_ns - seen) / 1e9)


def _marked() -> int | None:
    try:
        marked: int | None = cache.get(CACHE_KEY)
    except (RedisError, OSError):
        return None
    return marked


class CanarySender(threading.Thread):
    """Sends a canary now and then until told to stop. Runs in the consumer's process, on its broker connection."""

    def __init__(self, client: Any, stop: threading.Event) -> None:
        super().__init__(name="canary", daemon=True)
        self._client, self._stop_event = client, stop
        self._interval_s = settings.MDI.canary_interval_ms / 1000

    def run(self) -> None:
        """Send; a broker that is away is tried again at the next beat, since silence is what the canary is for."""
        session, sequence, producer = time.time_ns(), 0, None
        while self._interval_s and not self._stop_event.wait(self._interval_s):
            try:
                producer = producer or self._client.create_producer(canary_topic())
                sequence += 1
                producer.send(canary_event(time.time_ns(), session, sequence), partition_key=INSTRUMENT)
            except Exception as problem:  # noqa: BLE001 - of any kind: its silence is the alarm
                log.warning("canary not sent", error=str(problem))
                producer = None
