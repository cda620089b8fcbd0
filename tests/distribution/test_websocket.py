"""The live protocol over a real server, a real broker and a real database, and the checks at its door."""

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest
import websockets
from channels.db import database_sync_to_async
from django.contrib.sessions.models import Session

from distribution import protocol
from distribution.feeds import Desk
from integration.market.ticks import TRADE, Ticks
from integration.market.units import NANOS
from tests.distribution.conftest import Site, until


class Connection:
    """A client of the protocol: keeps every frame, waits for those it is asked for."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def frame(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Give the next frame of this kind with these facts."""
        async with asyncio.timeout(20):
            while True:
                found: dict[str, Any] = json.loads(await self.socket.recv())
                self.frames.append(found)
                if found["t"] == kind and all(found.get(name) == value for name, value in facts.items()):
                    return found

    async def follow(self, channel: str, *symbols: str, **options: Any) -> dict[str, Any]:
        await self.say(op="sub", id=1, ch=channel, sym=list(symbols), **options)
        return await self.frame("ok")

    async def rows(self, channel: str, count: int) -> list[list[Any]]:
        """Give the data rows of a channel as they come, at least `count`."""
        found: list[list[Any]] = []
        while len(found) < count:
            found += (await self.frame("data", ch=channel))["rows"]
        return found

    def newest(self, channel: str) -> list[Any]:
        """Give the last data row that came on a channel."""
        frames = [frame for frame in self.frames if frame["t"] == "data" and frame["ch"] == channel]
        rows: list[list[Any]] = frames[-1]["rows"]
        return rows[-1]


def connect(site: Site, cookie: str, **options: Any) -> Any:
    headers = {"Cookie": cookie, **options.pop("headers", {})}
    options.setdefault("subprotocols", [websockets.Subprotocol(protocol.SUBPROTOCOL)])
    return websockets.connect(site.socket, additional_headers=headers, **options)


def test_ticks_reach_a_websocket_exactly(site: Site) -> None:
    async def play(cookie: str) -> None:
        apple = site.market.ids["AAPL.SIMX"]
        async with connect(site, cookie) as socket:
            assert socket.subprotocol == protocol.SUBPROTOCOL
            mine = Connection(socket)
            welcome = await mine.frame("welcome")
            assert (welcome["v"], welcome["hb"], welcome["flush"]) == (1, protocol.HEARTBEAT_S, 50)
            assert (await mine.frame("status"))["state"] == "live"
            answer = await mine.follow("quotes", "*")
            assert {symbol for symbol, _ in answer["add"]} == {"AAPL.SIMX", "MSFT.SIMX", "EURUSD.SIMX"}, (
                "the canary is not shown"
            )
            await mine.frame("snap", ch="quotes")
            await mine.follow("trades", "AAPL.SIMX")
            site.publisher.quote(apple, 187_140_000_000, 187_160_000_000)
            for cents in range(100):
                site.publisher.trade(apple, 187_000_000_001 + cents * 10_000_000, size=100 * NANOS)
            trades = await mine.rows("trades", 100)
            assert [row[1] for row in trades] == list(range(1, 101)), "every trade, once, in order"
            assert trades[0][3:5] == ["187.000000001", "100"]
            row = mine.newest("quotes")
            while row[3] != "187.990000001":
                await mine.frame("data", ch="quotes")
                row = mine.newest("quotes")
            known = dict(zip(protocol.COLUMNS["quotes"], row, strict=True))
            assert (known["bid"], known["ask"], known["volume"]) == ("187.14", "187.16", "10000")
            assert (known["reference"], known["reference_kind"]) == ("187.000000001", "open")

    asyncio.run(play(site.cookie()))


def test_a_gap_is_said_and_a_repeat_counts_nothing(site: Site) -> None:
    async def play(cookie: str) -> None:
        apple = site.market.ids["AAPL.SIMX"]
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            await mine.follow("quotes", "AAPL.SIMX")
            site.publisher.trade(apple, NANOS)
            await mine.rows("quotes", 1)
            site.publisher.ticks({"instrument_id": apple, "price": 2 * NANOS}, skip=3)
            gap = await mine.frame("gap")
            assert (gap["sym"], gap["q"], gap["at"]) == ("AAPL.SIMX", [2, 4], "feed")

    asyncio.run(play(site.cookie()))
    desk = Desk.running()
    assert desk is not None
    assert desk.board.holes == 3


