"""Fills the slots of the two halves of the hot path, as `config.urls` joins views. Reached by dotted path from the settings."""

from collections.abc import Callable
from typing import Any

from django.conf import settings

from distribution.publishers import PulsarPublisher
from integration.market.events import decode, row_bytes
from integration.market.identifiers import identity_hash
from integration.pipeline import Slots
from integration.reference import ReferenceCache
from integration.sequencing import SequencerLoop
from integration.sources import pulsar_client
from quality import screening


def build() -> Slots:
    """Fill the slots of the way in."""
    return Slots(
        decode=decode,
        row_bytes=row_bytes,
        digest=identity_hash,
        screen=screening.screen,
        screen_codes=screening.CODES,
        screen_detail=screening.detail,
        new_screen_state=screening.ScreenState,
        pack_screen_state=screening.pack_state,
        unpack_screen_state=screening.unpack_state,
    )


def build_sequencer(*, holder: str, should_stop: Callable[[], bool], sleep: Callable[[float], Any]) -> SequencerLoop:
    """Fill the slots of the way out: who publishes, and where to."""
    topics = {**settings.INTEGRATED_TOPICS, "echo": settings.CANARY_ECHO_TOPIC}
    references = ReferenceCache()

    def connect() -> Any:
        return pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN, ca_file=settings.MDI.pulsar_ca_file)

    return SequencerLoop(
        holder=holder,
        publisher=PulsarPublisher(connect, topics),
        reference=references.current,
        topics=topics,
        grace_ns=settings.MDI.bar_grace_ms * 1_000_000,
        standby_after_s=settings.MDI.standby_after_ms / 1000,
        should_stop=should_stop,
        sleep=sleep,
    )
