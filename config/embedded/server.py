"""One embedded server's life: start, adopt, wait until ready, restart, and stop with its last holder.

What a server is (its files, arguments, readiness) is in postgres.py, valkey.py and pulsar.py.
"""

import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, ClassVar

from config.embedded import keeper
from config.embedded.runtime import EmbeddedServerError, VarFolder, is_free

POLL_SECONDS = 0.03
PORT_PATIENCE_SECONDS = 3.0
BUSY_SECONDS = 20.0

Say = Callable[[str], None]


class Server(ABC):
    """A server below a var folder. Instances in several processes stand for the same server."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[int] = signal.SIGTERM
    stop_seconds: ClassVar[float] = 4.0
    start_seconds: ClassVar[float] = 60.0

    def __init__(self, folder: VarFolder) -> None:
        self.folder = folder
        self.pid_file = folder.folder("run") / f"{self.name}.json"
        self.log_file = folder.folder("log") / f"{self.name}.log"
        self._holders: IO[str] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the files a start needs; nothing runs."""

    @abstractmethod
    def argv(self) -> list[str]:
        """Return the program and its arguments, without secrets."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether the server answers its own health question with our credentials."""

    @abstractmethod
    def provision(self) -> None:
        """Make the roles, databases or topics that we use; repeatable."""

    def identity(self) -> str:
        """Return as whom it runs: "" the present user, "namespace:UID", or a user's name."""
        return ""

    def data_folder(self) -> Path:
        """Return the working folder, made where missing."""
        return self.folder.folder(self.name)

    def port(self, name: str | None = None) -> int:
        """Return the chosen port of that name, by default the main one."""
        return self.folder.ports()[name or self.port_names[0]]

    # Holding ------------------------------------------------------------------------------------------------------

    def acquire(self, say: Say) -> None:
        """Count this process as a holder and return when the server is ready, starting it if it does not run."""
        holders = (self.folder.folder("run") / f"{self.name}.holders").open("a")
        # Waits only while the last holder is stopping the server.
        fcntl.flock(holders, fcntl.LOCK_SH)
        self._holders = holders
        try:
            with self.folder.lock(self.name):
                if not self._is_ready_soon():
                    self.start(say)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Stop being a holder; the last one stops the server before this returns."""
        holders, self._holders = self._holders, None
        if holders is None:
            return
        with holders:
            try:
                fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self.stop()

    def _is_ready_soon(self) -> bool:
        """Return whether it runs and answers; a busy server is given time, since others hold it."""
        patience = time.monotonic() + BUSY_SECONDS
        while self.is_running():
            if self.is_ready():
                return True
            if time.monotonic() > patience:
                break
            time.sleep(POLL_SECONDS)
        return False

    # Running ------------------------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Return whether the process that was started is still that process."""
        return self._alive("server")

    def start(self, say: Say) -> None:
        """Start it and wait until it is ready and provisioned. The caller holds this server's lock.

        Raises EmbeddedServerError naming the taken port, or with the last error of the server's log.
        """
        self.stop()
        self.prepare()
        self._check_ports()
        say(f"{self.name}: starting on port {self.port()}")
        rotate(self.log_file)
        begun = time.monotonic()
        self._launch()
        self._wait_until_ready(begun + self.start_seconds)
        self.provision()
        say(f"{self.name}: ready after {time.monotonic() - begun:.1f} s")

    def restart(self, say: Say) -> None:
        """Stop what is left of it and start it again; a crash and a sick server are repaired alike."""
        with self.folder.lock(self.name):
            self.start(say)

    def stop(self) -> None:
        """Stop it if it runs and return when it is gone."""
        if self._alive("keeper"):
            os.kill(self._pid("keeper"), signal.SIGTERM)
        elif self._alive("server"):
            os.kill(self._pid("server"), self.stop_signal)
        deadline = time.monotonic() + self.stop_seconds + 1.0
        while self._alive("server") or self._alive("keeper"):
            if time.monotonic() > deadline:
                self._kill()
            time.sleep(POLL_SECONDS)
        self._reap()

    def _kill(self) -> None:
        for role in ("server", "keeper"):
            if self._alive(role):
                os.kill(self._pid(role), signal.SIGKILL)

    def _reap(self) -> None:
        if self._keeper is not None:
            self._keeper.wait()
            self._keeper = None

    def _launch(self) -> None:
        spec = {
            "argv": self.argv(),
            "cwd": str(self.data_folder()),
            "env": child_environment(),
            "identity": self.identity(),
            "holders": str(self.folder.folder("run") / f"{self.name}.holders"),
            "pid_file": str(self.pid_file),
            "stop_signal": int(self.stop_signal),
            "stop_seconds": self.stop_seconds,
        }
        self.pid_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def _wait_until_ready(self, deadline: float) -> None:
        while not (self.is_running() and self.is_ready()):
            if self._keeper is not None and self._keeper.poll() is not None:
                raise EmbeddedServerError(f"{self.name} did not start: {self._last_words()} (see {self.log_file})")
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedServerError(
                    f"{self.name} is not ready after {self.start_seconds:.0f} s (see {self.log_file})"
                )
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()
        loud = [line for line in lines if "FATAL" in line or "ERROR" in line or "Exception" in line]
        return (loud or lines or ["it said nothing"])[-1].strip()[:200]

    def _check_ports(self) -> None:
        patience = time.monotonic() + PORT_PATIENCE_SECONDS
        for name in self.port_names:
            # A server killed a moment ago may hold its port for an instant.
            while not is_free(self.port(name)):
                if time.monotonic() > patience:
                    kept = self.folder.root / "ports.json"
                    raise EmbeddedServerError(
                        f"{self.name}: port {self.port(name)} ({name} in {kept}) is taken by another program"
                    )
                time.sleep(POLL_SECONDS)

    def _recorded(self) -> dict[str, list[int]]:
        try:
            recorded: dict[str, list[int]] = json.loads(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return recorded

    def _pid(self, role: str) -> int:
        return self._recorded()[role][0]

    def _alive(self, role: str) -> bool:
        if self._keeper is not None:
            self._keeper.poll()
        pid, born = self._recorded().get(role, [0, 0])
        return born != 0 and keeper.start_time(pid) == born


def rotate(log: Path, keep: int = 3) -> None:
    """Make room for a new log: NAME.log becomes NAME.log.1 and so on."""
    if not log.exists() or log.stat().st_size == 0:
        return
    for number in range(keep - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    log.replace(log.with_name(f"{log.name}.1"))


@functools.cache
def child_environment() -> dict[str, str]:
    """Return the environment of a server: the way to programs and the language, no setting and no secret of ours."""
    kept = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"TZ": "UTC"}
