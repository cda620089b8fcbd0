"""A consumer stands still in mid-COPY or with its rows written, is taken over, and goes on: it is fenced out, nothing is lost or twice."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.world import until
from tests.faults.account import stored_count
from tests.faults.test_kills import trial
from tests.faults.trial import Trial

__all__ = ["trial"]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", ["mid_copy", "before_commit", "reading_ahead"])
def test_a_consumer_that_stood_still_is_fenced(trial: Trial, point: str) -> None:
    frozen, other, sequencer = trial.runners[:3]
    sequencer.start()
    frozen.start("--freeze-at", f"{point}:3")
    until(lambda: frozen.is_working, 60)
    assert frozen.process is not None
    pid, end = frozen.process.pid, time.monotonic() + 60
    while not is_stopped(pid):
        trial.send(50)
        time.sleep(0.05)
        assert time.monotonic() < end, f"{point} was not reached"
    other.start()
    # The broker hands over after two keep-alives that were not answered; the taker ends the database session that holds the rows.
    trial.send(2_000)
    until(lambda: stored_count() == len(trial.stream.sent), 120)
    os.kill(pid, signal.SIGCONT)
    trial.send(2_000)
    trial.drain(60)
    assert not frozen.has_died(), trial.log.read_text()[-3000:]
    account = trial.account()
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
