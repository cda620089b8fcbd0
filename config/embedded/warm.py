"""A cache of the broker's loaded classes (Java's ahead-of-time cache): with it the broker starts on half the processor time.

    python -m config.embedded.warm        fetch the jars and make the cache if it is missing (make setup does)

Made by one training run on a throw-away data folder. It is only ever a help: without it, or with one that Java refuses, the broker starts as usual.
"""

import fcntl
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from config.embedded import jars
from config.embedded.pulsar import Pulsar, java, jvm_options
from config.embedded.runtime import EmbeddedServerError, VarFolder
from config.embedded.server import Say


class Trainee(Pulsar):
    """A broker that writes the cache when it stops, which takes a while."""

    stop_seconds = 90.0
    output = Path()

    def cache_options(self) -> list[str]:
        """Return the option that makes Java record and write."""
        return [f"-XX:AOTCacheOutput={self.output}"]


def cache_file(folder: Path) -> Path:
    """Return the cache's place beside the jars; its name changes with the Java runtime and its options."""
    modules = java().parents[1] / "lib" / "modules"
    facts = f"{modules.stat().st_size} {modules.stat().st_mtime_ns} {jvm_options()}"
    return folder / f"classes-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.aot"


def warm(say: Say) -> None:
    """Make the cache unless it is there. Raises EmbeddedServerError when the broker cannot be had at all."""
    folder = jars.fetch(say)
    path = cache_file(folder)
    with (folder / ".warm.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return
        for stale in folder.glob("classes-*.aot"):
            stale.unlink()
        say("broker: recording its classes for fast starts")
        draft = folder / f".{path.name}"
        var = Path(tempfile.mkdtemp(prefix="mdi-warm-"))
        try:
            trainee = Trainee(VarFolder(var), partitions=1)
            trainee.output = draft
            trainee.acquire(lambda _: None)
            trainee.release()
            draft.replace(path)
        except (EmbeddedServerError, OSError) as error:
            say(f"broker: no class cache, it will start more slowly: {error}")
        finally:
            shutil.rmtree(var, ignore_errors=True)
            for rest in folder.glob(".classes-*"):
                rest.unlink()


def main() -> int:
    """Warm for make setup; return the exit code."""
    try:
        warm(lambda text: print(text, flush=True))
    except EmbeddedServerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the next `make setup` goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
