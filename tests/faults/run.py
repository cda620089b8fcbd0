"""Runs a command as in production, but ends it at a named point of its loop, or with a mistake built in.

    python -m tests.faults.run consume_ticks --crash-at mid_copy:3 [--mutant acknowledge_before_commit]

The loops' only hook is their `reached` slot; everything else is done here, from outside.
"""

import argparse
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

POINTS = {
    "consume_ticks": (
        "after_receive", "before_copy", "mid_copy", "before_commit", "reading_ahead", "after_commit", "before_acknowledge", "after_acknowledge",
    ),
    "sequence_ticks": ("before_numbering", "before_sequencer_commit", "after_sequencer_commit", "mid_publish", "after_publish"),
}  # fmt: skip


STARTED = "STARTED_FILE"


class Trigger:
    """Counts how often a point is reached, over all threads, and acts at the n-th time."""

    def __init__(self, spec: str, act: Callable[[], None]) -> None:
        self.point, _, times = spec.partition(":")
        self.left, self.act, self.lock = int(times or 1), act, threading.Lock()

    def __call__(self, point: str) -> None:
        if point == self.point:
            with self.lock:
                self.left -= 1
                is_due = self.left == 0
            if is_due:
                self.act()


def say_started() -> None:
    """Make the file that tells the starter that the loop runs."""
    if STARTED in os.environ:
        Path(f"{os.environ[STARTED]}.{os.getpid()}").touch()


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    """Stand still, as a paused machine does, until somebody says SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    """Raise what a database that goes away raises."""
    from django.db import OperationalError

    raise OperationalError("injected: the database is away")


def arm(trigger: Trigger) -> None:
    """Put the trigger into the `reached` slot of every loop that is made from now on."""
    from distribution.publishers import PulsarPublisher
    from integration.consumer import PartitionWorker
    from integration.read_ahead import ReadAhead
    from integration.sequencing import SequencerLoop

    for loop in (PartitionWorker, SequencerLoop):
        _wrap_init(loop, trigger)
    # Points inside what the loops call: COMMIT is sent and its answer not read, rows are stored and not acknowledged, a round is half sent.
    _announce(ReadAhead, "read_more", "reading_ahead", trigger)
    _announce(ReadAhead, "acknowledge", "before_acknowledge", trigger)
    _announce(PulsarPublisher, "_producer", "mid_publish", trigger)


def _announce(owner: Any, name: str, point: str, trigger: Trigger) -> None:
    act = getattr(owner, name)

    def announced(self: Any, *args: Any, **options: Any) -> Any:
        trigger(point)
        return act(self, *args, **options)

    setattr(owner, name, announced)


def _wrap_init(loop: Any, trigger: Trigger) -> None:
    made = loop.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.reached = trigger
        say_started()

    loop.__init__ = init


def acknowledge_before_commit() -> None:
    """Build in: messages are acknowledged before they are stored."""
    from integration.consumer import PartitionWorker

    consume = PartitionWorker._consume

    def mutant(self: PartitionWorker, chunks: Any) -> None:
        self.reader.acknowledge(chunks)
        time.sleep(0.3)  # the client sends acknowledgements together, every 100 ms
        consume(self, chunks)

    PartitionWorker._consume = mutant  # type: ignore[method-assign]


def adopt_before_commit() -> None:
    """Build in: identities are remembered before the commit, and kept when it fails."""
    from integration import consumer, pipeline, storage

    record = storage.record

    def mutant(outcome: Any, facts: Any, *rest: Any, **options: Any) -> Any:
        (worker,) = [one for one in made if one.owned is not None and one.owned.lease is facts.lease]
        assert worker.owned is not None
        adopt(worker.owned.state, outcome)
        return record(outcome, facts, *rest, **options)

    made: list[consumer.PartitionWorker] = []
    adopt = pipeline.adopt
    first = consumer.PartitionWorker.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        first(self, *args, **options)
        made.append(self)

    consumer.PartitionWorker.__init__ = init  # type: ignore[method-assign]
    consumer.PartitionWorker._forget = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
    storage.record = mutant


def number_without_marking() -> None:
    """Build in: a restarted sequencer begins its numbers without folding the batches since the checkpoint."""
    from integration import outbox

    outbox.numbered_batches = lambda after: ()  # noqa: ARG005


MUTANTS: dict[str, Callable[[], None]] = {
    "acknowledge_before_commit": acknowledge_before_commit,
    "adopt_before_commit": adopt_before_commit,
    "number_without_marking": number_without_marking,
}


def main() -> None:
    """Set the trap, then run the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=POINTS)
    parser.add_argument("--crash-at", default="")
    parser.add_argument("--fail-at", default="")
    parser.add_argument("--freeze-at", default="")
    parser.add_argument("--mutant", choices=MUTANTS)
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    # kill -USR1 shows where a process that does not go on stands.
    faulthandler.register(signal.SIGUSR1)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    if options.mutant:
        MUTANTS[options.mutant]()
    act = die if options.crash_at else freeze if options.freeze_at else fail
    arm(Trigger(options.crash_at or options.freeze_at or options.fail_at, act))
    from django.core.management import execute_from_command_line

    execute_from_command_line([sys.argv[0], options.command, *(["--name", options.name] if options.name else [])])


if __name__ == "__main__":
    main()
