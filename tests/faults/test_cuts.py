"""The connection to PostgreSQL is cut in the middle of COPY, at its end, before COMMIT and before its answer: nothing lost, nothing twice."""

import time

from django.db import connection

from tests.e2e.world import until
from tests.faults.processes import environment
from tests.faults.proxy import PLACES, Proxy
from tests.faults.test_kills import trial
from tests.faults.test_outage import proxy
from tests.faults.trial import Trial

__all__ = ["proxy", "trial"]


def test_a_connection_cut_at_a_message_loses_and_repeats_nothing(trial: Trial, proxy: Proxy) -> None:
    """One after the other, each three times, while events flow; both the consumer and the sequencer go on by themselves."""
    port = connection.settings_dict["PORT"]
    variables = environment(trial.normalized, trial.integrated)
    variables["MDI_DATABASE_URL"] = variables["MDI_DATABASE_URL"].replace(f":{port}/", f":{proxy.port}/")
    consumer, sequencer = trial.runners[0], trial.runners[2]
    consumer.variables = variables
    consumer.start()
    sequencer.start()
    until(lambda: consumer.is_working, 60)
    for place in PLACES:
        for times in (1, 2, 3):
            trap = proxy.cut_at(place, times)
            end = time.monotonic() + 60
            while not trap.is_sprung:
                trial.send(20)
                time.sleep(0.05)
                assert time.monotonic() < end, f"no {place} was sent"
    trial.drain(60)
    for runner in (consumer, sequencer):
        assert not runner.has_died(), trial.log.read_text()[-3000:]
    account = trial.account()
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
    assert "degraded" in trial.log.read_text()
