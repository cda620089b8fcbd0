"""Which small cases are explored, in the suite and in `make faults`, and which mistakes they must find."""

from dataclasses import replace
from typing import Final

from tests.model.explore import WAY_OUT, Case

# Two consumers that are given the partition in turn, cut off, killed, with a commit that is lost or unsaid, a topic made anew.
TWO_CONSUMERS: Final = Case("two consumers of a partition", (("a", "b"),), faults=1)
STANDBY: Final = Case("a sequencer and its standby", (("a",),), consumers=1, sequencers=2, faults=1, kinds=WAY_OUT)
BARS: Final = Case(
    "ticks, then the bar that the clock closes", (("a",),), consumers=1, sequencers=1, faults=1, kinds=WAY_OUT, clock_s=200
)  # fmt: skip
IN_THE_SUITE: Final = (TWO_CONSUMERS, STANDBY)

NUMBERED: Final = Case(
    "two batches, a sequencer and its standby", (("a", "b"),), consumers=1, sequencers=2, faults=1, kinds=WAY_OUT
)  # fmt: skip
CROSSED: Final = Case(
    "two partitions that commit in any order, one sequencer", (("a",), ("c",)), consumers=1, sequencers=1, faults=0, kinds=WAY_OUT
)  # fmt: skip
TWO_FAULTS: Final = Case(
    "one consumer, an event sent twice, two faults", (("a", "b", "a'"),), consumers=1, faults=2, snapshot_every=1
)  # fmt: skip
SIDE_BY_SIDE: Final = Case("two consumers of two partitions, three events", (("a", "b"), ("c",)), faults=0)
ALL: Final = (*IN_THE_SUITE, BARS, NUMBERED, CROSSED, SIDE_BY_SIDE, TWO_FAULTS)

# A mistake, and the case that must find it.
MISTAKES: Final = {
    "acknowledge_first": replace(TWO_CONSUMERS, faults=2),
    "acknowledge_newest": replace(TWO_CONSUMERS, faults=2),
    "skip_by_message_id": replace(TWO_CONSUMERS, faults=2),
    "adopt_before_commit": replace(TWO_CONSUMERS, faults=2),
    "mark_first": NUMBERED,
    "number_without_marking": NUMBERED,
    "read_above_last_id": CROSSED,
}
MISTAKES_IN_THE_SUITE: Final = ("acknowledge_first", "acknowledge_newest", "skip_by_message_id", "adopt_before_commit")


def with_mistake(name: str) -> Case:
    """Give the case that must find a mistake, with it built in."""
    return replace(MISTAKES[name], name=f"mistake: {name}", mutant=name)