def test_a_closed_bar_and_its_revision_arrive(site: Site) -> None:
    async def play(cookie: str) -> None:
        apple = site.market.ids["AAPL.SIMX"]
        start = time.time_ns() // (60 * NANOS) * 60 * NANOS
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            await mine.follow("bars.1m", "AAPL.SIMX", snap=False)
            site.publisher.bar(apple, "AAPL.SIMX", start, source_id=7, source="simulated")
            site.publisher.bar(apple, "AAPL.SIMX", start)
            site.publisher.bar(apple, "AAPL.SIMX", start, revision=2, reason="late_trade", close=NANOS)
            rows = await mine.rows("bars.1m", 2)
            assert [(row[2], row[6], row[9], row[10]) for row in rows] == [
                (start, "2", 1, "first"),
                (start, "1", 2, "late_trade"),
            ]

    asyncio.run(play(site.cookie()))


def test_a_reconnection_resumes_without_a_hole(site: Site) -> None:
    async def play(cookie: str) -> None:
        apple = site.market.ids["AAPL.SIMX"]
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            epoch = (await mine.frame("welcome"))["e"]
            await mine.follow("trades", "AAPL.SIMX")
            site.publisher.trade(apple, NANOS)
            await mine.rows("trades", 1)
            seen = mine.frames[-1]["q"]
        for _ in range(5):
            site.publisher.trade(apple, NANOS)
        desk = Desk.running()
        assert desk is not None
        until(lambda: desk.board.trades.number(apple) == 6)
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            await mine.follow("trades", "AAPL.SIMX", since={"e": epoch, "q": seen})
            snap = await mine.frame("snap")
            assert snap["rec"] is True
            assert [row[1] for row in snap["rows"]] == [2, 3, 4, 5, 6]
            await mine.follow("quotes", "AAPL.SIMX", since={"e": "another", "q": seen})
            assert (await mine.frame("snap", ch="quotes"))["rec"] is False

    asyncio.run(play(site.cookie()))


def test_a_client_that_reads_nothing_is_cut_and_others_keep_their_pace(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SLOW_S", 1)

    async def play(cookie: str) -> None:
        apple = site.market.ids["AAPL.SIMX"]
        async with connect(site, cookie) as quick_socket, connect(site, cookie, max_queue=1) as slow_socket:
            slow, quick = Connection(slow_socket), Connection(quick_socket)
            await slow.say(op="set", id=1, ack=3)
            await slow.follow("quotes", "*")
            await quick.follow("trades", "AAPL.SIMX")
            for _ in range(300):
                site.publisher.trade(apple, NANOS)
                await asyncio.sleep(0.01)
            assert [row[1] for row in await quick.rows("trades", 300)] == list(range(1, 301))
            bye = await slow.frame("bye")
            assert bye["code"] == protocol.CLOSE_SLOW
            with pytest.raises(websockets.ConnectionClosed):
                await slow_socket.recv()
            assert slow_socket.close_code == protocol.CLOSE_SLOW
            assert len([frame for frame in slow.frames if frame["t"] == "data"]) == 3, "no more than its window"

    asyncio.run(play(site.cookie()))


def test_a_full_socket_costs_no_memory_and_gets_the_newest_when_it_drains(site: Site) -> None:
    """A client that stops reading: the kernel's and the server's buffers fill, and the send that blocks becomes a task."""

    async def play(cookie: str) -> None:
        ids = list(site.market.ids.values())[:3]
        async with connect(site, cookie, max_queue=1, compression=None) as socket:
            mine = Connection(socket)
            await mine.follow("trades", "*")
            desk = Desk.running()
            assert desk is not None
            (client,) = desk.hub.clients
            sent = 0
            while not client.is_busy:
                ticks = Ticks.zeros(3000)
                now = time.time_ns()
                ticks.kind[:], ticks.instrument_id[:] = TRADE, np.resize(ids, 3000)
                ticks.price[:], ticks.size[:], ticks.ts_event[:], ticks.ts_publish[:] = NANOS, NANOS, now, now
                ticks.session_date[:] = now // (86_400 * NANOS)
                site.publisher.send(ticks)
                sent += 1000
                await asyncio.sleep(0.05)
                assert sent < 300_000, "the socket never filled"
            numbers = dict.fromkeys(ids, 0)
            skipped = 0
            while any(number < sent for number in numbers.values()):
                await mine.frame("data")
                for frame in mine.frames:
                    if frame["t"] == "gap" and frame["at"] == "client":
                        skipped += frame["q"][1] - frame["q"][0] + 1
                    for subject, number, *_ in frame.get("rows", []) if frame["t"] == "data" else []:
                        numbers[subject] = number
                mine.frames.clear()
            assert all(number == sent for number in numbers.values())
            ledger = client.ledgers["trades"]
            assert ledger.delivered + ledger.lost == 3 * sent
            assert ledger.lost == skipped

    asyncio.run(play(site.cookie()))


def test_signing_out_closes_the_socket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distribution.feeds.SESSIONS_EVERY_S", 1)
    cookie = site.cookie()

    async def play() -> None:
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            await mine.follow("quotes", "*")
            await database_sync_to_async(Session.objects.all().delete)()
            assert (await mine.frame("bye"))["code"] == protocol.CLOSE_AUTH

    asyncio.run(play())


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({}, True),
        ({"Origin": "{own}"}, True),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://evil.example", "Host": "evil.example"}, False),
    ],
)
def test_only_our_own_pages_and_programs_may_connect(site: Site, headers: dict[str, str], accepted: bool) -> None:
    given = {name: value.format(own=site.url) for name, value in headers.items()}

    async def play(cookie: str) -> None:
        if accepted:
            async with connect(site, cookie, headers=given) as socket:
                await Connection(socket).frame("welcome")
        else:
            with pytest.raises(websockets.InvalidStatus) as error:
                async with connect(site, cookie, headers=given):
                    pass
            assert error.value.response.status_code == 403

    asyncio.run(play(site.cookie()))


