"""What `make setup` compiles is all that the running service needs: neither of its processes compiles anything itself."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from config.env import REPOSITORY
from config.kernels import compile_kernels
from integration import bar_kernel
from integration.market.events import CONTENT_TYPE
from integration.market.ticks import TRADE, Ticks
from integration.sequencer import CommittedBatch, Sequencer
from quality import kernels
from quality.screening import ScreenState, screen
from tests.e2e import events
from tests.e2e.events import SECOND, arrow, distributed, normalized, quote, trade
from tests.e2e.test_whole_path import Service, service
from tests.e2e.world import until
from tests.faults.account import stored_count

__all__ = ["service"]


def compiled(folder: Path) -> dict[str, int]:
    """Give the files of numba's cache with the time of their last change; compiling writes one, or writes it again."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.nb[ic]")}


def test_columns_that_may_be_written_and_others_are_one_type_for_the_kernels() -> None:
    """A payload keeps a column of one value apart, so that any mixture of both comes; each new one would compile for half a second."""
    compile_kernels()
    names = ("kind", "action", "instrument_id", "source_id", "conditions", "ts_event", "price", "size", "flags")
    watched: tuple[Any, ...] = (bar_kernel.assign_keys, bar_kernel.sum_minutes, kernels._mark_late)
    before = [len(function.signatures) for function in watched]
    assert min(before) > 0
    reference = events.reference()
    sequencer = Sequencer(epoch=1, load=lambda _: [], reference=lambda: reference, grace_ns=0)
    for at in range(2 * len(names)):
        ticks = Ticks.zeros(2)
        ticks.kind[:], ticks.instrument_id[:], ticks.source_id[:], ticks.size[:] = TRADE, 1, 1, SECOND
        ticks.ts_event[:] = ticks.ts_publish[:] = events.TS + at
        ticks.price[:] = SECOND
        # One column alone, then all but one.
        for name in names:
            getattr(ticks, name).flags.writeable = (name == names[at % len(names)]) == (at < len(names))
        clock = events.TS + at
        sequencer.fold(CommittedBatch(at + 1, 1, clock, clock, ticks, np.zeros((0, 5), np.int64)))
        assert screen(ticks, reference, ScreenState()).codes.tolist() == [0, 0]
    assert [len(function.signatures) for function in watched] == before


def test_a_column_with_strides_or_off_its_boundary_is_copied() -> None:
    whole = np.arange(20, dtype=np.int64)
    shifted = np.frombuffer(b"x" + whole.tobytes(), np.uint8)[1:].view(np.int64)
    assert not shifted.flags.aligned
    for column, is_view in ((whole, True), (whole[::2], False), (shifted, False)):
        given = bar_kernel.frozen(column)
        assert given.tolist() == column.tolist()
        assert (given.flags.c_contiguous, given.flags.aligned, given.flags.writeable) == (True, True, False)
        assert np.shares_memory(given, column) == is_view
    assert whole.flags.writeable


def has_bars(service: Service) -> bool:
    service.indicator.poll()
    return bool(service.indicator.bars)


def test_first_start_finds_every_kernel_compiled(service: Service, tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    environment = {"NUMBA_CACHE_DIR": str(cache)}
    step = [sys.executable, "-m", "config.kernels"]
    for _ in range(2):
        done = subprocess.run(
            step, cwd=REPOSITORY, env=os.environ | environment, check=True, capture_output=True, text=True
        )
        assert done.stdout.startswith("kernels: ready after")
    before = compiled(cache)
    assert len(before) > 20

    minute = 60 * SECOND
    start = time.time_ns() // minute * minute - 3 * minute
    for runner in (service.consumer, service.sequencer):
        runner.variables = runner.variables | environment
        runner.start()
    forms = [
        (trade(1, ts=start + 1, price="10"), {}),
        (distributed(2, ts=start + 2, price=12, volume=2), {}),
        (normalized(3, "trade", ts=start + 3, price="9", volume=3), {}),
        (quote(4, "8", "9", ts=start + 4), {}),
        (arrow([5, 6], ts=start + minute), {"content-type": CONTENT_TYPE}),
        (trade(7, ts=start + 2 * minute, instrument="BBB.SIMX", price="11"), {}),
    ]
    for data, properties in forms:
        service.producer.send(data, partition_key="AAA.SIMX", properties=properties)
    until(lambda: stored_count() == 6 and service.is_published() and has_bars(service), 90)
    # Late for its bar, which has come out: a revision.
    service.producer.send(trade(8, ts=start + 5, price="13"), partition_key="AAA.SIMX")
    until(lambda: stored_count() == 7 and service.is_published(), 90)
    # A sequencer and a consumer that go on from stored states.
    for runner in (service.consumer, service.sequencer):
        runner.stop()
        runner.start()
    service.send(5, time.time_ns())
    until(lambda: stored_count() == 12 and service.is_published(), 90)
    service.indicator.poll()
    assert max(bar.revision for bar in service.indicator.bars.values()) > 1
    assert compiled(cache) == before
