"""Compile the numeric kernels before they are needed: numba keeps them beside their modules, so that a first start only loads them.

    python -m config.kernels        compile what the cache does not hold yet (make setup does)

It is only ever a help: without it, or after a change to a kernel's module, whoever needs a kernel first compiles it.
"""

import sys
import time

import numpy as np

from integration.market.events import warm_up
from integration.market.reference import FOREVER, AliasSpan, InstrumentFacts, Reference, SourceFacts
from integration.market.sessions import DAY, SessionTable
from integration.market.ticks import TRADE, Ticks
from integration.sequencer import CommittedBatch, Sequencer
from quality.screening import ScreenState, screen

# Any day far from the ends of time.
_TS = 20_000 * DAY


def compile_kernels() -> None:
    """Run each kernel once, with columns of the types that the consumer and the sequencer give it."""
    warm_up()
    reference = Reference(
        1,
        {"A.SIMX": (AliasSpan(0, FOREVER, 1),)},
        {"a": SourceFacts(1, frozenset())},
        {1: InstrumentFacts(1, "SIMX", frozenset({"USD"}), "A.SIMX")},
        {"SIMX": SessionTable.of_always_open()},
    )
    sequencer = Sequencer(epoch=1, load=lambda _: [], reference=lambda: reference, grace_ns=0)
    sequencer.restore(sequencer.snapshot())  # as after every start
    # The second batch, a day later, lets the bars of the first one out.
    for number in (1, 2):
        ticks = _one_trade(_TS + number * DAY)
        screen(ticks, reference, ScreenState())
        clock = int(ticks.ts_event[0]) + DAY // 2
        sequencer.fold(CommittedBatch(number, 1, clock, clock, ticks, np.zeros((0, 5), np.int64)))


def _one_trade(ts_event: int) -> Ticks:
    ticks = Ticks.zeros(1)
    ticks.kind[:], ticks.instrument_id[:], ticks.source_id[:] = TRADE, 1, 1
    ticks.price[:], ticks.size[:] = 1, 1
    ticks.ts_event[:], ticks.ts_publish[:] = ts_event, ts_event
    return ticks


def main() -> int:
    """Compile for make setup; say how long it took."""
    begun = time.monotonic()
    compile_kernels()
    print(f"kernels: ready after {time.monotonic() - begun:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
