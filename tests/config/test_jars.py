"""Fetching the broker's jars, from a repository on this machine: resumed, checked, repaired, and clear when it cannot be done."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from config.embedded import EmbeddedServerError, jars


@dataclass
class Repository:
    """A Maven repository that counts requests and can spoil its first answers."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    spoil: int = 0

    def add(self, artifact: str, content: bytes) -> str:
        """Serve a jar and return its line for the lock file."""
        self.files[f"/org/example/{artifact}/1.0/{artifact}-1.0.jar"] = content
        return f"org.example:{artifact}:1.0 {hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def repository() -> Iterator[Repository]:
    made = Repository()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = made.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            made.served.append(self.path)
            if made.spoil > 0:
                made.spoil -= 1
                content = content[:-1]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            """Keep the tests' output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lock(tmp_path: Path, repository: Repository) -> Path:
    path = tmp_path / "jars.lock"
    path.write_text("# made for a test\n" + "\n".join(repository.add(f"part{n}", bytes([n]) * 5000) for n in range(5)))
    return path


def fetch(lock: Path, repository: Repository) -> Path:
    return jars.fetch(lambda _: None, lock=lock, cache=lock.parent / "cache", repositories={"test": repository.url})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetched_once(lock: Path, repository: Repository) -> None:
    folder = fetch(lock, repository)
    assert names(folder) == [f"part{n}-1.0.jar" for n in range(5)]
    assert fetch(lock, repository) == folder
    assert len(repository.served) == 5


def test_truncated_answer_is_fetched_again(lock: Path, repository: Repository) -> None:
    repository.spoil = 2
    folder = fetch(lock, repository)
    assert [(folder / f"part{n}-1.0.jar").read_bytes() for n in range(5)] == [bytes([n]) * 5000 for n in range(5)]
    assert len(repository.served) == 7


def test_only_damaged_and_missing_jars_are_fetched_again(lock: Path, repository: Repository) -> None:
    folder = fetch(lock, repository)
    (folder / "part1-1.0.jar").write_bytes(b"damaged")
    (folder / "part3-1.0.jar").unlink()
    (folder / "stranger-1.0.jar").write_bytes(b"another version would be loaded too")
    repository.served.clear()
    fetch(lock, repository)
    assert names(folder) == [f"part{n}-1.0.jar" for n in range(5)]
    assert sorted(path[-13:-8] for path in repository.served) == ["part1", "part3"]


def test_jar_that_is_another_one_is_refused_by_name(
    lock: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.embedded.jars.time.sleep", lambda _: None)
    repository.add("part2", b"somebody else's")
    with pytest.raises(
        EmbeddedServerError, match=r"cannot fetch org\.example:part2:1\.0: its sha256 is not that of jars\.lock"
    ):
        fetch(lock, repository)


def test_absent_jar_is_named(lock: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.embedded.jars.time.sleep", lambda _: None)
    repository.files.clear()
    with pytest.raises(EmbeddedServerError, match=r"cannot fetch org\.example:part\d:1\.0: .*not found"):
        fetch(lock, repository)


def test_lock_of_the_broker_names_every_file_once() -> None:
    needed = jars.read_lock()
    assert len({jar.file_name for jar in needed}) == len(needed) > 300
    assert all(len(jar.sha256) == 64 for jar in needed)
    assert not [jar for jar in needed if jar.classifier.startswith(("osx", "windows"))]


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert jars.cache_folder() == Path("/elsewhere/market-data-integration")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert jars.cache_folder() == Path("/home/somebody/.cache/market-data-integration")
