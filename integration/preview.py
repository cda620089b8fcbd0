"""What would a release do now? Sends a sample of quarantined events through the pure pipeline and stores nothing."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from django.conf import settings
from django.utils.module_loading import import_string

from integration.market.errors import INTERNAL, POISON
from integration.market.identity import KnownIdentities
from integration.market.ticks import Message
from integration.models import QuarantinedEvent
from integration.pipeline import PartitionState, Request, Slots, process
from integration.reference import load_reference

SAMPLE: Final = 200


@dataclass(frozen=True, slots=True)
class Trial:
    """`tried` events of the oldest that wait; how many would be stored, and the codes of those that would not."""

    tried: int
    passing: int
    failing: tuple[tuple[str, int], ...]
    words: str = ""


def trial_release(code: str) -> Trial:
    """Try the oldest waiting events of a reason, each for itself, with the reason waived as a release waives it."""
    if code == POISON:
        # The bytes have ended a process once; this one serves pages.
        return Trial(0, 0, (), "These bytes ended the process that decoded them, so they are not tried here.")
    slots: Slots = import_string(settings.TICK_PIPELINE)()
    reference = load_reference()
    waiting = QuarantinedEvent.objects.filter(code=code, state__in=("quarantined", "parked")).order_by("id")
    rows = waiting.values_list("raw", "ts_publish", "ts_received", "position__subscription__topic")[:SAMPLE]
    outcomes: Counter[str] = Counter()
    for raw, ts_publish, ts_received, topic in rows:
        message = Message(bytes(raw), ts_publish, ts_received)
        request = Request(topic, [message], reference, is_release=True, waived=frozenset({code}))
        outcomes[_outcome(request, slots)] += 1
    passing = outcomes.pop("", 0)
    return Trial(passing + outcomes.total(), passing, tuple(outcomes.most_common()))


def _outcome(request: Request, slots: Slots) -> str:
    """Name the code that an event would be turned away for; empty when it would be stored."""
    state = PartitionState(KnownIdentities(), slots.new_screen_state())
    try:
        outcome = process(request, state, slots, lambda wanted: [None] * len(wanted))
    except Exception:  # noqa: BLE001 - what a stage of ours does to bad bytes is the answer, as in the consumer
        return INTERNAL
    turned_away = [*outcome.refused, *outcome.parked]
    return turned_away[0].rejection.code if turned_away else ""
