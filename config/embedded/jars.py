"""The jars of the embedded broker: fetched once from Maven's repository into the user's cache, each checked against jars.lock.

python -m config.embedded.jars        fetch what is missing (make setup does)
"""

import fcntl
import functools
import hashlib
import os
import platform
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.embedded.runtime import EmbeddedServerError

LOCK = Path(__file__).resolve().parents[2] / "deploy" / "pulsar" / "jars.lock"
ATTEMPTS = 4
THREADS = 16
TIMEOUT_SECONDS = 30
PROGRESS_SECONDS = 2.0

Say = Callable[[str], None]
# Repository name to address; None is Maven Central.
Repositories = dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of jars.lock."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Return the name in the flat folder; no two jars of the lock share one."""
        return f"{self.artifact}-{self.version}" + (f"-{self.classifier}" if self.classifier else "") + ".jar"

    def fits_here(self) -> bool:
        """Return whether this is no native library of another platform."""
        system = {"Linux": "linux", "Darwin": "osx", "Windows": "windows"}[platform.system()]
        machine = {"arm64": "aarch_64", "aarch64": "aarch_64"}.get(platform.machine(), "x86_64")
        is_native = self.classifier.startswith(("linux-", "osx-", "windows-"))
        return not is_native or self.classifier == f"{system}-{machine}"


def read_lock(lock: Path = LOCK) -> list[Jar]:
    """Return the jars of the lock file that this platform needs."""
    jars = []
    for line in lock.read_text().splitlines():
        if line and not line.startswith("#"):
            coordinate, sha256 = line.split()
            group, artifact, version, *classifier = coordinate.split(":")
            jars.append(Jar(group, artifact, version, classifier[0] if classifier else "", sha256))
    return [jar for jar in jars if jar.fits_here()]


def cache_folder() -> Path:
    """Return the folder that survives a clone: $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "market-data-integration"


def fetch(say: Say, *, lock: Path = LOCK, cache: Path | None = None, repositories: Repositories = None) -> Path:
    """Return the folder with exactly the jars of the lock, fetching those that are missing or damaged.

    A jar enters the folder by a rename after its sha256 was right, so that an interrupted fetch goes on where it was. The folder is
    named by the lock: another version of the broker has another folder. Raises EmbeddedServerError naming the first jar that could not be had.
    """
    jars = read_lock(lock)
    edition = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = (cache or cache_folder()) / f"broker-{edition}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            complete(folder, jars, say, repositories)
    except OSError as error:
        raise EmbeddedServerError(f"broker jars: cannot use {folder}: {error.strerror or error}") from error
    return folder


def complete(folder: Path, jars: list[Jar], say: Say, repositories: Repositories) -> None:
    """Bring the folder to exactly these jars."""
    names = {jar.file_name for jar in jars}
    for stranger in folder.glob("*.jar"):
        if stranger.name not in names:
            stranger.unlink()
    missing = [jar for jar in jars if not is_sound(folder / jar.file_name, jar.sha256)]
    if not missing:
        return
    say(f"broker jars: fetching {len(missing)} of {len(jars)} into {folder}")
    progress = Progress(len(missing), say)
    in_threads([functools.partial(fetch_one, jar, folder, progress, repositories) for jar in missing])
    shutil.rmtree(folder / "incoming", ignore_errors=True)
    say(f"broker jars: {len(jars)} complete")


def in_threads(tasks: list[Callable[[], None]]) -> None:
    """Run the tasks on daemon threads and raise the first error; an interrupted program need not wait for them, as it would for a pool."""
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while True:
            try:
                waiting.get_nowait()()
            except queue.Empty:
                return
            except Exception as error:  # noqa: BLE001 - handed to the waiting thread, which raises it
                ended.put(error)
                return
            ended.put(None)

    for _ in range(min(THREADS, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    for _ in tasks:
        if error := ended.get():
            raise error


def is_sound(path: Path, sha256: str) -> bool:
    """Return whether the file is there with the right content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def fetch_one(jar: Jar, folder: Path, progress: "Progress", repositories: Repositories) -> None:
    """Fetch one jar and move it into the folder; a truncated or foreign file is thrown away and fetched again."""
    from jgo.maven import MavenContext

    incoming = folder / "incoming"
    context = MavenContext(repo_cache=incoming, remote_repos=repositories, timeout=TIMEOUT_SECONDS)
    artifact = (
        context.project(jar.group, jar.artifact)
        .at_version(jar.version)
        .artifact(classifier=jar.classifier, packaging="jar")
    )
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        path: Path | None = None
        try:
            path = artifact.resolve()
        except Exception as error:  # noqa: BLE001 - jgo raises whatever its parts raise; the reason goes into our error
            reason = str(error)
            path = artifact.cached_path
        if path and is_sound(path, jar.sha256):
            size = path.stat().st_size
            path.replace(folder / jar.file_name)
            progress.add(size)
            return
        if path and path.exists():
            reason = reason or f"its sha256 is not that of {LOCK.name}"
            path.unlink()
    raise EmbeddedServerError(
        f"broker jars: cannot fetch {jar.group}:{jar.artifact}:{jar.version}: {reason.splitlines()[0]}"
    )


class Progress:
    """Say now and then how far the fetch is."""

    def __init__(self, total: int, say: Say) -> None:
        self.total, self.say = total, say
        self.count = self.size = 0
        self.said_at = time.monotonic()
        self.lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count one jar of that many bytes."""
        with self.lock:
            self.count, self.size = self.count + 1, self.size + size
            if time.monotonic() - self.said_at >= PROGRESS_SECONDS:
                self.said_at = time.monotonic()
                self.say(f"broker jars: {self.count}/{self.total} ({self.size / 1e6:.0f} MB)")
