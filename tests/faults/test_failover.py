"""PostgreSQL's primary is lost with commits that its standby never got: what they held is read again, under a new epoch."""

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

from config.embedded.postgres import Postgres, binary
from config.embedded.runtime import VarFolder
from integration.market.events import decode_bar, decode_numbered_ticks
from integration.models import OutgoingMessage, Position, SequencerState
from integration.sequencer import BARS_TOPIC, TICKS_TOPIC
from tests.e2e.world import until
from tests.faults.account import Account, compare_bars, compare_books, compare_stored, published, rows, stored_count
from tests.faults.processes import environment
from tests.faults.test_kills import trial
from tests.faults.trial import Trial
from tests.stack import session_folder, tell

__all__ = ["trial"]


class Standby(Postgres):
    """A copy of the session's server that follows it, until it is promoted."""

    def __init__(self, folder: VarFolder, primary: int) -> None:
        super().__init__(folder)
        self.primary = primary

    def _create_cluster(self) -> None:
        password = self.folder.secret("postgres-superuser")
        self._run_as_server(
            [
                str(binary("pg_basebackup")), "-D", str(self.cluster()), "--write-recovery-conf", "--wal-method=stream",
                "--checkpoint=fast", "-d", f"postgresql://postgres:{password}@127.0.0.1:{self.primary}/?sslmode=disable",
            ]
        )  # fmt: skip

    def provision(self) -> None:
        """Make nothing: all is copied."""

    def ask(self, query: str) -> Any:
        """Run a query as the superuser and give the first value."""
        with psycopg.connect(**self._superuser(), dbname="postgres", autocommit=True) as asked:
            row = asked.execute(query).fetchone()
            return row[0] if row else None


@pytest.fixture
def standby(transactional_db: None) -> Iterator[Standby]:
    # Short, because PostgreSQL's socket lives below it.
    folder = VarFolder(Path(tempfile.mkdtemp(prefix="mdi-standby-")))
    for name in ("postgres-superuser", "postgres-password"):
        shutil.copy(session_folder() / "secrets" / name, folder.folder("secrets") / name)
    made = Standby(folder, int(connection.settings_dict["PORT"]))
    made.acquire(tell)
    yield made
    connection.close()
    connection.settings_dict["PORT"] = made.primary
    made.release()
    shutil.rmtree(folder.root, ignore_errors=True)


def stop_following(standby: Standby) -> None:
    """Let the standby have all there is, and then nothing any more."""
    target = rows("SELECT pg_current_wal_lsn()::text")[0][0]
    until(lambda: bool(standby.ask(f"SELECT pg_last_wal_replay_lsn() >= '{target}'")), 60)
    with psycopg.connect(**standby._superuser(), dbname="postgres", autocommit=True) as asked:
        asked.execute("ALTER SYSTEM SET primary_conninfo = ''")
        asked.execute("SELECT pg_reload_conf()")
    until(lambda: standby.ask("SELECT count(*) FROM pg_stat_wal_receiver") == 0, 30)


def compare_streams(account: Account, trial: Trial) -> None:
    """Check what a client holds that keeps the highest (epoch, revision): the bars of the table; and each tick at least once."""
    seen, sequences = set(), defaultdict(list)
    for data in published(trial.client, trial.topic(trial.integrated, TICKS_TOPIC)):
        columns = decode_numbered_ticks(data).columns
        for instrument_id, epoch, sequence, ts_event, price in zip(
            *(columns[name].tolist() for name in ("instrument_id", "epoch", "sequence", "ts_event", "price")),
            strict=True,
        ):
            sequences[epoch, instrument_id].append(sequence)
            seen.add((instrument_id, ts_event, price))
    assert {epoch for epoch, _ in sequences} == {1, 2}
    for numbered, numbers in sequences.items():
        if numbers != list(range(1, len(numbers) + 1)):
            account.wrong.append(f"ticks of (epoch, instrument) {numbered} are not numbered 1 to {len(numbers)}")
    stored = set(rows("SELECT instrument_id, ts_event, price FROM integration_trade"))
    if seen != stored:
        account.wrong.append(
            f"{len(stored - seen)} stored ticks were not published, {len(seen - stored)} are not stored"
        )
    held: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for data in published(trial.client, trial.topic(trial.integrated, BARS_TOPIC)):
        bar = decode_bar(data)
        key: tuple[Any, ...] = (bar.instrument_id, bar.source_id, bar.timeframe, bar.start)
        version = (bar.epoch, bar.revision)
        held[key] = max(held.get(key, ((0, 0),)), (version, bar.close, bar.volume, bar.trade_count))
    latest = rows(
        "SELECT DISTINCT ON (instrument_id, source_id, timeframe, start) instrument_id, source_id, timeframe, start, close,"
        " (volume * 1000000000)::bigint, trade_count FROM integration_bar WHERE revision > 0"
        " ORDER BY instrument_id, source_id, timeframe, start, revision DESC"
    )
    differing = [row for row in latest if held[row[:4]][1:] != row[4:]]
    if differing:
        account.wrong.append(f"a client holds other bars: {differing[:3]}")


def test_commits_that_a_failover_lost_are_read_again_under_a_new_epoch(trial: Trial, standby: Standby) -> None:
    consumer, sequencer = trial.runners[0], trial.runners[2]
    trial.runners = [consumer, sequencer]
    for runner in trial.runners:
        runner.start()
    trial.send(3_000)
    trial.drain(60)
    stop_following(standby)
    trial.send(3_000)
    trial.drain(60)
    assert stored_count() == 6_000
    time.sleep(1.0)  # the client sends acknowledgements together: the broker must believe that all was stored
    for runner in trial.runners:
        runner.kill()
        runner.has_died()
    connection.close()
    standby.ask("SELECT pg_promote()")
    connection.settings_dict["PORT"] = standby.port()
    assert stored_count() == 3_000
    assert OutgoingMessage.objects.filter(sent_at=None).count() == 0
    variables = environment(trial.normalized, trial.integrated)
    for runner in trial.runners:
        runner.variables = variables
        runner.start()
    trial.send(1_000)
    trial.drain(90)
    account = Account()
    compare_stored(account, trial.stream.sent, trial.world.instruments)
    compare_books(account)
    compare_bars(account)
    compare_streams(account, trial)
    assert account.is_clean, (account, trial.log.read_text()[-3000:])
    assert account.events == 7_000
    assert SequencerState.objects.get().epoch == 2
    assert "reading again" in trial.log.read_text()
    assert set(Position.objects.values_list("timeline", flat=True)) == {SequencerState.objects.get().timeline}
