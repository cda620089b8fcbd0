"""PostgreSQL stops answering without going away (a stalled disk, a paused machine): said at once, then all goes on, nothing lost or twice."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.db import connection

from distribution import probes
from tests.e2e.world import until
from tests.faults.account import rows, stored_count
from tests.faults.processes import environment
from tests.faults.test_kills import trial
from tests.faults.trial import Trial

__all__ = ["trial"]

FROZEN_S = 8


def serving_processes() -> list[int]:
    """Give the server's first process, so that it takes no new connection, and those that serve this test's database."""
    database = str(connection.settings_dict["NAME"])
    ((mine,),) = rows("SELECT pg_backend_pid()")
    first = int(Path(f"/proc/{mine}/stat").read_text().rpartition(")")[2].split()[1])
    found = [first]
    for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if f" {database} " in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


def tell(processes: Iterable[int], what: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


@contextmanager
def frozen() -> Iterator[None]:
    """Stop the server in whatever it does; this test's own connection answers no more either."""
    processes = serving_processes()
    try:
        # The first one first: then nobody is added while the others are stopped.
        tell(processes, signal.SIGSTOP)
        yield
    finally:
        tell(processes, signal.SIGCONT)


def test_a_frozen_database_is_said_and_waited_out(trial: Trial, settings: Any) -> None:
    settings.DATABASE_URL = environment()["MDI_DATABASE_URL"]
    consumer, sequencer = trial.runners[0], trial.runners[2]
    consumer.start()
    sequencer.start()
    trial.send(2_000)
    until(lambda: stored_count() == len(trial.stream.sent), 90)
    # Under load, so that it stops in the middle of a batch.
    trial.send(5_000)
    with frozen():
        end = time.monotonic() + FROZEN_S
        told = {part.name: part.state for part in probes.examine()}
        assert told["postgres"] == probes.DOWN
        assert told["pulsar"] == probes.OK
        assert {told[name] for name in ("consumers", "sequencer", "publisher", "canary")} == {probes.UNKNOWN}
        while time.monotonic() < end:
            trial.send(1_000)
            time.sleep(0.5)
        for runner in (consumer, sequencer):
            assert not runner.has_died(), trial.log.read_text()[-3000:]
    stored = stored_count()
    assert stored < len(trial.stream.sent)
    trial.drain(60)
    # It is answered again, and both went on by themselves.
    assert next(probes.examine()).state == probes.OK
    for runner in (consumer, sequencer):
        assert not runner.has_died(), trial.log.read_text()[-3000:]
    account = trial.account()
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
    assert account.events == len(trial.stream.sent)
