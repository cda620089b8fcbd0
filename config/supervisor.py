"""Keep our processes and the embedded servers running, and stop them in order. It knows no business and no Django.

A child that ends is started again with a growing pause; a server that is dead, or sick for a while, is restarted. Children are
started from the main thread only: the kernel kills them when that thread, hence the supervisor, is gone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from config.embedded import EmbeddedServerError, RunningServers, keeper
from config.embedded.server import rotate

LOOP_SECONDS = 0.1
SERVER_CHECK_SECONDS = 3.0
# A loaded broker may miss a health question; one that misses them for so long is sick.
SICK_SECONDS = 30.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# After so long without an end the next one counts as the first.
STEADY_SECONDS = 60.0
STOP_BUDGET_SECONDS = 6.0
# Of the budget this much is kept for each program that is still to stop.
STOP_RESERVE_SECONDS = 0.7

Say = Callable[[str], None]


@dataclass(slots=True)
class Program:
    """A process of ours: how it is started and how long it may take to stop."""

    name: str
    argv: Sequence[str]
    environment: dict[str, str]
    stop_seconds: float = 2.0
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)
    due_at: float = field(default=0.0, init=False)
    pause: float = field(default=FIRST_PAUSE_SECONDS, init=False)


class Supervisor:
    """Runs programs until it is told to stop. `programs` are in the order of their start; `stop_order` names them for the stop."""

    def __init__(
        self,
        programs: Sequence[Program],
        servers: Sequence[RunningServers],
        *,
        stop_order: Sequence[str],
        log_folder: Path,
        say: Say,
        on_end: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.programs = {program.name: program for program in programs}
        self.servers, self.stop_order, self.log_folder, self.say, self.on_end = (
            servers,
            stop_order,
            log_folder,
            say,
            on_end,
        )
        self.told = threading.Event()
        self.sick_since: dict[str, float] = {}

    def stop_on_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP end `run`; a second one changes nothing."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _: FrameType | None) -> None:
        self.told.set()

    def start(self) -> None:
        """Start every program, each with a fresh log."""
        for program in self.programs.values():
            rotate(self.log_folder / f"{program.name}.log")
            self._start(program)

    def run(self) -> None:
        """Repair what breaks until told to stop."""
        watch = threading.Thread(target=self._watch_servers, daemon=True)
        watch.start()
        while not self.told.wait(LOOP_SECONDS):
            self.look_after_programs()
        # A restart of a server may be under way; the stop of the servers waits for its lock anyway.
        watch.join(SERVER_CHECK_SECONDS)

    def look_after_programs(self) -> None:
        """Note programs that ended and start those whose pause is over."""
        now = time.monotonic()
        for program in self.programs.values():
            if program.process is not None and program.process.poll() is not None:
                self._note_end(program, now)
            if program.process is None and now >= program.due_at:
                self._start(program)
                self.say(f"{program.name}: started again")

    def stop(self) -> None:
        """Stop the programs one after the other, each within its time and all within the budget; kill what stays."""
        deadline = time.monotonic() + STOP_BUDGET_SECONDS
        running = [self.programs[name] for name in self.stop_order if name in self.programs]
        for place, program in enumerate(running, start=1):
            if program.process is not None:
                share = deadline - time.monotonic() - STOP_RESERVE_SECONDS * (len(running) - place)
                self._stop(program, program.process, min(program.stop_seconds, share))

    def _start(self, program: Program) -> None:
        spec = {
            "argv": list(program.argv),
            "cwd": os.getcwd(),  # noqa: PTH109 - goes into JSON
            "env": None,
            "identity": "",
            "stop_signal": int(signal.SIGKILL),
            "parent": os.getpid(),
        }
        # By way of the keeper's code: own session, death with this thread; a preexec function is unsafe beside threads.
        launch = [sys.executable, "-I", "-S", keeper.__file__, "--once", json.dumps(spec)]
        with (self.log_folder / f"{program.name}.log").open("ab") as log:
            program.process = subprocess.Popen(
                launch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=program.environment
            )
        program.started_at = time.monotonic()

    def _note_end(self, program: Program, now: float) -> None:
        assert program.process is not None  # noqa: S101 - told by the caller
        if now - program.started_at > STEADY_SECONDS:
            program.pause = FIRST_PAUSE_SECONDS
        code, pause = program.process.returncode, program.pause
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self.say(f"{program.name}: {how}, again in {pause:.0f} s (see {self.log_folder / program.name}.log)")
        self.on_end(program.process.pid)
        program.process, program.due_at = None, now + pause
        program.pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _stop(self, program: Program, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.say(f"{program.name}: not stopped after {seconds:.1f} s, killed")
            process.kill()
            process.wait()
        self.on_end(process.pid)
        program.process = None

    def _watch_servers(self) -> None:
        while not self.told.wait(SERVER_CHECK_SECONDS):
            for running in self.servers:
                self.look_after_servers(running, time.monotonic())

    def look_after_servers(self, running: RunningServers, now: float) -> None:
        """Restart the servers that are dead, and those that did not answer for a while."""
        faults = running.faults()
        for name in running.held.keys() - faults.keys():
            self.sick_since.pop(name, None)
        for name, fault in faults.items():
            if self.told.is_set():
                return
            since = self.sick_since.setdefault(name, now)
            if fault == "dead" or now - since >= SICK_SECONDS:
                self.say(f"{name}: {fault}, restarting")
                self._restart(running, name)

    def _restart(self, running: RunningServers, name: str) -> None:
        try:
            running.restart(name)
        except EmbeddedServerError as error:
            # The next look tries again.
            self.say(str(error))
        else:
            self.sick_since.pop(name, None)
