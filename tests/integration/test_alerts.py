"""Which facts open an alert, at their limits."""

from dataclasses import replace

import pytest

from integration.alerts import (
    CANARY_LIMIT_S,
    CONSUMER_STALE,
    GAP,
    GRACE_S,
    LEASE_LIMIT_S,
    SEVERITIES,
    UNPUBLISHED_LIMIT_S,
    Facts,
    Finding,
    PartitionFact,
    findings,
    with_grace,
)

WELL = Facts(
    quarantined=(),
    gaps=(),
    failed_jobs=(),
    partitions=(PartitionFact("p-0", 0.5, 0),),
    sequencer_age_s=0.5,
    unpublished_age_s=None,
    canary_age_s=1.0,
)


def kinds(facts: Facts) -> list[str]:
    return [found.kind for found in findings(facts)]


def test_a_well_service_is_silent() -> None:
    assert kinds(WELL) == []


def test_limits_are_exclusive() -> None:
    at_limit = replace(
        WELL, sequencer_age_s=LEASE_LIMIT_S, unpublished_age_s=UNPUBLISHED_LIMIT_S, canary_age_s=CANARY_LIMIT_S
    )
    assert kinds(at_limit) == []
    over = replace(
        WELL,
        sequencer_age_s=LEASE_LIMIT_S + 0.1,
        unpublished_age_s=UNPUBLISHED_LIMIT_S + 0.1,
        canary_age_s=CANARY_LIMIT_S + 0.1,
    )
    assert kinds(over) == ["sequencer_stale", "publisher_backlog", "canary_late"]


@pytest.mark.parametrize(
    ("age", "waiting", "is_paused", "is_stale"),
    [
        (1.0, 500, False, False),  # held: the backlog is being worked off
        (60.0, 0, False, False),  # quiet: no lease is needed until a message comes
        (60.0, 1, False, True),
        (None, 1, False, True),  # given back or never taken, and messages wait
        (None, 0, False, False),
        (60.0, None, False, True),  # the broker cannot be asked: fail closed
        (60.0, 9, True, False),
    ],
)
def test_a_partition_is_stale_when_messages_wait_and_nobody_takes_them(
    age: float | None, waiting: int | None, is_paused: bool, is_stale: bool
) -> None:
    fact = PartitionFact("p-0", age, waiting, is_paused)
    assert kinds(replace(WELL, partitions=(fact,))) == (["consumer_stale"] if is_stale else [])


def test_each_reason_source_and_job_kind_is_an_alert_of_its_own() -> None:
    facts = replace(
        WELL, quarantined=[("crossed", 3), ("future", 1)], gaps=[("sim", 4)], failed_jobs=[("retention", 1)]
    )
    assert [(f.kind, f.key) for f in findings(facts)] == [
        ("quarantine", "crossed"),
        ("quarantine", "future"),
        ("gap", "sim"),
        ("job_failed", "retention"),
    ]


STALE = Finding(CONSUMER_STALE, "p-0", "no consumer")
GRACE = GRACE_S[CONSUMER_STALE]


def test_an_ill_path_becomes_due_when_its_grace_is_over() -> None:
    noticed: dict[str, float] = {}
    told = []
    for now in (100.0, 100.0 + GRACE - 0.1, 100.0 + GRACE, 100.0 + 9 * GRACE):
        (judged,), noticed = with_grace([STALE], noticed, now)
        told.append(judged.is_due)
        assert replace(judged, is_due=True) == STALE
    assert told == [False, False, True, True]


def test_each_partition_has_a_grace_of_its_own_and_begins_it_again_once_it_was_well() -> None:
    other = replace(STALE, key="p-1")
    _, noticed = with_grace([STALE], {}, 100.0)
    judged, noticed = with_grace([STALE, other], noticed, 100.0 + GRACE)
    assert [finding.is_due for finding in judged] == [True, False]
    judged, noticed = with_grace([other], noticed, 100.0 + 2 * GRACE)
    assert [finding.is_due for finding in judged] == [True]
    judged, _ = with_grace([STALE, other], noticed, 100.0 + 3 * GRACE)
    assert [finding.is_due for finding in judged] == [False, True]


def test_a_clock_that_was_set_back_begins_the_grace_again() -> None:
    (judged,), noticed = with_grace([STALE], {"consumer_stale p-0": 5_000.0}, 100.0)
    assert (judged.is_due, noticed) == (False, {"consumer_stale p-0": 100.0})


def test_only_the_paths_own_kinds_wait() -> None:
    at_once = {"imbalance", "clock_step", "disk_full"}  # no start or takeover brings these about
    assert GRACE_S.keys() == {kind for kind, severity in SEVERITIES.items() if severity == "critical"} - at_once
    (judged,), noticed = with_grace([Finding(GAP, "sim", "4 sequences")], {}, 100.0)
    assert (judged.is_due, noticed) == (True, {})
