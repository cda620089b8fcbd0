"""`manage.py run_stack`: everything on one machine, from servers to web page, until Ctrl-C. `make run` calls it."""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.embedded import EmbeddedServerError, servers
from config.embedded.runtime import VarFolder, is_free
from config.env import REPOSITORY, Environment, load
from config.external import ExternalServerError, use_external
from config.supervisor import Program, Supervisor

START_ORDER = ("web", "consumer", "sequencer", "celery", "beat", "feed")
STOP_ORDER = ("feed", "consumer", "sequencer", "beat", "celery", "web")
WEB_SECONDS = 60.0
# A client of the live protocol says at most 16 KiB at once (docs/websocket.md); uvicorn would read 16 MiB before anybody could refuse
# it. Compression costs the processor more than the loopback or a proxy saves, and lets a few bytes unpack to many.
WEB_OPTIONS = (
    *("--timeout-graceful-shutdown", "1", "--no-access-log", "--no-server-header"),
    *("--ws-max-size", str(64 * 1024), "--ws-per-message-deflate", "false"),
)
MANAGE = str(REPOSITORY / "manage.py")


class Command(BaseCommand):
    """Start servers, migrate, start our processes, print the link, and stop all in order."""

    help = "Run the whole service on this machine: servers, demo feed, consumer, sequencer, Celery and web."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGINT or SIGTERM; a server, port or setting that cannot be used is one line and exit code 1."""
        # Until the supervisor takes the signals over, both leave by the same way out.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        settings = load(os.environ)
        folder = VarFolder(settings.var_dir.resolve())
        try:
            with alone(folder):
                self.run(settings, folder)
        except (EmbeddedServerError, ExternalServerError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            self.say("interrupted")

    def say(self, text: str) -> None:
        """Print one line of progress at once."""
        self.stdout.write(text)
        self.stdout.flush()

    def run(self, settings: Environment, folder: VarFolder) -> None:
        """Go through the steps; whatever was started is stopped on the way out."""
        if not is_free(settings.port):
            raise CommandError(f"port {settings.port} (MDI_PORT, `make run PORT=…`) is taken by another program")
        use_external(settings, self.say)
        stores = {"postgres": settings.database_url, "valkey": settings.redis_url}
        environment = child_environment(settings, folder)
        with ExitStack() as leaving:
            leaving.callback(lambda: self.say("stopped"))
            held = [
                leaving.enter_context(
                    servers(folder.root, {name for name, url in stores.items() if not url}, say=self.say)
                )
            ]
            preparation = Preparation(environment, folder, self.say, demo=settings.demo)
            if not settings.pulsar_url:
                held.append(
                    leaving.enter_context(
                        servers(folder.root, {"pulsar"}, partitions=settings.partitions, say=self.say)
                    )
                )
            preparation.finish()
            leaving.callback(lambda: self.say("stopping servers"))
            self.supervise(
                Supervisor(
                    programs(settings, environment),
                    held,
                    stop_order=STOP_ORDER,
                    log_folder=folder.folder("log"),
                    say=self.say,
                    on_end=forget_metrics,
                ),
                settings,
                folder,
                environment,
            )

    def supervise(
        self, supervisor: Supervisor, settings: Environment, folder: VarFolder, environment: dict[str, str]
    ) -> None:
        """Start the programs, show the link when the page answers, and keep all running."""
        supervisor.stop_on_signals()
        try:
            self.say("processes: " + ", ".join(supervisor.programs))
            supervisor.start()
            if wait_for_web(settings.port, supervisor):
                self.show_link(settings, folder, environment["MDI_ACCESS_TOKEN"])
            supervisor.run()
        finally:
            self.say("stopping processes")
            supervisor.stop()

    def show_link(self, settings: Environment, folder: VarFolder, token: str) -> None:
        """Print where to look and how to log in; the link stands alone on its line."""
        site = f"http://127.0.0.1:{settings.port}"
        rule = "─" * 100
        self.say(
            f"\n┌{rule}\n"
            f"│ Live page   {site}/?token={token}\n"
            f"│ Admin       {site}/admin/   user operator, password {folder.password('operator-password')}\n"
            f"│ Data, logs  {folder.root}\n"
            f"│ Ctrl-C stops everything; the next start continues here.\n"
            f"└{rule}\n"
        )


@contextmanager
def alone(folder: VarFolder) -> Iterator[None]:
    """Refuse a second supervisor of the same data folder."""
    with (folder.folder("run") / "run_stack.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(
                f"another run_stack uses {folder.root} (choose another with `make run VAR_DIR=…`)"
            ) from error
        yield


def child_environment(settings: Environment, folder: VarFolder) -> dict[str, str]:
    """Return what the processes get: our settings, this run's token, an empty folder for their metrics."""
    metrics = folder.folder("run") / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    # This process may mark a dead one's metrics, too.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.folder("run", "metrics"))
    return os.environ | {
        "MDI_VAR_DIR": str(folder.root),
        "MDI_PORT": str(settings.port),
        "MDI_ACCESS_TOKEN": secrets.token_urlsafe(24),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONUNBUFFERED": "1",
    }


