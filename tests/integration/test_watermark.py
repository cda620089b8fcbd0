"""Room on the disk: consumption pauses before it is full, says so, and goes on by itself with room to spare."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from distribution import probes
from integration import alerts, selectors, watermark
from integration.models import Trade
from integration.watermark import Watermark, free_bytes
from tests.e2e.events import TS, messages, trade
from tests.e2e.world import World
from tests.integration.test_consumer import settle

MB = 1024 * 1024
LEAST = settings.MDI.disk_free_mb * MB


def test_it_pauses_below_the_mark_and_goes_on_clearly_above() -> None:
    free = [200]
    disk = Watermark((Path("/a"), Path("/b")), 100, lambda folder: free[0] if folder == Path("/a") else 1_000)
    assert disk.look() == []
    free[0] = 99
    assert disk.look() == [(Path("/a"), 99)]
    free[0] = 124
    assert disk.look() == [(Path("/a"), 124)]  # above the mark, and still low
    free[0] = 125
    assert disk.look() == []
    free[0] = 100
    assert disk.look() == []


def test_a_folder_that_is_not_here_fills_no_disk(tmp_path: Path) -> None:
    assert Watermark((tmp_path / "none",), 10**18).look() == []
    assert Watermark((tmp_path,), 10**18).look()[0][0] == tmp_path


def test_it_watches_var_and_the_data_of_postgres(world: World) -> None:
    folders = watermark.watermark().folders
    assert folders == (settings.MDI.var_dir, settings.MDI.var_dir / "postgres" / "data")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the free bytes of all disks, to be changed."""
    free = [10 * LEAST]
    shown = Watermark((settings.MDI.var_dir,), LEAST, lambda _: free[0])
    monkeypatch.setattr(watermark, "_watched", [shown])
    monkeypatch.setattr("integration.broker.backlog", lambda topic, _: {f"{topic}-partition-0": 5})
    return free


def test_a_consumer_pauses_and_goes_on_by_itself(world: World, full: list[int]) -> None:
    worker = world.worker(disk=Watermark((settings.MDI.var_dir,), LEAST, lambda _: full[0]))
    worker.source.put(*messages(trade(1)))  # type: ignore[attr-defined]
    settle(worker)
    full[0] = LEAST - 1
    worker.source.put(*messages(trade(2), trade(3)))  # type: ignore[attr-defined]
    for _ in range(3):
        settle(worker)
    assert (worker.is_paused, Trade.objects.count()) == (True, 1)
    found = {item.kind: item for item in alerts.findings(selectors.alert_facts(TS))}
    assert "paused: disk" in found[alerts.DISK_FULL].message
    assert alerts.CONSUMER_STALE not in found  # it is known why nobody reads
    part = probes._disk()
    assert (part.state, part.is_required) == (probes.LATE, True)
    full[0] = LEAST + 1
    settle(worker)
    assert worker.is_paused
    full[0] = 2 * LEAST
    settle(worker)
    settle(worker)
    assert (worker.is_paused, Trade.objects.count()) == (False, 3)
    assert probes._disk().state == probes.OK
    assert alerts.DISK_FULL not in {item.kind for item in alerts.findings(selectors.alert_facts(TS))}


_MOUNTED = """
import ctypes, os, sys
from pathlib import Path
uid, gid = os.getuid(), os.getgid()
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() != 0 or libc.unshare(0x00020000):
    if libc.unshare(0x10020000):
        sys.exit(77)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
libc.mount(b"none", b"/", None, 0x44000, None)  # what is mounted here stays here
folder = Path(sys.argv[1])
if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=8m"):
    sys.exit(77)
from integration.watermark import Watermark
disk = Watermark((folder,), 4 * 1024 * 1024)
told = [len(disk.look())]
(folder / "data").write_bytes(b"x" * 5 * 1024 * 1024)
told.append(len(disk.look()))
(folder / "data").write_bytes(b"x" * 3600 * 1024)
told.append(len(disk.look()))
(folder / "data").unlink()
told.append(len(disk.look()))
print(told)
"""


def test_on_a_real_disk_of_eight_megabytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MOUNTED, str(tmp_path)], capture_output=True, text=True, check=False, cwd=settings.BASE_DIR,
        env=os.environ | {"PYTHONPATH": str(settings.BASE_DIR)},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this machine lets nobody mount a tmpfs")
    assert done.stdout.strip() == "[0, 1, 1, 0]", done.stderr


def test_free_bytes_are_those_of_an_ordinary_user(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    assert abs(free_bytes(tmp_path) - facts.f_bavail * facts.f_frsize) < 512 * MB
    with contextlib.suppress(FileNotFoundError):
        free_bytes(tmp_path / "none")
        raise AssertionError