def test_without_a_session_the_socket_says_so_and_closes(site: Site) -> None:
    async def play() -> None:
        async with connect(site, "nothing=1") as socket:
            assert (await Connection(socket).frame("bye"))["code"] == protocol.CLOSE_AUTH
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
            assert socket.close_code == protocol.CLOSE_AUTH

    asyncio.run(play())


def test_mistakes_are_answered_and_abuse_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS_PER_USER", 2)

    async def play(cookie: str) -> None:
        async with connect(site, cookie) as socket:
            mine = Connection(socket)
            await mine.say(op="dance", id=3)
            assert (await mine.frame("err"))["code"] == "unknown_op"
            await mine.say(op="sub", id=4, ch="quotes", hz=99)
            assert (await mine.frame("err", id=4))["code"] == "schema"
            await mine.say(op="ping", id=5)
            assert (await mine.frame("hb", id=5))["now"] > 0
            async with connect(site, cookie), connect(site, cookie) as third:
                assert (await Connection(third).frame("bye"))["code"] == protocol.CLOSE_LIMITS
            for _ in range(protocol.MESSAGE_BURST + 5):
                await mine.say(op="ping", id=6)
            assert (await mine.frame("err"))["code"] == "rate"
            assert (await mine.frame("bye"))["code"] == protocol.CLOSE_LIMITS
        async with connect(site, cookie) as socket:
            await socket.send(b"\x00\x01")
            assert (await Connection(socket).frame("bye"))["code"] == protocol.CLOSE_PROTOCOL

    asyncio.run(play(site.cookie()))


def test_a_client_that_asks_for_nothing_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SUBSCRIBE_WITHIN_S", 0.2)

    async def play(cookie: str) -> None:
        async with connect(site, cookie) as socket:
            assert (await Connection(socket).frame("bye"))["code"] == protocol.CLOSE_PROTOCOL

    asyncio.run(play(site.cookie()))


def test_another_subprotocol_is_refused(site: Site) -> None:
    async def play(cookie: str) -> None:
        async with connect(site, cookie, subprotocols=[websockets.Subprotocol("md2.json")]) as socket:
            assert socket.subprotocol is None
            assert (await Connection(socket).frame("bye"))["code"] == protocol.CLOSE_PROTOCOL

    asyncio.run(play(site.cookie()))
