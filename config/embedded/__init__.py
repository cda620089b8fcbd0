"""Real PostgreSQL, Valkey and Apache Pulsar from Python wheels, for a machine that has none of them.

    with servers(var_dir, {"postgres", "valkey"}, say=print): ...

`endpoints` tells the addresses and starts nothing; `servers` holds running servers, started if need be. Many processes may
hold the same servers; the last holder stops them. Production uses its own servers (MDI_*_URL) and installs none of this.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from config.embedded.runtime import EmbeddedServerError, VarFolder
from config.embedded.server import Say, Server
from config.embedded.topology import ADMIN_ROLE, FEED_ROLE, SERVICE_ROLE, mint_token

__all__ = ["SERVERS", "EmbeddedServerError", "Endpoints", "RunningServers", "endpoints", "secret", "servers"]

SERVERS = ("postgres", "valkey", "pulsar")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the embedded servers of a var folder are, with this installation's credentials."""

    var_dir: Path
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    pulsar_url: str
    pulsar_admin_url: str
    pulsar_token: str = field(repr=False)
    pulsar_feed_token: str = field(repr=False)
    pulsar_admin_token: str = field(repr=False)


def endpoints(var_dir: Path) -> Endpoints:
    """Return the addresses of the embedded servers, choosing ports and secrets on first use; starts nothing."""
    folder = VarFolder(var_dir.resolve())
    ports, key = folder.ports(), folder.secret_key("pulsar-key")
    return Endpoints(
        var_dir=folder.root,
        database_url=f"postgresql://mdi:{folder.secret('postgres-password')}@127.0.0.1:{ports['postgres']}/mdi",
        redis_url=f"redis://:{folder.secret('valkey-password')}@127.0.0.1:{ports['valkey']}/0",
        pulsar_url=f"pulsar://127.0.0.1:{ports['pulsar']}",
        pulsar_admin_url=f"http://127.0.0.1:{ports['pulsar_admin']}",
        pulsar_token=mint_token(key, SERVICE_ROLE),
        pulsar_feed_token=mint_token(key, FEED_ROLE),
        pulsar_admin_token=mint_token(key, ADMIN_ROLE),
    )


def secret(var_dir: Path, name: str) -> str:
    """Return an installation's own secret (64 hexadecimal digits), made on first use."""
    return VarFolder(var_dir.resolve()).secret(name)


class RunningServers:
    """The servers that this process holds."""

    def __init__(self, held: dict[str, Server], say: Say) -> None:
        self.held, self.say = held, say

    def faults(self) -> dict[str, str]:
        """Return what is wrong now, by server name: "dead" or "sick" (running, but not answering)."""
        found = {}
        for name, server in self.held.items():
            if not server.is_running():
                found[name] = "dead"
            elif not server.is_ready():
                found[name] = "sick"
        return found

    def restart(self, name: str) -> None:
        """Start a dead or sick server again and return when it is ready."""
        self.held[name].restart(self.say)


@contextmanager
def servers(
    var_dir: Path, names: Collection[str], *, partitions: int = 2, say: Say = lambda _: None
) -> Iterator[RunningServers]:
    """Hold embedded servers while the block runs: start those that do not run, all at once, and wait until they are ready.

    The last holder of a server, over all processes, stops it on leaving. Raises EmbeddedServerError.
    """
    folder = VarFolder(var_dir.resolve())
    chosen = {name: build(name, folder, partitions) for name in SERVERS if name in names}
    try:
        together(Server.acquire, chosen.values(), say)
        yield RunningServers(chosen, say)
    finally:
        together(Server.release, chosen.values())


def together(act: Callable[..., None], held: Collection[Server], *arguments: Say) -> None:
    """Do the same to all servers at once and raise the first error when all are through.

    On daemon threads: a Ctrl-C during a long start ends the program at once, and the keepers stop what had begun.
    """
    errors: list[Exception] = []

    def attempt(server: Server) -> None:
        try:
            act(server, *arguments)
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(server,), daemon=True) for server in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def build(name: str, folder: VarFolder, partitions: int) -> Server:
    """Return the server of that name; each module is imported only where it is used."""
    if name == "postgres":
        from config.embedded.postgres import Postgres

        return Postgres(folder)
    if name == "valkey":
        from config.embedded.valkey import Valkey

        return Valkey(folder)
    from config.embedded.pulsar import Pulsar

    return Pulsar(folder, partitions=partitions)
