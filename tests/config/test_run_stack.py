"""`manage.py run_stack` itself: the whole service from nothing to the link, repaired when a process is killed, stopped by SIGTERM."""

import fcntl
import http.cookiejar
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
import websockets
from websockets.sync.client import connect

from config.embedded.keeper import start_time
from config.embedded.runtime import VarFolder, choose_port
from config.env import REPOSITORY
from distribution.protocol import CLOSE_PROTOCOL


class Stack:
    """A run_stack in a process of its own, with its output read line by line."""

    def __init__(self, var: Path, port: int) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MDI_")}
        environment = kept | {"MDI_VAR_DIR": str(var), "MDI_PORT": str(port), "MDI_DEMO": "0"}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "run_stack"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, pattern: str) -> "re.Match[str]":
        """Return the match in the next line that has one; the end of the output fails the test."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(pattern, line):
                return found
        raise AssertionError("run_stack ended early:\n" + "\n".join(self.lines))

    def children(self) -> dict[int, str]:
        """Return the processes below it with their command lines."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in listed}

    def find(self, word: str) -> int:
        """Return the process with that word in its command line, 0 where there is none."""
        return next((pid for pid, command in self.children().items() if word in command), 0)

    def end(self) -> str:
        """Wait for its end and return what it still printed."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        self.process.stdout.close()
        self.process.wait()
        return rest


@pytest.fixture
def var() -> Iterator[Path]:
    folder = Path(mkdtemp(prefix="mdi-stack-"))
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def run_stack(var: Path) -> Iterator[Callable[[int], Stack]]:
    """Yield a function that starts a run_stack on a port; what still runs after the test is killed, and its servers with it."""
    made: list[Stack] = []

    def start(port: int) -> Stack:
        made.append(Stack(var, port))
        return made[-1]

    yield start
    for stack in made:
        if stack.process.poll() is None:
            stack.process.kill()
            stack.end()
            assert eventually(lambda: not any(is_alive(record) for record in (var / "run").glob("*.json")))


def is_alive(record: Path) -> bool:
    """Return whether the server that a record of the run folder names still runs."""
    pid, born = json.loads(record.read_text())["server"]
    return bool(start_time(pid) == born)


def server_of(record: Path) -> int:
    """Return the process that a record names; it may be written anew at any moment, but never in part."""
    return int(json.loads(record.read_text())["server"][0])


def get(address: str) -> int:
    """Return the status of a page."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - our own page
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def eventually(condition: Callable[[], bool]) -> bool:
    patience = time.monotonic() + 120
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.1)
    return True


def check_live_protocol(link: str) -> None:
    """Hold that the socket of this very server agrees to no compression and reads no message beyond its limit."""
    jar = http.cookiejar.CookieJar()
    urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)).open(link, timeout=60).close()
    cookie = "; ".join(f"{item.name}={item.value}" for item in jar)
    address = "ws" + link.partition("/?")[0].removeprefix("http") + "/ws/v1/market-data"

    def closed_after(text: str) -> int:
        subprotocols = [websockets.Subprotocol("md1.json")]
        with connect(address, additional_headers={"Cookie": cookie}, subprotocols=subprotocols) as live:
            assert live.request is not None
            assert live.response is not None
            assert "permessage-deflate" in live.request.headers["Sec-WebSocket-Extensions"]
            assert "Sec-WebSocket-Extensions" not in live.response.headers
            assert '"t":"welcome"' in live.recv(timeout=60)
            with pytest.raises(websockets.ConnectionClosed) as end:  # noqa: PT012 - whatever else is said comes first
                live.send(text)
                while True:
                    live.recv(timeout=60)
            assert end.value.rcvd is not None
            return end.value.rcvd.code

    assert closed_after("x" * (64 * 1024 + 1)) == 1009
    # What the server still reads is refused by the protocol itself, with its own code.
    assert closed_after("x" * (64 * 1024)) == CLOSE_PROTOCOL


def test_from_nothing_to_the_link_and_back(var: Path, run_stack: Callable[[int], Stack]) -> None:
    stack = run_stack(choose_port(taken=set()))
    link = stack.read_until(r"http://127\.0\.0\.1:\d+/\?token=\S+").group()
    password = stack.read_until(r"user operator, password (\S+)").group(1)
    assert (var / "secrets" / "operator-password").read_text() == password
    assert get(link) == 200
    assert get(link + "x") == 403
    check_live_protocol(link)

    consumer = stack.find("consume_ticks")
    os.kill(consumer, signal.SIGKILL)
    stack.read_until(r"^consumer: killed by SIGKILL, again in 1 s")
    stack.read_until(r"^consumer: started again")
    assert eventually(lambda: stack.find("consume_ticks") not in (0, consumer))

    valkey = var / "run" / "valkey.json"
    killed = server_of(valkey)
    os.kill(killed, signal.SIGKILL)
    # By the supervisor, or by the consumer that is just starting and needs it: whoever looks first.
    assert eventually(lambda: valkey.exists() and is_alive(valkey) and server_of(valkey) != killed)

    everything = list(stack.children())
    stack.process.send_signal(signal.SIGTERM)
    rest = stack.end()
    assert stack.process.returncode == 0, rest
    assert "stopping processes" in rest.splitlines()
    assert rest.splitlines()[-1] == "stopped"
    assert [pid for pid in everything if start_time(pid)] == []


def test_taken_web_port_is_one_line(run_stack: Callable[[int], Stack]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = run_stack(port)
        printed = stack.end()
    assert stack.process.returncode == 1
    assert printed == f"CommandError: port {port} (MDI_PORT, `make run PORT=…`) is taken by another program\n"


def test_second_supervisor_of_a_folder_is_refused(var: Path, run_stack: Callable[[int], Stack]) -> None:
    with (VarFolder(var).folder("run") / "run_stack.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        stack = run_stack(choose_port(taken=set()))
        printed = stack.end()
    assert stack.process.returncode == 1
    assert printed == f"CommandError: another run_stack uses {var} (choose another with `make run VAR_DIR=…`)\n"
