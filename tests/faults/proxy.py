"""A small TCP proxy before a server, so that a test can take the server away and give it back.

Before PostgreSQL it can look into what a client sends, and cut the connection at a named message (`cut_at`).
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

# Where a connection can be cut. "commit" is cut before COMMIT arrives, "commit_sent" after, before the answer comes back.
PLACES = ("copy_data", "copy_done", "commit", "commit_sent")
_COPIES = {b"d": "copy_data", b"c": "copy_done"}
_STARTUP = struct.Struct("!ii")
_SSL_REQUEST = 80877103


class Proxy:
    """Forwards a free local port to a server; `cut` drops all connections and refuses new ones until `mend`."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.is_cut = False
        self.trap: Trap | None = None
        self.pairs: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Take the server away."""
        self.is_cut = True
        pairs, self.pairs = self.pairs, []
        for one in pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Give the server back."""
        self.is_cut = False

    def cut_at(self, place: str, times: int) -> "Trap":
        """Cut the connection that sends the n-th such message from now on; others live, and new ones are taken."""
        self.trap = Trap(place, times)
        return self.trap

    def close(self) -> None:
        """Stop forwarding."""
        self.cut()
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if self.is_cut:
                    client.close()
                    continue
                server = socket.create_connection(self.target)
                self.pairs += [client, server]
                threading.Thread(target=self._pump_requests, args=(client, server), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()

    def _pump_requests(self, client: socket.socket, server: socket.socket) -> None:
        """Forward message by message, as far as they are whole, so that a trap can act between two."""
        frames = Frames()
        with suppress(OSError):
            while data := client.recv(65_536):
                for kind, frame in frames.feed(data):
                    places = frames.places(kind, frame)
                    if self.trap and self.trap.springs(places - {"commit_sent"}):
                        return _close(client, server)
                    server.sendall(frame)
                    if self.trap and self.trap.springs(places & {"commit_sent"}):
                        # The server has it now; whether it has obeyed is what the client cannot know.
                        time.sleep(0.02)
                        return _close(client, server)
        _close(client, server)
        return None


@dataclass
class Trap:
    """Counts messages of one place, over all connections; `is_sprung` when a connection was cut."""

    place: str
    left: int
    is_sprung: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def springs(self, places: set[str]) -> bool:
        """Count a message; whether the connection is cut here."""
        if self.place not in places:
            return False
        with self.lock:
            self.left -= 1
            self.is_sprung |= self.left == 0
            return self.left == 0


class Frames:
    """Cuts what a PostgreSQL client sends into messages: the first have no type, all others a type and a length."""

    def __init__(self) -> None:
        self.rest = b""
        self.has_started = False
        self.commits: set[bytes] = set()  # names of prepared statements that are COMMIT
        self.is_committing = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Give (type, whole message) as far as messages are whole; the type of a first message is empty."""
        self.rest += data
        while True:
            head = 1 if self.has_started else 0
            if len(self.rest) < head + 8 - 4 * head:
                return
            (length,) = struct.unpack_from("!i", self.rest, head)
            if len(self.rest) < head + length:
                return
            frame, self.rest = self.rest[: head + length], self.rest[head + length :]
            if not self.has_started:
                self.has_started = _STARTUP.unpack_from(frame)[1] != _SSL_REQUEST
            yield frame[:head], frame

    def places(self, kind: bytes, frame: bytes) -> set[str]:
        """Name the places that a message stands for."""
        if kind in _COPIES:
            return {_COPIES[kind]}
        if kind == b"P":
            name, query, _ = frame[5:].split(b"\0", 2)
            (self.commits.add if query == b"COMMIT" else self.commits.discard)(name)
        elif kind == b"B":
            _, name, _ = frame[5:].split(b"\0", 2)
            self.is_committing = name in self.commits
            return {"commit"} if self.is_committing else set()
        elif kind == b"S" and self.is_committing:
            self.is_committing = False
            return {"commit_sent"}
        return set()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _close(source, target)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
