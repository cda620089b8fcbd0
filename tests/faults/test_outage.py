"""PostgreSQL goes away under load: memory stays bounded, the broker keeps the backlog, the service says so and catches up alone."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from tests.e2e.world import until
from tests.faults.account import stored_count
from tests.faults.processes import Runner, environment
from tests.faults.proxy import Proxy
from tests.faults.test_kills import trial
from tests.faults.trial import Trial

__all__ = ["trial"]


@pytest.fixture
def proxy(transactional_db: None) -> Iterator[Proxy]:
    made = Proxy("127.0.0.1", int(connection.settings_dict["PORT"]))
    yield made
    made.close()


def resident_bytes(runner: Runner) -> int:
    assert runner.process is not None
    status = Path(f"/proc/{runner.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024


def test_outage_of_the_database_is_waited_out(trial: Trial, proxy: Proxy) -> None:
    port = connection.settings_dict["PORT"]
    variables = environment(trial.normalized, trial.integrated)
    variables["MDI_DATABASE_URL"] = variables["MDI_DATABASE_URL"].replace(f":{port}/", f":{proxy.port}/")
    for runner in trial.runners:
        runner.variables = variables
    consumer, sequencer = trial.runners[0], trial.runners[2]
    consumer.start()
    sequencer.start()
    trial.send(2_000)
    until(lambda: stored_count() == len(trial.stream.sent), 90)
    proxy.cut()
    before = resident_bytes(consumer)
    for _ in range(10):
        trial.send(3_000)
        time.sleep(0.5)
    stored = stored_count()
    # The receiver's queue and one batch, however much waits at the broker.
    assert resident_bytes(consumer) < before + 100 * 1024 * 1024
    assert stored < len(trial.stream.sent)
    assert "degraded" in trial.log.read_text()
    proxy.mend()
    trial.drain(60)
    for runner in (consumer, sequencer):
        assert not runner.has_died(), trial.log.read_text()[-3000:]
    account = trial.account()
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
