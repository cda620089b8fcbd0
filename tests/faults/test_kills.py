"""Killed at named points and at random: nothing lost, nothing twice, no hole. And the proof itself is tried on mistakes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import build_world
from tests.faults.processes import Runner, environment
from tests.faults.run import POINTS
from tests.faults.trial import Trial
from tests.stack import PulsarNamespace


@pytest.fixture
def trial(transactional_db: None, pulsar_namespace: PulsarNamespace, tmp_path: Path) -> Iterator[Trial]:
    world = build_world(pulsar_namespace.topic("equities"))
    name = pulsar_namespace.name
    made = Trial(world, pulsar_namespace.client(), name, name, tmp_path / "processes.log")
    yield made
    for runner in made.runners:
        runner.stop()


def test_kills_lose_and_repeat_nothing(trial: Trial) -> None:
    kills, account = trial.run(kills=10, events=20_000)
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
    assert (kills, account.events) == (10, 20_000)
    assert sum(len(runner.exits) for runner in trial.runners) >= 10


def test_every_named_point_is_survived(trial: Trial) -> None:
    """One after the other, so that each point is surely reached."""
    consumer, sequencer = trial.runners[0], trial.runners[2]
    for runner, other in ((consumer, sequencer), (sequencer, consumer)):
        runner.stop()
        if other.process is None:
            other.start()
        for point in POINTS[runner.command]:
            runner.start("--crash-at", f"{point}:2")
            end = time.monotonic() + 60
            while not runner.has_died():
                trial.send(20)
                time.sleep(0.1)
                assert time.monotonic() < end, f"{point} was not reached"
        assert runner.exits == [-9] * len(POINTS[runner.command])
        runner.start()
    trial.restart_without_traps()
    trial.drain(30)
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
    trial.runners.append(consumer)
    trial.send(2000)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and not consumer.has_died():
        time.sleep(0.1)
    if consumer.process is None:
        consumer.start("--mutant", mutant)
    trial.drain(8)
    consumer.stop()
    account = trial.account()
    assert account.lost > 0
