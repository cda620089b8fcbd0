"""Starts the service's commands as processes of a test: own names, own settings, ended with the test whatever happens."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings
from django.db import connection

from tests.faults.run import POINTS

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def environment(normalized: str = "normalized", integrated: str = "integrated", **more: str) -> dict[str, str]:
    """Give the variables that point a process at this test's database, broker and namespaces."""
    database = connection.settings_dict
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MDI_")}
    return kept | {
        "MDI_VAR_DIR": str(settings.MDI.var_dir),
        "MDI_DATABASE_URL": f"postgresql://{database['USER']}:{database['PASSWORD']}@127.0.0.1:{database['PORT']}/{database['NAME']}",
        "MDI_REDIS_URL": settings.REDIS_URL,
        "MDI_PULSAR_URL": settings.PULSAR_URL,
        "MDI_PULSAR_TOKEN": settings.PULSAR_TOKEN,
        "MDI_NORMALIZED_NAMESPACE": normalized,
        "MDI_INTEGRATED_NAMESPACE": integrated,
        "MDI_SECRET_KEY": settings.SECRET_KEY,
        "MDI_LOG_LEVEL": "warning",
        "MDI_CANARY_INTERVAL_MS": "0",
        "MDI_DATABASE_POOL": "0",
        "MDI_STANDBY_AFTER_MS": "2000",
        "MDI_BAR_GRACE_MS": "1000",
        "MDI_BATCH_MESSAGES": "200",
    } | more  # fmt: skip


@dataclass
class Runner:
    """A command kept running: started again whenever it has died, now and then with a trap at a named point."""

    command: str
    variables: dict[str, str]
    log: Path
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    starts: int = 0
    exits: list[int] = field(default_factory=list)

    def start(self, *arguments: str) -> None:
        """Start the command, with a name of its own."""
        self.starts += 1
        name = f"{self.command}-{id(self)}-{self.starts}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.run", self.command, "--name", name, *self.arguments, *arguments],
                cwd=REPOSITORY, env=self.variables | {"STARTED_FILE": str(self.log)}, stdout=log, stderr=log,
            )  # fmt: skip
        self.started_at = time.monotonic()

    def start_with_trap(self, chance: random.Random) -> None:
        """Start it so that it dies at one of its points, some rounds from now, or without a trap."""
        trap = f"{chance.choice(POINTS[self.command])}:{chance.randrange(1, 6)}"
        self.start(*(("--crash-at", trap) if chance.random() < 0.6 else ()))

    def has_died(self) -> bool:
        """Whether the process has ended; notes how."""
        if self.process is None or self.process.poll() is None:
            return False
        self.exits.append(self.process.returncode)
        self.process = None
        return True

    @property
    def is_working(self) -> bool:
        """Whether the command has come as far as its loop; it says so in a file."""
        return self.process is not None and Path(f"{self.log}.{self.process.pid}").exists()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """End it as an operator would, within the time that it may take."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None
