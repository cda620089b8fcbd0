"""What is worth an alert: a table of kinds, and the facts compared with their limits. Pure; rows are written by `services`.

Every kind has a runbook in docs/operations.md (a test holds that). Limits are the longest time at which a healthy service is
still silent, so that an alert always needs a person.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from integration.display import counted

QUARANTINE: Final = "quarantine"
GAP: Final = "gap"
JOB_FAILED: Final = "job_failed"
CONSUMER_STALE: Final = "consumer_stale"
SEQUENCER_STALE: Final = "sequencer_stale"
PUBLISHER_BACKLOG: Final = "publisher_backlog"
CANARY_LATE: Final = "canary_late"
IMBALANCE: Final = "imbalance"
CLOCK_STEP: Final = "clock_step"
DISK_FULL: Final = "disk_full"

INFO: Final = "info"
WARNING: Final = "warning"
CRITICAL: Final = "critical"

SEVERITIES: Final[dict[str, str]] = {
    QUARANTINE: WARNING,
    GAP: WARNING,
    JOB_FAILED: WARNING,
    CONSUMER_STALE: CRITICAL,
    SEQUENCER_STALE: CRITICAL,
    PUBLISHER_BACKLOG: CRITICAL,
    CANARY_LATE: CRITICAL,
    IMBALANCE: CRITICAL,
    CLOCK_STEP: CRITICAL,
    DISK_FULL: CRITICAL,
}

LEASE_LIMIT_S: Final = 15.0  # a holder renews every second or with each batch; a standby takes over in five
UNPUBLISHED_LIMIT_S: Final = 30.0  # a committed batch is sent within a second
CANARY_LIMIT_S: Final = 15.0  # one is sent each second
GAP_LIMIT_S: Final = 60.0  # a late partition closes gaps by itself before that
# So long must the path be found ill before an alert opens. After a start, or a takeover, leases are old and messages wait until
# the new processes have begun; that takes ten seconds on a laptop and needs nobody.
GRACE_S: Final[dict[str, float]] = {
    CONSUMER_STALE: 20.0,
    SEQUENCER_STALE: 20.0,
    PUBLISHER_BACKLOG: 20.0,
    CANARY_LATE: 20.0,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One alert that should be open now; the same (kind, key) is the same alert."""

    kind: str
    key: str
    message: str
    is_due: bool = True  # false: in its grace period; an alert that is open stays open, a new one does not open

    @property
    def severity(self) -> str:
        """How urgent it is: info, warning or critical."""
        return SEVERITIES[self.kind]


@dataclass(frozen=True, slots=True)
class PartitionFact:
    """A partition's lease as read, and the messages that wait for it at the broker (None: the broker cannot be asked)."""

    name: str
    lease_age_s: float | None
    waiting: int | None
    is_paused: bool = False

    @property
    def is_stale(self) -> bool:
        """Say whether messages wait and nobody takes them. A quiet partition needs no holder until a message comes."""
        is_fresh = self.lease_age_s is not None and self.lease_age_s <= LEASE_LIMIT_S
        return not is_fresh and not self.is_paused and self.waiting != 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the alerts are judged by; ages in seconds, None where there is nothing to be old."""

    quarantined: Sequence[tuple[str, int]]
    gaps: Sequence[tuple[str, int]]
    failed_jobs: Sequence[tuple[str, int]]
    partitions: Sequence[PartitionFact]
    sequencer_age_s: float | None
    unpublished_age_s: float | None
    canary_age_s: float | None
    imbalances: Sequence[tuple[str, str]] = ()  # partition, what does not add up
    clock_steps: Sequence[tuple[str, str]] = ()  # topic, why it was paused
    full_disks: Sequence[tuple[str, str]] = ()  # folder, how much is free


def findings(facts: Facts) -> Iterator[Finding]:
    """Give every alert that should be open, by the facts."""
    for code, count in facts.quarantined:
        yield Finding(
            QUARANTINE, code, f"{counted(count, 'event waits', 'events wait')} in quarantine for the reason {code}"
        )
    for source, count in facts.gaps:
        yield Finding(GAP, source, f"{counted(count, 'sequence', 'sequences')} of {source} never came")
    for kind, count in facts.failed_jobs:
        yield Finding(JOB_FAILED, kind, f"{counted(count, 'job', 'jobs')} of the kind {kind} failed for good")
    for partition in facts.partitions:
        if partition.is_stale:
            waiting = "unknown" if partition.waiting is None else f"{partition.waiting:,}"
            yield Finding(
                CONSUMER_STALE,
                partition.name,
                f"no consumer holds this partition; messages waiting at the broker: {waiting}",
            )
    for kind, found in (
        (IMBALANCE, facts.imbalances),
        (CLOCK_STEP, facts.clock_steps),
        (DISK_FULL, facts.full_disks),
    ):
        for key, words in found:
            yield Finding(kind, key, words)
    yield from _path_findings(facts)


def with_grace(
    found: Iterable[Finding], noticed: Mapping[str, float], now_s: float
) -> tuple[list[Finding], dict[str, float]]:
    """Mark what has not lasted for its grace period as not due; give it with the times (s) since which each has been noticed.

    `noticed` is what the last call gave, by kind and key; what is no longer found is forgotten, so that its next time is a first one.
    """
    judged, since = [], {}
    for finding in found:
        grace = GRACE_S.get(finding.kind)
        if grace is not None:
            name = f"{finding.kind} {finding.key}"
            # A clock that was set back begins the period again.
            since[name] = min(noticed.get(name, now_s), now_s)
            finding = replace(finding, is_due=now_s - since[name] >= grace)  # noqa: PLW2901 - the same finding, judged
        judged.append(finding)
    return judged, since


def _path_findings(facts: Facts) -> Iterator[Finding]:
    if facts.sequencer_age_s is not None and facts.sequencer_age_s > LEASE_LIMIT_S:
        yield Finding(
            SEQUENCER_STALE, "sequencer", f"no sequencer has renewed its lease for {facts.sequencer_age_s:.0f} s"
        )
    if facts.unpublished_age_s is not None and facts.unpublished_age_s > UNPUBLISHED_LIMIT_S:
        yield Finding(
            PUBLISHER_BACKLOG, "publisher", f"the oldest unpublished batch is {facts.unpublished_age_s:.0f} s old"
        )
    if facts.canary_age_s is not None and facts.canary_age_s > CANARY_LIMIT_S:
        yield Finding(
            CANARY_LATE, "canary", f"the newest canary at the end of the path is {facts.canary_age_s:.0f} s old"
        )
