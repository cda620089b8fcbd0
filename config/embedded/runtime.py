"""The var folder: secrets made once, ports chosen once, locks between processes. It starts nothing.

Standard library only, because every command reads it before anything else is imported.
"""

import fcntl
import json
import os
import random
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PORT_NAMES = ("postgres", "valkey", "pulsar", "pulsar_admin", "pulsar_bookie")
LOWEST_PORT = 15000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class EmbeddedServerError(RuntimeError):
    """An embedded server cannot be had; the text is one line that names what and where."""


@dataclass(frozen=True, slots=True)
class VarFolder:
    """Everything an installation keeps on disk. The same folder may be used by many processes at once."""

    root: Path

    def folder(self, *parts: str) -> Path:
        """Return a folder below the root, made 0700 where missing."""
        path = self.root
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in parts:
                path = path / part
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise EmbeddedServerError(f"cannot make the data folder {path}: {error.strerror}") from error
        return path

    def secret(self, name: str) -> str:
        """Return the secret of that name (64 hexadecimal digits), made on first use and kept 0600."""
        return self.secret_bytes(name, lambda: secrets.token_hex(32).encode()).decode()

    def password(self, name: str) -> str:
        """Return a password that a person may have to type (20 characters), made on first use and kept 0600."""
        return self.secret_bytes(name, lambda: secrets.token_urlsafe(15).encode()).decode()

    def secret_key(self, name: str) -> bytes:
        """Return a key of 32 random bytes, made on first use and kept 0600."""
        return self.secret_bytes(name, lambda: secrets.token_bytes(32))

    def secret_bytes(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the content of secrets/NAME; the first process to link its own content there wins."""
        path = self.folder("secrets") / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            publish(path, make(), replace=False)
            return path.read_bytes()
        except OSError as error:
            raise EmbeddedServerError(f"cannot read {path}: {error.strerror}") from error

    def write_secret(self, name: str, content: bytes) -> Path:
        """Keep content derived from other secrets in secrets/NAME, 0600, and return its path."""
        path = self.folder("secrets") / name
        if not path.exists() or path.read_bytes() != content:
            publish(path, content, replace=True)
        return path

    def ports(self) -> dict[str, int]:
        """Return the port of each server, chosen once (a broker's storage keeps the port it was born with)."""
        path = self.folder() / "ports.json"
        known = read_ports(path)
        if known.keys() >= set(PORT_NAMES):
            return known
        with self.lock("ports"):
            known = read_ports(path)
            for name in PORT_NAMES:
                if name not in known:
                    known[name] = choose_port(taken=set(known.values()))
            publish(path, json.dumps(known, indent=1).encode(), replace=True)
        return known

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold run/NAME.lock against every other process; the kernel lets go when a holder dies."""
        with (self.folder("run") / f"{name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def publish(path: Path, content: bytes, *, replace: bool) -> None:
    """Put content at path at once and whole, 0600; without replace an existing file stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            link_once(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def link_once(draft: Path, path: Path) -> None:
    """Give the draft its final name unless another process was first."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return


def read_ports(path: Path) -> dict[str, int]:
    """Return the ports kept at path, none where the file is missing."""
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, OSError) as error:
        raise EmbeddedServerError(f"cannot read the ports in {path}: {error}") from error


def choose_port(*, taken: set[int]) -> int:
    """Return a port that is free now and that the kernel gives to no outgoing connection."""
    top = LOWEST_PORT + 17000
    if EPHEMERAL_RANGE.exists():
        top = min(top, int(EPHEMERAL_RANGE.read_text().split()[0]))
    bottom = LOWEST_PORT if top > LOWEST_PORT + 1000 else 1024
    for _ in range(200):
        port = random.randrange(bottom, top)  # noqa: S311 - a port is no secret
        if port not in taken and is_free(port):
            return port
    raise EmbeddedServerError(f"no free port between {bottom} and {top}")


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set it too: a port in TIME_WAIT is not taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
