"""One kill test: two consumers and two sequencers under a stream of events, killed again and again, then the account."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pulsar
from django.conf import settings

from integration.market import events
from integration.market.ticks import TRADE, Ticks
from integration.models import Batch, OutgoingMessage, Position, SequencerState
from integration.sequencer import CommittedBatch, Sequencer
from tests.e2e.events import TS, reference
from tests.e2e.world import World
from tests.faults.account import (
    Account,
    compare_balance,
    compare_bars,
    compare_books,
    compare_published_bars,
    compare_published_ticks,
    compare_stored,
    stored_count,
)
from tests.faults.processes import Runner, environment
from tests.faults.stream import Stream
from tests.stack import tell

COMMANDS = ("consume_ticks", "consume_ticks", "sequence_ticks", "sequence_ticks")


def progress() -> tuple[int, int]:
    """Give how many batches are stored, and how many of them numbered."""
    return sum(Position.objects.values_list("number", flat=True)), SequencerState.objects.get().pub_seq


def warm_up() -> None:
    """Compile the kernels into their cache: a process that is killed while it compiles would begin anew for ever."""
    events.warm_up()
    ticks = Ticks.zeros(1)
    ticks.kind[:], ticks.instrument_id[:], ticks.price[:], ticks.size[:] = TRADE, 1, 1, 1
    fold = Sequencer(epoch=1, load=lambda _: [], reference=reference, grace_ns=0)
    fold.fold(CommittedBatch(1, 1, TS, TS, ticks, np.zeros((0, 5), np.int64)))


@dataclass
class Trial:
    """A trial on the database and broker of the settings; topics are named by their namespaces."""

    world: World
    client: pulsar.Client
    normalized: str
    integrated: str
    log: Path
    seed: int = 1
    say: Callable[[str], None] = tell

    def __post_init__(self) -> None:
        warm_up()
        self.random = random.Random(self.seed)
        self.stream = Stream(self.seed)
        self.tenant = settings.MDI.pulsar_tenant
        self.producer = self.client.create_producer(
            self.topic(self.normalized, "equities"),
            block_if_queue_full=True,
            batching_type=pulsar.BatchingType.KeyBased,
        )
        variables = environment(self.normalized, self.integrated)
        self.runners = [Runner(command, variables, self.log) for command in COMMANDS]

    def topic(self, namespace: str, name: str) -> str:
        """Give the full name of a topic."""
        return f"persistent://{self.tenant}/{namespace}/{name}"

    def run(self, kills: int, events: int) -> tuple[int, Account]:
        """Kill processes `kills` times while `events` flow, then let them finish; give the kills and the account."""
        for runner in self.runners:
            runner.start()
        done = 0
        try:
            while done < kills:
                self.send(events // kills)
                self.one_kill()
                done += 1
                self.say(f"kill {done} of {kills}, {len(self.stream.sent)} events sent, {stored_count()} stored")
            self.send(events - len(self.stream.sent))
            self.restart_without_traps()
            self.drain(60 + events / 2_000)
        finally:
            for runner in self.runners:
                runner.stop()
        return done, self.account()

    def send(self, events: int) -> None:
        """Publish new events and wait until the broker has them."""
        for key, data, properties in self.stream.messages(events):
            self.producer.send_async(data, lambda *_: None, partition_key=key, properties=properties)
        self.producer.flush()

    def one_kill(self) -> None:
        """Wait for a process to die in its trap, or kill one after a while."""
        begun, before, patience = time.monotonic(), progress(), self.random.uniform(0.2, 3.0)
        while True:
            for runner in self.runners:
                if runner.has_died():
                    runner.start_with_trap(self.random)
                    return
            # Mostly once something was done since the last kill: else a slow machine never gets past its starts.
            waited = time.monotonic() - begun
            if waited > patience and (waited > 30 or progress() != before):
                # One that has had time to begin its work, so that a slow machine is not killed at its start for ever.
                working = [runner for runner in self.runners if runner.is_working]
                if working:
                    self.random.choice(working).kill()
            time.sleep(0.05)

    def restart_without_traps(self) -> None:
        """Kill everything, so that no trap is left, and start again."""
        for runner in self.runners:
            runner.kill()
            runner.has_died()
            runner.start()

    def drain(self, seconds: float) -> None:
        """Wait until all that was sent is stored, numbered and published, or `seconds` have passed without progress."""
        end, before = time.monotonic() + seconds, (-1, -1)
        while time.monotonic() < end:
            waiting = Batch.objects.filter(pub_seq=None).count() + OutgoingMessage.objects.filter(sent_at=None).count()
            for runner in self.runners:
                if runner.has_died():
                    runner.start()
            now = (stored_count(), waiting)
            if now[0] >= len(self.stream.sent) and not waiting:
                break
            end, before = (time.monotonic() + seconds if now != before else end), now
            time.sleep(0.2)
        time.sleep(1.0)  # for what would be stored twice

    def account(self) -> Account:
        """Compare everything."""
        account = Account()
        # A FatalError ends a process by design; whoever watches over it starts it again, as here.
        account.ended = sum(code not in (0, -9) for runner in self.runners for code in runner.exits)
        compare_stored(account, self.stream.sent, self.world.instruments)
        compare_balance(account, self.stream.sent)
        compare_books(account)
        compare_published_ticks(account, self.client, self.topic(self.integrated, "ticks"))
        compare_published_bars(account, self.client, self.topic(self.integrated, "bars"))
        compare_bars(account)
        return account
