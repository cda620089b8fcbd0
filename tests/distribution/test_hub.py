"""The pure hub: conflation, shared frames, slow clients, resume, and an account of every update."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from distribution import protocol
from distribution.hub import Client, Hub, LatestChannel, Ring, StreamChannel

SECOND = 10**9


@dataclass
class FakeSink:
    """Takes frames until told to be full; keeps what it took."""

    frames: list[str] = field(default_factory=list)
    is_full: bool = False
    closed: tuple[int, str] | None = None

    def send(self, text: str) -> bool:
        assert self.closed is None, "nothing may follow a close"
        self.frames.append(text)
        return not self.is_full

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def said(self, kind: str | None = None) -> list[dict[str, Any]]:
        frames = [json.loads(text) for text in self.frames]
        return [frame for frame in frames if kind in (None, frame["t"])]


class World:
    """A hub with a latest channel (`quotes`) and a stream channel (`trades`) over ten symbols."""

    def __init__(self, *, row_limit: int = 1000, max_age_s: int | None = None) -> None:
        self.values = dict.fromkeys(range(1, 11), 0)
        self.written = 0
        self.quotes = LatestChannel(self._quote)
        age = None if max_age_s is None else max_age_s * SECOND
        self.trades = StreamChannel(row_limit=row_limit, max_age_ns=age, snapshot_rows=5)
        self.hub = Hub(epoch="e1", channels={"quotes": self.quotes, "trades": self.trades})
        self.now = 1_000 * SECOND
        for subject in self.values:
            self.hub.name(f"S{subject}", subject)

    def _quote(self, subject: int, number: int) -> str:
        self.written += 1
        return json.dumps([subject, number, self.values[subject]])

    def tick(self, subject: int, updates: int = 1) -> None:
        self.values[subject] += updates
        self.quotes.touch(subject, q=self.hub.advance(), updates=updates)

    def trade(self, subject: int, count: int = 1) -> None:
        def render(first: int) -> list[str]:
            return [json.dumps([subject, number]) for number in range(first, first + count)]

        self.trades.append(subject, count=count, q=self.hub.advance(), at=self.now, render=render)

    def join(
        self, channel: str = "quotes", symbols: tuple[str, ...] = ("*",), **options: Any
    ) -> tuple[Client, FakeSink]:
        sink = FakeSink()
        client = self.hub.connect(sink)
        self.follow(client, channel, symbols, **options)
        return client, sink

    def follow(self, client: Client, channel: str, symbols: tuple[str, ...], **options: Any) -> None:
        self.hub.subscribe(client, protocol.Subscribe(id=1, ch=channel, sym=list(symbols), **options), self.now)

    def flush(self) -> None:
        self.now += SECOND // 20
        self.hub.flush(self.now)


def rows(sink: FakeSink, kind: str = "data", channel: str = "quotes") -> list[list[Any]]:
    return [row for frame in sink.said(kind) if frame["ch"] == channel for row in frame["rows"]]


def test_the_newest_value_is_sent_once_per_flush_and_says_how_much_it_folds() -> None:
    world = World()
    client, sink = world.join(snap=False)
    for _ in range(7):
        world.tick(3)
    world.flush()
    world.flush()
    assert rows(sink) == [[3, 7, 7]]
    assert client.ledgers["quotes"].delivered == 1
    assert client.ledgers["quotes"].conflated == 6


def test_a_row_is_encoded_once_and_a_frame_shared_by_all_who_follow_the_same() -> None:
    world = World()
    sinks = [world.join(snap=False)[1] for _ in range(50)]
    other = world.join(symbols=("S1", "S2"), snap=False)[1]
    world.written = 0
    world.tick(1)
    world.tick(5)
    world.flush()
    assert world.written == 2
    last = [sink.frames[-1] for sink in sinks]
    assert all(text is last[0] for text in last), "the same string, not an equal one"
    assert rows(other) == [[1, 1, 1]]


def test_nothing_is_sent_when_nothing_changed() -> None:
    world = World()
    _, sink = world.join()
    before = len(sink.frames)
    for _ in range(5):
        world.flush()
    assert len(sink.frames) == before


def test_hz_divides_the_flush_and_nothing_is_lost_between() -> None:
    world = World()
    _, sink = world.join(snap=False, hz=5)
    for _ in range(8):
        world.tick(1)
        world.flush()
    assert [row[1] for row in rows(sink)] == [4, 8]


def test_a_snapshot_and_the_next_frame_meet_exactly() -> None:
    world = World()
    _, first = world.join("trades")
    world.trade(1, 3)
    _, second = world.join("trades")  # between two flushes: the pending rows are in its snapshot already
    world.trade(1, 2)
    world.flush()
    assert [row[1] for row in rows(first, channel="trades")] == [1, 2, 3, 4, 5]
    assert [row[1] for row in rows(second, "snap", "trades")] == [1, 2, 3]
    assert [row[1] for row in rows(second, channel="trades")] == [4, 5]


def test_a_blocked_client_keeps_ids_only_and_gets_the_newest_values_with_the_count_when_it_wakes() -> None:
    world = World()
    client, slow = world.join(snap=False)
    _, quick = world.join(snap=False)
    slow.is_full = True
    world.tick(1)
    world.flush()  # this frame is taken, then it is full
    taken = len(slow.frames)
    for _ in range(100):
        world.tick(2)
        world.tick(3)
        world.flush()
    assert len(slow.frames) == taken, "nothing may be queued for a full socket"
    assert client.missed == {"quotes": {2: 0, 3: 0}}
    assert len(rows(quick)) == 201
    slow.is_full = False
    world.hub.ready(client, world.now)
    assert slow.said("lag") == [{"t": "lag", "skip": 198, "ms": 5000}]
    assert sorted(rows(slow)) == [[1, 1, 1], [2, 100, 100], [3, 100, 100]]
    ledger = client.ledgers["quotes"]
    assert (ledger.delivered, ledger.conflated, ledger.lost) == (3, 198, 0)


def test_a_stream_is_replayed_whole_to_a_client_that_was_blocked() -> None:
    world = World()
    client, sink = world.join("trades", snap=False)
    sink.is_full = True
    for _ in range(20):
        world.trade(4, 2)
        world.flush()
    sink.is_full = False
    world.hub.ready(client, world.now)
    world.trade(4)
    world.flush()
    assert [row[1] for row in rows(sink, channel="trades")] == list(range(1, 42))


def test_rows_that_arrive_between_flush_and_waking_come_once() -> None:
    world = World()
    client, sink = world.join("trades", snap=False)
    sink.is_full = True
    world.trade(1)
    world.flush()
    world.trade(1)
    world.flush()
    world.trade(1)  # not flushed yet
    sink.is_full = False
    world.hub.ready(client, world.now)
    world.flush()
    world.trade(1)
    world.flush()
    assert [row[1] for row in rows(sink, channel="trades")] == [1, 2, 3, 4]


def test_what_the_ring_no_longer_holds_is_said_and_counted() -> None:
    world = World(row_limit=10)
    client, sink = world.join("trades", snap=False)
    sink.is_full = True
    for _ in range(40):
        world.trade(1)
        world.flush()
    sink.is_full = False
    world.hub.ready(client, world.now)
    assert sink.said("gap") == [{"t": "gap", "ch": "trades", "sym": "S1", "q": [2, 30], "at": "client"}]
    assert [row[1] for row in rows(sink, channel="trades")] == [1, *range(31, 41)]
    assert client.ledgers["trades"].lost == 29


def test_a_client_that_takes_nothing_is_cut_and_the_others_are_not() -> None:
    world = World()
    client, sink = world.join(snap=False)
    _, other = world.join(snap=False)
    sink.is_full = True
    world.tick(1)
    world.flush()
    world.now += protocol.SLOW_S * SECOND
    world.hub.cut_slow(world.now)
    before = sink.closed
    world.now += 1
    world.hub.cut_slow(world.now)
    assert (before, sink.closed) == (None, (protocol.CLOSE_SLOW, f"nothing was taken for {protocol.SLOW_S} s"))
    assert client not in world.hub.clients
    world.tick(1)
    world.flush()
    assert len(rows(other)) == 2


def test_control_frames_of_a_blocked_client_are_bounded() -> None:
    world = World()
    client, sink = world.join(snap=False)
    sink.is_full = True
    for number in range(protocol.CONTROL_FRAMES_WAITING + 1):
        world.hub.control(client, f'{{"t":"x","n":{number}}}', world.now)
    before = sink.closed
    world.hub.control(client, '{"t":"x"}', world.now)
    assert (before is None, sink.closed is None) == (True, False)


def test_control_frames_that_waited_come_in_order_and_before_data() -> None:
    world = World()
    client, sink = world.join(snap=False)
    sink.is_full = True
    world.hub.control(client, '{"t":"a"}', world.now)
    world.hub.control(client, '{"t":"b"}', world.now)
    world.tick(1)
    world.flush()
    sink.is_full = False
    world.hub.ready(client, world.now)
    assert [frame["t"] for frame in sink.said()][-3:] == ["a", "b", "data"]


def test_the_acknowledge_window_holds_data_back_until_it_opens() -> None:
    world = World()
    client, sink = world.join(snap=False)
    world.hub.configure(client, protocol.Configure(id=2, ack=2), world.now)
    for _ in range(5):
        world.tick(1)
        world.flush()
    data = sink.said("data")
    assert [row[1] for row in rows(sink)] == [1, 2]
    world.hub.acknowledge(client, data[-1]["f"], world.now)
    assert [row[1] for row in rows(sink)] == [1, 2, 5]
    assert client.ledgers["quotes"].conflated == 2


def test_a_window_that_never_opens_cuts_the_client() -> None:
    world = World()
    client, sink = world.join(snap=False)
    world.hub.configure(client, protocol.Configure(id=2, ack=1), world.now)
    world.tick(1)
    world.flush()
    world.now += (protocol.SLOW_S + 1) * SECOND
    world.hub.cut_slow(world.now)
    assert sink.closed is not None


def test_resume_sends_what_changed_since_and_says_that_it_is_whole() -> None:
    world = World()
    for subject in (1, 2, 3):
        world.tick(subject)
    seen = world.hub.q
    world.tick(2)
    _, sink = world.join(since=protocol.Since(e="e1", q=seen))
    snap = sink.said("snap")[0]
    assert snap["rec"] is True
    assert snap["rows"] == [[2, 2, 2]]


def test_resume_of_another_epoch_is_a_snapshot_that_says_so() -> None:
    world = World()
    world.tick(1)
    world.trade(1)
    for channel in ("quotes", "trades"):
        _, sink = world.join(channel, since=protocol.Since(e="e0", q=0))
        assert sink.said("snap")[0]["rec"] is False
        assert len(sink.said("snap")[0]["rows"]) == 1


@pytest.mark.parametrize(("since", "recovered"), [(30, True), (20, True), (19, False)])
def test_resume_of_a_stream_is_gapless_or_says_that_it_is_not(since: int, recovered: bool) -> None:
    world = World(row_limit=10)
    for _ in range(30):
        world.trade(1)
    _, sink = world.join("trades", since=protocol.Since(e="e1", q=since))
    snap = sink.said("snap")[0]
    assert snap["rec"] is recovered
    expected = list(range(since + 1, 31)) if recovered else [26, 27, 28, 29, 30]
    assert [row[1] for row in snap["rows"]] == expected


def test_the_ring_forgets_by_age_but_keeps_the_newest_block() -> None:
    world = World(max_age_s=30)
    world.trade(1)
    world.now += 31 * SECOND
    world.trade(1)
    _, sink = world.join("trades", since=protocol.Since(e="e1", q=0))
    assert sink.said("snap")[0]["rec"] is False
    assert [row[1] for row in sink.said("snap")[0]["rows"]] == [2]


def test_an_empty_ring_gives_nothing() -> None:
    assert Ring().after(0) == (1, [])
    assert Ring().newest(5) == []


def test_unknown_symbols_are_rejected_one_by_one() -> None:
    world = World()
    _, sink = world.join(symbols=("S1", "NOPE", "S1"))
    assert sink.said("ok") == [{"t": "ok", "id": 1, "add": [["S1", 1]], "rej": [["NOPE", "unknown"]]}]


def test_subscribing_again_adds_and_unsubscribing_removes() -> None:
    world = World()
    client, sink = world.join(symbols=("S1",), snap=False)
    world.follow(client, "quotes", ("S2",), snap=False)
    world.tick(1)
    world.tick(2)
    world.flush()
    assert sorted(row[0] for row in rows(sink)) == [1, 2]
    world.hub.unsubscribe(client, protocol.Unsubscribe(id=3, ch="quotes", sym=["S1"]), world.now)
    world.tick(1)
    world.tick(2)
    world.flush()
    assert [row[0] for row in rows(sink)][2:] == [2]
    world.hub.unsubscribe(client, protocol.Unsubscribe(id=4, ch="quotes"), world.now)
    world.tick(2)
    world.flush()
    assert len(rows(sink)) == 3
    assert client.groups == {}


def test_a_renamed_instrument_is_followed_by_its_new_name_only() -> None:
    world = World()
    world.hub.name("NEW", 1)
    _, sink = world.join(symbols=("S1", "NEW"))
    assert sink.said("ok")[0]["add"] == [["NEW", 1]]
    assert sink.said("ok")[0]["rej"] == [["S1", "unknown"]]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (protocol.Subscribe(id=1, ch="nope"), "unknown_channel"),
        (protocol.Subscribe(id=1, ch="quotes", mode="all"), "mode"),
        (protocol.Subscribe(id=1, ch="trades", mode="latest"), "mode"),
        (protocol.Subscribe(id=1, ch="quotes", hz=0), "schema"),
        (protocol.Subscribe(id=1, ch="quotes", hz=21), "schema"),
        (protocol.Subscribe(id=1, ch="quotes", sym=[str(n) for n in range(501)]), "limits"),
    ],
)
def test_what_cannot_be_subscribed_is_an_error_with_a_code(request_: protocol.Subscribe, code: str) -> None:
    world = World()
    client = world.hub.connect(FakeSink())
    with pytest.raises(protocol.ProtocolError) as error:
        world.hub.subscribe(client, request_, world.now)
    assert error.value.code == code
    assert client.groups == {}


def test_symbols_are_limited_in_sum_as_well() -> None:
    world = World()
    for subject in range(11, 520):
        world.hub.name(f"S{subject}", subject)
    client, _ = world.join(symbols=tuple(f"S{n}" for n in range(1, 401)), snap=False)
    with pytest.raises(protocol.ProtocolError):
        world.follow(client, "quotes", tuple(f"S{n}" for n in range(401, 502)))


def test_disconnecting_forgets_client_and_group() -> None:
    world = World()
    client, sink = world.join(snap=False)
    world.hub.disconnect(client)
    world.hub.disconnect(client)
    world.tick(1)
    world.flush()
    world.hub.broadcast('{"t":"status"}', world.now)
    assert rows(sink) == []
    assert world.hub._groups == {}


class Storm:
    """Random ticks, flushes, blockings, wakings, windows and newcomers for four clients of each channel."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = World(row_limit=15)
        self.clients = [self.world.join(channel, snap=False) for channel in ("quotes", "trades") for _ in range(4)]
        self.windows = [client for client, _ in self.clients if self.chance.random() < 0.5]
        for client in self.windows:
            self.world.hub.configure(client, protocol.Configure(id=9, ack=3), self.world.now)

    def blow(self) -> None:
        chance, world = self.chance, self.world
        doings: list[Callable[[], object]] = [
            lambda: world.tick(chance.randint(1, 10), chance.randint(1, 4)),
            lambda: world.trade(chance.randint(1, 10), chance.randint(1, 4)),
            world.flush,
            self._turn,
            self._acknowledge,
            lambda: world.join(chance.choice(["quotes", "trades"]), symbols=("S1", "S2")),
        ]
        chance.choice(doings)()

    def _turn(self) -> None:
        client, sink = self.chance.choice(self.clients)
        sink.is_full = not sink.is_full
        if not sink.is_full and client.is_busy:
            self.world.hub.ready(client, self.world.now)

    def _acknowledge(self) -> None:
        if self.windows:
            self.world.hub.acknowledge(self.chance.choice(self.windows), self.world.hub.frames, self.world.now)

    def calm(self) -> None:
        """Let everybody take everything that is left."""
        for _ in range(2):
            for client, sink in self.clients:
                sink.is_full = False
                self.world.hub.acknowledge(client, self.world.hub.frames, self.world.now)
                if client.is_busy:
                    self.world.hub.ready(client, self.world.now)
            self.world.flush()
        for client, _ in self.clients:
            self.world.hub.acknowledge(client, self.world.hub.frames, self.world.now)


