"""Killed at named points and at random: nothing lost, nothing twice, no hole. And the proof itself is tried on mistakes."""

import time
from pathlib import Path

import pytest

from tests.e2e.world import build_world
from tests.faults.processes import Runner, environment
from tests.faults.run import POINTS
from tests.faults.trial import Trial
from tests.stack import PulsarNamespace


@pytest.fixture
def trial(transactional_db: None, pulsar_namespace: PulsarNamespace, tmp_path: Path) -> Trial:
    world = build_world(pulsar_namespace.topic("equities"))
    return Trial(
        world, pulsar_namespace.client(), pulsar_namespace.name, pulsar_namespace.name, tmp_path / "processes.log"
    )


def test_kills_lose_and_repeat_nothing(trial: Trial) -> None:
    kills, account = trial.run(kills=10, events=20_000)
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
    assert (kills, account.events) == (10, 20_000)
    assert sum(len(runner.exits) for runner in trial.runners) >= 10


def test_every_named_point_is_survived(trial: Trial) -> None:
    """One after the other, so that each point is surely reached."""
    consumer, sequencer = trial.runners[0], trial.runners[2]
    for runner in (consumer, sequencer):
        for point in POINTS[runner.command]:
            runner.start("--crash-at", f"{point}:2")
            other = sequencer if runner is consumer else consumer
            if other.process is None:
                other.start()
            end = time.monotonic() + 60
            while not runner.has_died():
                trial.send(20)
                time.sleep(0.1)
                assert time.monotonic() < end, f"{point} was not reached"
    assert consumer.exits + sequencer.exits == [-9] * (len(POINTS["consume_ticks"]) + len(POINTS["sequence_ticks"]))
    trial.restart_without_traps()
    try:
        trial.drain(30)
    finally:
        for runner in trial.runners:
            runner.stop()
    account = trial.account()
    assert account.is_clean, (account, trial.log.read_text()[-3000:])


@pytest.mark.parametrize(
    ("mutant", "trap"),
    [
        ("acknowledge_before_commit", ("--crash-at", "before_commit:3")),
        ("adopt_before_commit", ("--fail-at", "before_commit:3")),
    ],
)
def test_mistakes_are_caught(trial: Trial, mutant: str, trap: tuple[str, str]) -> None:
    """Negative control: with this mistake built in, the same account must not be clean."""
    consumer = Runner(
        "consume_ticks", environment(trial.normalized, trial.integrated, MDI_BATCH_MESSAGES="50"), trial.log
    )
    consumer.start("--mutant", mutant, *trap)
    trial.send(2000)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and not consumer.has_died():
        time.sleep(0.1)
    consumer.start("--mutant", mutant) if consumer.process is None else None
    trial.drain(8)
    consumer.stop()
    account = trial.account()
    assert account.lost > 0
