"""Run one server as a child and stop it when nobody holds it any more. Run by path with `python -I -S`; standard library only.

Holders keep a shared lock on a file; the kernel drops the lock of a holder however it dies, so that a killed command leaves no
server behind. The keeper also puts the server where it may run: PostgreSQL refuses root, so root enters a user namespace or
becomes another user first.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
HELD_CHECK_SECONDS = 1.0
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(spec: dict[str, Any]) -> int:
    """Start the server of the spec, wait for its end or for the last holder's, and return an exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        become(spec, keeper)
    write_pids(spec["pid_file"], keeper, child)
    status = wait(child, spec)
    return os.waitstatus_to_exitcode(status) if status is not None else 1


def become(spec: dict[str, Any], keeper: int) -> None:
    """Turn this child into the program of the spec; never returns. An env of None keeps the present one."""
    try:
        os.setsid()
        if spec["identity"].startswith("namespace:"):
            enter_user_namespace(int(spec["identity"].removeprefix("namespace:")))
        elif spec["identity"]:
            become_user(spec["identity"])
        # After the change of identity, which would clear it: a server without its keeper stops in order.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, spec["stop_signal"])
        if os.getppid() != keeper:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        os.chdir(spec["cwd"])
        env = os.environ if spec["env"] is None else spec["env"]
        os.execve(spec["argv"][0], spec["argv"], env)  # noqa: S606 - the point of this module
    except OSError as error:
        os.write(2, f"FATAL: cannot run {spec['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def enter_user_namespace(inside: int) -> None:
    """Become that user of a new user namespace in which it is the present user; files keep their owner outside."""
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespace: " + os.strerror(ctypes.get_errno()))
    for file, text in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as handle:
            handle.write(text)


def become_user(name: str) -> None:
    """Drop root for good."""
    import pwd

    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def write_pids(path: str, keeper: int, child: int) -> None:
    """Record who runs, with start times: a process id alone may be another program's tomorrow."""
    with open(path + ".new", "w") as handle:
        json.dump({"keeper": [keeper, start_time(keeper)], "server": [child, start_time(child)]}, handle)
    os.replace(path + ".new", path)


def start_time(pid: int) -> int:
    """Return the kernel's start time of a process in ticks since boot, 0 where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            fields = handle.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def wait(child: int, spec: dict[str, Any]) -> int | None:
    """Wait until the server ends, ending it when told to or when no holder is left."""
    holders = os.open(spec["holders"], os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        received = signal.sigtimedwait(WATCHED, HELD_CHECK_SECONDS)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        told = received is not None and received.si_signo != signal.SIGCHLD
        if told or (received is None and is_unheld(holders)):
            return stop(child, spec)


def is_unheld(holders: int) -> bool:
    """Return whether nobody holds the server; then keep the lock, so that nobody can take hold of a stopping one."""
    try:
        fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop(child: int, spec: dict[str, Any]) -> int | None:
    """Ask the server to stop, kill it after its deadline, and return its status."""
    os.kill(child, spec["stop_signal"])
    deadline = time.monotonic() + spec["stop_seconds"]
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        signal.sigtimedwait({signal.SIGCHLD}, 0.2)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    if sys.argv[1] == "--once":
        # No keeping: become the program, with the caller in the keeper's place.
        once = json.loads(sys.argv[2])
        become(once, once["parent"])
    sys.exit(main(json.loads(sys.argv[1])))
