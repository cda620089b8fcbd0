"""The supervisor with small programs of the test's own: repair, back-off, order and deadline of the stop, death with its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config import supervisor
from config.embedded import EmbeddedServerError, RunningServers
from config.embedded.keeper import start_time
from config.supervisor import Program, Supervisor

STEADY = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
ORPHANS = """
import sys, time, os
from pathlib import Path
from config.supervisor import Program, Supervisor
made = Supervisor([Program("child", (sys.executable, "-c", "import time; time.sleep(600)"), dict(os.environ))], [],
                  stop_order=["child"], log_folder=Path(sys.argv[1]), say=print)
made.start()
print(made.programs["child"].process.pid, flush=True)
time.sleep(600)
"""


def program(name: str, code: str, stop_seconds: float = 2.0) -> Program:
    return Program(name, (sys.executable, "-c", code), dict(os.environ), stop_seconds)


class Stage:
    """A supervisor whose sayings and ended processes are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.ended: list[int] = []
        self.made: list[Supervisor] = []

    def supervise(self, *programs: Program, servers: tuple[RunningServers, ...] = ()) -> Supervisor:
        order = [each.name for each in programs]
        made = Supervisor(
            programs, servers, stop_order=order, log_folder=self.folder, say=self.said.append, on_end=self.ended.append
        )
        self.made.append(made)
        made.start()
        return made

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    for each in made.made:
        each.stop()


def eventually(condition: Callable[[], bool]) -> bool:
    patience = time.monotonic() + 30
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


def pid(made: Supervisor, name: str) -> int:
    process = made.programs[name].process
    return process.pid if process else 0


def test_killed_program_is_started_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)
    one = program("one", STEADY)
    one.pause = 0.0
    made = stage.supervise(one, program("two", STEADY))
    first, other = pid(made, "one"), pid(made, "two")
    os.kill(first, signal.SIGKILL)

    def is_back() -> bool:
        made.look_after_programs()
        return pid(made, "one") not in (0, first)

    assert eventually(is_back)
    assert stage.ended == [first]
    assert pid(made, "two") == other
    assert stage.said[0].startswith("one: killed by SIGKILL")


def test_program_that_keeps_ending_is_started_ever_more_rarely(stage: Stage) -> None:
    failing = program("failing", "raise SystemExit(3)")
    made = stage.supervise(failing)
    pauses = []
    for _ in range(8):
        assert failing.process is not None
        failing.process.wait()
        pauses.append(failing.pause)
        before = time.monotonic()
        made.look_after_programs()
        assert pid(made, "failing") == 0
        assert failing.due_at >= before + pauses[-1]
        failing.due_at = 0.0
        made.look_after_programs()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert stage.said[0].startswith("failing: ended with code 3, again in 1 s")


def test_stop_keeps_the_order(stage: Stage) -> None:
    note = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.1), sys.exit()))\nprint('up', flush=True)\ntime.sleep(600)"
    made = stage.supervise(program("first", note), program("second", note))
    pids = [pid(made, "first"), pid(made, "second")]
    assert eventually(lambda: all("up" in stage.log(name) for name in ("first", "second")))
    made.stop()
    assert stage.ended == pids
    assert stage.said == []


def test_program_that_does_not_stop_is_killed(stage: Stage) -> None:
    made = stage.supervise(program("deaf", STUBBORN, stop_seconds=0.2))
    deaf = pid(made, "deaf")
    assert eventually(lambda: "deaf" in stage.log("deaf"))
    made.stop()
    assert start_time(deaf) == 0
    assert stage.said == ["deaf: not stopped after 0.2 s, killed"]


def test_programs_die_with_the_supervisor(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert start_time(child) > 0
    parent.kill()
    parent.communicate()
    assert eventually(lambda: start_time(child) == 0)


def test_signal_ends_the_run(stage: Stage) -> None:
    made = stage.supervise(program("one", STEADY))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    made.stop_on_signals()
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        made.run()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
    assert made.told.is_set()


def test_logs_are_rotated_at_the_start(stage: Stage) -> None:
    for number in range(5):
        made = stage.supervise(program("one", f"print('run {number}')"))
        process = made.programs["one"].process
        assert process is not None
        process.wait()
        made.stop()
    kept = {path.name: path.read_text() for path in stage.folder.iterdir()}
    assert kept == {"one.log": "run 4\n", "one.log.1": "run 3\n", "one.log.2": "run 2\n", "one.log.3": "run 1\n"}


class Ailing(RunningServers):
    """Servers whose faults the test sets."""

    def __init__(self, *names: str) -> None:
        super().__init__(dict.fromkeys(names), lambda _: None)  # type: ignore[arg-type]
        self.now: dict[str, str] = {}
        self.restarted: list[str] = []
        self.error: str = ""

    def faults(self) -> dict[str, str]:
        return dict(self.now)

    def restart(self, name: str) -> None:
        if self.error:
            raise EmbeddedServerError(self.error)
        self.restarted.append(name)
        del self.now[name]


def test_dead_server_is_restarted_at_once(stage: Stage) -> None:
    servers = Ailing("postgres", "pulsar")
    servers.now = {"postgres": "dead"}
    stage.supervise().look_after_servers(servers, 100.0)
    assert servers.restarted == ["postgres"]


def test_sick_server_is_given_time(stage: Stage) -> None:
    servers, made = Ailing("pulsar"), stage.supervise()
    servers.now = {"pulsar": "sick"}
    made.look_after_servers(servers, 100.0)
    servers.now = {}
    made.look_after_servers(servers, 119.0)
    servers.now = {"pulsar": "sick"}
    for now in (120.0, 130.0, 149.9):
        made.look_after_servers(servers, now)
        assert servers.restarted == []
    made.look_after_servers(servers, 150.0)
    assert servers.restarted == ["pulsar"]


def test_failed_restart_is_said_and_tried_again(stage: Stage) -> None:
    servers, made = Ailing("valkey"), stage.supervise()
    servers.now, servers.error = {"valkey": "dead"}, "valkey: port 1 is taken by another program"
    made.look_after_servers(servers, 100.0)
    assert stage.said[-1] == servers.error
    servers.error = ""
    made.look_after_servers(servers, 103.0)
    assert servers.restarted == ["valkey"]
