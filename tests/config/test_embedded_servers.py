"""The life of the embedded servers, on a data folder of this module's own: start, kill, hold, stop, secrets, ports."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import psycopg
import pytest
import redis

from config.embedded import EmbeddedServerError, Endpoints, endpoints, keeper, postgres, servers
from config.embedded.runtime import VarFolder
from config.embedded.server import Server
from config.embedded.valkey import Valkey

HOLD = """
import sys, time
from pathlib import Path
from config.embedded import servers
with servers(Path(sys.argv[1]), {"valkey"}):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def var() -> Iterator[Path]:
    folder = Path(mkdtemp(prefix="mdi-own-"))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def valkey(var: Path) -> Valkey:
    return Valkey(VarFolder(var))


def hold_elsewhere(var: Path) -> "subprocess.Popen[bytes]":
    """Start another process that holds Valkey, and wait until it does."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(var)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.stdout.close()
    return holder


def eventually(condition: Callable[[], bool]) -> bool:
    """Return whether the condition comes true; the wait only bounds a failing test."""
    patience = time.monotonic() + 30
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.05)
    return True


def kill_server(server: Server) -> None:
    os.kill(server._pid("server"), signal.SIGKILL)
    assert eventually(lambda: not server.is_running())


def database(where: Endpoints) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(where.database_url, autocommit=True)


def test_databases_are_ours_and_the_role_is_no_superuser(embedded: Endpoints) -> None:
    with database(embedded) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreatedb, pg_get_userbyid(datdba), current_setting('fsync'), current_setting('synchronous_commit')"
            " FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"
        ).fetchone()
        assert row == (False, True, "mdi", "on", "on")
        assert connection.execute("SELECT count(*) > 0 FROM pg_stat_statements").fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")


def test_no_server_lets_a_stranger_in(embedded: Endpoints) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(embedded.database_url.replace("://mdi:", "://postgres:"))
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(embedded.redis_url.replace(":", ":x", 2).replace("redis:x", "redis:", 1)).ping()


def test_servers_listen_on_loopback_only(embedded: Endpoints) -> None:
    ports = VarFolder(embedded.var_dir).ports().values()
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [local for _, local, _, state, *_ in listening if state == "0A" and int(local.split(":")[1], 16) in ports]
    assert len(ours) == len(ports)
    assert {address.split(":")[0] for address in ours} == {"0100007F"}


def test_secrets_are_private_and_stay(var: Path) -> None:
    assert endpoints(var) == endpoints(var)
    assert endpoints(var).database_url not in repr(endpoints(var))
    files = list((var / "secrets").iterdir())
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((var / "secrets").stat().st_mode) == 0o700


def test_racing_processes_agree_on_secrets_and_ports(var: Path) -> None:
    code = "import sys; from pathlib import Path; from config.embedded import endpoints; e = endpoints(Path(sys.argv[1])); print(e.redis_url, e.pulsar_token)"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, str(var)], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    assert len({racer.communicate()[0] for racer in racers}) == 1


def test_data_survive_a_kill_and_a_restart(var: Path) -> None:
    with servers(var, {"postgres", "valkey"}) as running:
        where = endpoints(var)
        with database(where) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        store = redis.Redis.from_url(where.redis_url)
        store.set("kept", "42")
        store.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call]
        for server in running.held.values():
            kill_server(server)
        assert running.faults() == {"postgres": "dead", "valkey": "dead"}
        for name in running.faults():
            running.restart(name)
        assert running.faults() == {}
    with servers(var, {"postgres", "valkey"}):
        with database(where) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        assert redis.Redis.from_url(where.redis_url).get("kept") == b"42"


def test_frozen_server_is_sick_and_is_replaced(var: Path) -> None:
    with servers(var, {"valkey"}) as running:
        server = running.held["valkey"]
        frozen = server._pid("server")
        os.kill(frozen, signal.SIGSTOP)
        assert running.faults() == {"valkey": "sick"}
        running.restart("valkey")
        assert running.faults() == {}
        assert server._pid("server") != frozen


def test_last_holder_stops_the_server(var: Path, valkey: Valkey) -> None:
    other = hold_elsewhere(var)
    with servers(var, {"valkey"}) as running:
        first = running.held["valkey"]._pid("server")
        assert valkey._pid("server") == first
    assert valkey.is_running()
    other.kill()
    other.wait()
    # Nobody asked for a stop: the keeper noticed that no holder is left.
    assert eventually(lambda: not valkey.is_running())


def test_killed_holder_does_not_count(var: Path, valkey: Valkey) -> None:
    other = hold_elsewhere(var)
    with servers(var, {"valkey"}):
        other.kill()
        other.wait()
        assert valkey.is_ready()
    assert not valkey.is_running()


def test_server_without_its_keeper_stops_and_comes_again(var: Path) -> None:
    with servers(var, {"valkey"}) as running:
        server = running.held["valkey"]
        os.kill(server._pid("keeper"), signal.SIGKILL)
        assert eventually(lambda: running.faults() == {"valkey": "dead"})
        running.restart("valkey")
        assert running.faults() == {}


def test_taken_port_is_named(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.embedded.server.PORT_PATIENCE_SECONDS", 0.1)
    port = VarFolder(var).ports()["valkey"]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(EmbeddedServerError, match=rf"^valkey: port {port} .* is taken by another program$"),
        servers(var, {"valkey"}),
    ):
        pass
    with servers(var, {"valkey"}) as running:
        assert running.faults() == {}


def test_failed_start_tells_the_last_error(var: Path) -> None:
    with servers(var, {"postgres"}):
        pass
    (var / "postgres" / "data" / "local.conf").write_text("shared_buffers = 'much'\n")
    with (
        pytest.raises(EmbeddedServerError, match=r"^postgres did not start: .*FATAL.*local\.conf.*postgres\.log"),
        servers(var, {"postgres"}),
    ):
        pass


def test_unwritable_folder_is_named() -> None:
    with pytest.raises(EmbeddedServerError, match=r"^cannot make the data folder /proc/nowhere"):
        endpoints(Path("/proc/nowhere"))


def test_long_folder_still_has_a_short_socket(var: Path) -> None:
    deep = var / ("long-" * 20)
    with servers(deep, {"postgres"}), database(endpoints(deep)) as connection:
        row = connection.execute("SHOW unix_socket_directories").fetchone()
    assert row is not None
    folder = Path(str(row[0]))
    assert len(str(folder)) < 100
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()


def test_lock_file_of_another_program_is_dropped(var: Path) -> None:
    """After a restart of a container the recorded process id belongs to some other program."""
    with servers(var, {"postgres"}):
        pass
    lock = var / "postgres" / "data" / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{lock.parent}\n0\n1\n\n\n")
    with servers(var, {"postgres"}) as running:
        assert running.faults() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_root_without_user_namespaces_runs_as_nobody(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "allows_user_namespace", lambda: False)
    with servers(var, {"postgres"}) as running, database(endpoints(var)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        owner = Path(f"/proc/{running.held['postgres']._pid('server')}").stat().st_uid
        assert owner == 65534
        assert (var / "postgres" / "data").stat().st_uid == owner


def test_ended_process_has_no_start_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert keeper.start_time(process.pid) == 0
    assert keeper.start_time(os.getpid()) > 0


def test_data_of_another_major_version_are_refused_with_what_to_do(var: Path) -> None:
    cluster = postgres.Postgres(VarFolder(var)).cluster()
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("16\n")
    words = r"PostgreSQL 16, this is 1\d.*manage.py backup.*restore DIR --replace"
    with pytest.raises(EmbeddedServerError, match=words), servers(var, {"postgres"}):
        raise AssertionError
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]  # nothing was touched