def programs(settings: Environment, environment: dict[str, str]) -> list[Program]:
    """Return our processes in the order of their start; only the web server knows the link's token."""
    python, celery = sys.executable, ("-m", "celery", "-A", "config.celery", "--quiet")
    beat_state = str(settings.var_dir / "run" / "celerybeat-schedule")
    others = {name: value for name, value in environment.items() if name != "MDI_ACCESS_TOKEN"}
    web = ("-m", "uvicorn", "config.asgi:application", "--host", "127.0.0.1", "--port", str(settings.port))
    argv = {
        "web": (*web, *WEB_OPTIONS),
        "consumer": (MANAGE, "consume_ticks"),
        "sequencer": (MANAGE, "sequence_ticks"),
        "celery": (
            *celery,
            "worker",
            "-P",
            "threads",
            "-c",
            "4",
            "--without-gossip",
            "--without-mingle",
            "-l",
            settings.log_level,
        ),
        "beat": (*celery, "beat", "--pidfile=", "-s", beat_state, "-l", settings.log_level),
        "feed": (MANAGE, "feed"),
    }
    chosen = [name for name in START_ORDER if name != "feed" or settings.demo]
    return [Program(name, (python, *argv[name]), environment if name == "web" else others) for name in chosen]


class Preparation:
    """Migrate and bootstrap the database in the background, while the broker starts."""

    def __init__(self, environment: dict[str, str], folder: VarFolder, say: Any, *, demo: bool) -> None:
        self.folder, self.say, self.error = folder, say, ""
        self.bootstrap = ("bootstrap", "--demo") if demo else ("bootstrap",)
        self.environment = environment | {"MDI_OPERATOR_PASSWORD": folder.password("operator-password")}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Wait for the end. Raises EmbeddedServerError with the last line that a failed step printed."""
        self.thread.join()
        if self.error:
            raise EmbeddedServerError(self.error)

    def _run(self) -> None:
        for step, argv in (
            ("database: migrating", ("migrate", "--noinput")),
            ("reference data and operator", self.bootstrap),
        ):
            self.say(step)
            log = self.folder.folder("log") / f"{argv[0]}.log"
            with log.open("wb") as output:
                done = subprocess.run(
                    [sys.executable, MANAGE, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self.environment,
                    check=False,
                )
            if done.returncode:
                words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                self.error = f"{argv[0]} failed: {words[-1][:300]} (see {log})"
                return


def wait_for_web(port: int, supervisor: Supervisor) -> bool:
    """Return whether the page answers; keep the programs running meanwhile, and say so when it takes too long."""
    patience = time.monotonic() + WEB_SECONDS
    while not supervisor.told.wait(0.1):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            supervisor.look_after_programs()
        else:
            return True
        if time.monotonic() > patience:
            supervisor.say(f"web: no answer yet on port {port} (see {supervisor.log_folder / 'web.log'})")
            patience = time.monotonic() + WEB_SECONDS
    return False


def forget_metrics(pid: int) -> None:
    """Drop the live gauges of a process that has ended."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
