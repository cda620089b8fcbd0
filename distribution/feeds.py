"""Feeds the board of this event loop: supervised Pulsar readers in threads, stored state and counters from PostgreSQL, the flush.

One `Desk` per event loop. What a thread learns reaches the loop by `call_soon_threadsafe`, bounded by a semaphore, so that a busy
loop slows the reader down and the broker keeps the backlog.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Final

import pulsar
from django.conf import settings
from django.db import DatabaseError, connections

from distribution import metrics, protocol, selectors
from distribution.board import Board, ClosedBar, reduce_ticks
from integration.market.errors import SkippableError
from integration.market.events import BarEvent, decode_bar, decode_numbered_ticks
from integration.market.units import text_from_nanos
from integration.sources import pulsar_client

logger = logging.getLogger(__name__)

# Messages on their way from the readers to the loop; more, and the readers wait.
IN_FLIGHT_LIMIT: Final = 256
READ_TIMEOUT_MS: Final = 200  # how long a stop, or a lost broker, may go unnoticed
RELOAD_AT_MOST_EVERY_S: Final = 2.0
BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0)
REFERENCE_EVERY_S: Final = 30
SESSIONS_EVERY_S: Final = 10


class TopicReader(threading.Thread):
    """Reads one topic from its end, for ever; says `live` or `reconnecting`, and never dies of an error."""

    component = "feed"

    def __init__(self, desk: "Desk", topic: str) -> None:
        super().__init__(name=f"reader-{topic.rsplit('/', 1)[-1]}", daemon=True)
        self.desk = desk
        self.topic = topic
        self.stopping = threading.Event()
        self._room = threading.BoundedSemaphore(IN_FLIGHT_LIMIT)
        self._said: tuple[str, str] | None = None

    def run(self) -> None:
        """Read until stopped; every failure is said, waited out and tried again."""
        failures = 0
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 - whatever broke, the desk says so and the reader tries again
                if time.monotonic() - began > 30:
                    failures = 0
                reason = _reason(error)
                logger.warning("live feed %s: %s", self.topic, reason)
                self.say("reconnecting", reason)
                self.stopping.wait(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
                failures += 1

    def _read(self) -> None:
        client = pulsar_client(
            settings.PULSAR_URL,
            settings.PULSAR_TOKEN,
            ca_file=settings.MDI.pulsar_ca_file,
            connection_timeout_ms=3000,
            logger=logging.getLogger("pulsar"),
        )
        try:
            reader = client.create_reader(
                self.topic, pulsar.MessageId.latest, receiver_queue_size=500, reader_name="mdi-desk"
            )
            self.begin()
            self.say("live", "")
            while not self.stopping.is_set():
                self._take(reader)
        finally:
            client.close()

    def _take(self, reader: Any) -> None:
        try:
            message = reader.read_next(timeout_millis=READ_TIMEOUT_MS)
        except pulsar.Timeout:
            # The client reconnects by itself and goes on after the last message; the page must know meanwhile.
            is_there = reader.is_connected()
            self.say("live" if is_there else "reconnecting", "" if is_there else "the broker is away")
        else:
            self.say("live", "")
            try:
                self.receive(message.data())
            except SkippableError as error:
                logger.warning("live feed %s: a message is not what the contract says: %s", self.topic, error)
        self.between()

    def begin(self) -> None:
        """Do what must happen after the subscription exists and before the first message."""

    def receive(self, data: bytes) -> None:
        """Handle one message."""
        raise NotImplementedError

    def between(self) -> None:
        """Do what must happen between messages."""

    def say(self, state: str, reason: str) -> None:
        """Tell the desk this feed's state, where it is another than said before."""
        if self._said != (state, reason):
            self._said = (state, reason)
            self.desk.call(self.desk.set_component, self.name, state, reason)

    def hand(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` in the loop, in order; waits while too much is under way there."""
        while not self._room.acquire(timeout=0.5):
            if self.stopping.is_set():
                return

        def run() -> None:
            self._room.release()
            function(*arguments)

        self.desk.call(run)


class TickReader(TopicReader):
    """`integrated/ticks` → board. Loads the stored state first, and again when numbers are missing."""

    def __init__(self, desk: "Desk", topic: str) -> None:
        super().__init__(desk, topic)
        self.reload = threading.Event()
        self._covered = (0, 0)  # (epoch, pub_seq) of the loaded state
        self._loaded_at = 0.0

    def begin(self) -> None:
        # The subscription exists already, so what is published from now on is either in the snapshot or received.
        self._load()

    def between(self) -> None:
        if self.reload.is_set() and time.monotonic() - self._loaded_at > RELOAD_AT_MOST_EVERY_S:
            metrics.FEED_RELOADS.inc()
            self._load()

    def _load(self) -> None:
        self.reload.clear()
        try:
            snapshot = selectors.board_snapshot(time.time_ns())
        finally:
            connections.close_all()
        self._covered = (snapshot.epoch, snapshot.pub_seq)
        self._loaded_at = time.monotonic()
        self.hand(self.desk.board.load, snapshot)

    def receive(self, data: bytes) -> None:
        numbered = decode_numbered_ticks(data)
        changes = reduce_ticks(numbered.columns)
        is_stored = (numbered.epoch, numbered.pub_seq) <= self._covered
        self.hand(self._fold, changes, is_stored)

    def _fold(self, changes: list[Any], is_stored: bool) -> None:
        board = self.desk.board
        fold = board.skip if is_stored else board.apply
        if not fold(changes, at=time.time_ns()):
            self.reload.set()


class BarReader(TopicReader):
    """`integrated/bars` → board."""

    def receive(self, data: bytes) -> None:
        bar = decode_bar(data)
        if bar.source_id == 0:  # consolidated over all sources, as the page shows it
            self.hand(self.desk.board.apply_bar, closed_bar(bar))


def closed_bar(bar: BarEvent) -> ClosedBar:
    """Give what the page shows of a bar event."""
    return ClosedBar(
        instrument_id=bar.instrument_id,
        timeframe=bar.timeframe,
        start=bar.start,
        open=text_from_nanos(bar.open),
        high=text_from_nanos(bar.high),
        low=text_from_nanos(bar.low),
        close=text_from_nanos(bar.close),
        volume=text_from_nanos(bar.volume),
        trades=bar.trade_count,
        revision=bar.revision,
        reason=bar.reason,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, DatabaseError):
        return "PostgreSQL does not answer"
    if isinstance(error, pulsar.Timeout | pulsar.ConnectError):
        return "broker unreachable or token refused"
    return f"{type(error).__name__}: {error}"[:200]


class Desk:
    """The live desk of one event loop: its board and hub, its readers, its clocks, and who is connected."""

    _of_loop: ClassVar["dict[asyncio.AbstractEventLoop, Desk]"] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.board = Board(epoch=secrets.token_hex(8))
        self.hub = self.board.hub
        self.components: dict[str, tuple[str, str]] = {}
        self.state = ("starting", "reading the stored state", time.time_ns())
        self.per_user: Counter[int] = Counter()
        # connection → (user id, session key); looked at again every few seconds
        self.identities: dict[Any, tuple[int, str]] = {}
        self._readers: list[TopicReader] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._watch = selectors.ServiceWatch()
        self._venues: dict[str, str] = {}
        self._words: dict[int, str] = {}
        self._counted = (0, 0, 0, 0)

    @classmethod
    def current(cls) -> "Desk":
        """Give the desk of the running loop, started by its first user."""
        loop = asyncio.get_running_loop()
        desk = cls._of_loop.get(loop)
        if desk is None:
            desk = cls._of_loop[loop] = cls(loop)
            desk.start()
        return desk

    @classmethod
    def running(cls) -> "Desk | None":
        """Give a desk whose loop runs in this process, for views that run in other threads."""
        return next((desk for loop, desk in list(cls._of_loop.items()) if loop.is_running()), None)

    def start(self) -> None:
        """Start the readers and the clocks."""
        topics = settings.INTEGRATED_TOPICS
        self._readers = [TickReader(self, topics["ticks"]), BarReader(self, topics["bars"])]
        for reader in self._readers:
            self.components[reader.name] = ("starting", "connecting to the broker")
            reader.start()
        self._tasks = [self.loop.create_task(self._flush()), self.loop.create_task(self._every_second())]

    async def stop(self) -> None:
        """Stop readers and clocks; returns when the threads have ended."""
        for reader in self._readers:
            reader.stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self._readers:
            await asyncio.to_thread(reader.join, 10)
        self._of_loop.pop(self.loop, None)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function in the loop, from any thread; nothing happens once the loop is gone."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("the event loop has ended")

    def set_component(self, name: str, state: str, reason: str) -> None:
        """Note a component's state; a change of the whole is told to everybody."""
        if self.components.get(name) == (state, reason):
            return
        self.components[name] = (state, reason)
        order = ("reconnecting", "degraded", "starting", "live")
        whole = min(self.components.values(), key=lambda entry: order.index(entry[0]))
        if whole != self.state[:2]:
            self.state = (*whole, time.time_ns())
            self.hub.broadcast(self.status_text(), time.time_ns())

    def status_text(self) -> str:
        """Write the `status` frame of the feed itself."""
        state, reason, since = self.state
        return protocol.status(symbol="*", state=state, reason=reason, ts=since)

    async def _flush(self) -> None:
        """Flush every 50 ms; a late one is not made up for."""
        due = self.loop.time()
        while True:
            due = max(due + protocol.FLUSH_S, self.loop.time())
            await asyncio.sleep(due - self.loop.time())
            now = time.time_ns()
            try:
                self.hub.flush(now, self.board.take_delay_ms(now))
            except Exception:  # one wrong row may not end the clock for everybody
                logger.exception("flush failed")

    async def _every_second(self) -> None:
        seconds = 0
        while True:
            now = time.time_ns()
            self.hub.cut_slow(now)
            if seconds % protocol.HEARTBEAT_S == 0:
                self.hub.heartbeat(now)
            await self._look(seconds)
            self.board.judge(time.time_ns(), self._venues, self._words)
            self._count()
            seconds += 1
            await asyncio.sleep(max(0.1, 1 - (time.time_ns() - now) / 1e9))

    async def _look(self, seconds: int) -> None:
        """Read counters, events and reference states from PostgreSQL, in a thread."""
        try:
            seen = await asyncio.to_thread(self._read_service, seconds)
        except Exception as error:  # noqa: BLE001 - a query that fails may not end the clock
            logger.warning("live desk: %s", _reason(error))
            self.set_component("database", "degraded", _reason(error))
            return
        self.set_component("database", "live", "")
        if seen.sample is not None:
            self.board.add_sample(seen.sample)
        for event in seen.events:
            self.board.add_event(event)
        if seen.venues is not None:
            self._venues = {venue.mic: venue.state for venue in seen.venues}
        self._words = seen.words
        self.board.ignored = seen.ignored
        self._drop_sessions(seen.ended_sessions)

    def _read_service(self, seconds: int) -> selectors.Seen:
        identities = set(self.identities.values()) if seconds % SESSIONS_EVERY_S == 0 else set()
        try:
            return self._watch.look(time.time_ns(), identities=identities, with_venues=seconds % REFERENCE_EVERY_S == 0)
        finally:
            connections.close_all()

    def _drop_sessions(self, ended: set[tuple[int, str]]) -> None:
        for connection, identity in list(self.identities.items()):
            if identity in ended:
                connection.close(protocol.CLOSE_AUTH, "signed out")

    def _count(self) -> None:
        hub, board = self.hub, self.board
        now = (hub.frames, board.ticks, board.holes, hub.slow_closed)
        counters = (metrics.FRAMES, metrics.FEED_TICKS, metrics.FEED_HOLES, metrics.SLOW_CLIENTS)
        for counter, new, old in zip(counters, now, self._counted, strict=True):
            if new > old:
                counter.inc(new - old)
        self._counted = now
        metrics.CLIENTS.set(len(hub.clients))