def assert_numbers_rise(found: list[list[Any]]) -> None:
    numbers: dict[int, int] = {}
    for subject, number, *_ in found:
        assert number > numbers.get(subject, 0), "nothing comes twice or backwards"
        numbers[subject] = number


@pytest.mark.parametrize("seed", range(12))
def test_every_update_is_delivered_conflated_or_lost_exactly_once(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(600):
        storm.blow()
    storm.calm()
    world = storm.world
    for client, sink in storm.clients:
        (channel,) = client.ledgers
        ledger, found = client.ledgers[channel], rows(sink, channel=channel)
        published = sum(world.hub.channels[channel].number(subject) for subject in world.values)
        assert ledger.delivered + ledger.conflated + ledger.lost == published
        assert ledger.delivered == len(found)
        assert_numbers_rise(found)
        assert ledger.lost == sum(frame["q"][1] - frame["q"][0] + 1 for frame in sink.said("gap"))
        if channel == "quotes":
            assert ledger.lost == 0
            newest = {row[0]: row[2] for row in found}
            assert newest == {subject: value for subject, value in world.values.items() if value}
        else:
            assert ledger.conflated == 0


def test_a_snapshot_may_begin_inside_a_block() -> None:
    world = World()
    world.trade(1, 3)
    world.trade(1, 4)
    _, sink = world.join("trades")
    assert [row[1] for row in rows(sink, "snap", "trades")] == [3, 4, 5, 6, 7]


def test_acknowledging_exactly_the_last_frame_opens_a_window_of_one() -> None:
    world = World()
    client, sink = world.join(snap=False)
    world.hub.configure(client, protocol.Configure(id=2, ack=1), world.now)
    for _ in range(3):
        world.tick(1)
        world.flush()
        world.hub.acknowledge(client, sink.said("data")[-1]["f"] - 1, world.now)
    assert [row[1] for row in rows(sink)] == [1]
    world.hub.acknowledge(client, sink.said("data")[-1]["f"], world.now)
    assert [row[1] for row in rows(sink)] == [1, 3]
