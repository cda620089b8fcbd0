"""A small market, and the whole application behind a real uvicorn in a thread, on this test's own Pulsar namespace."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from django.contrib.auth import get_user_model
from django.test import Client as DjangoClient

from integration.market.bar_events import BarEvent, encode_bar
from integration.market.events import encode_numbered_ticks
from integration.market.ticks import QUOTE, TICK_COLUMNS, TRADE, Ticks
from integration.market.units import NANOS
from integration.models import Instrument, InstrumentAlias, Listing, SequencerState, Source, Venue
from tests.stack import PulsarNamespace

TOKEN = "the-token-of-this-run"


@dataclass
class Market:
    """Instruments of a venue that is always open, by symbol."""

    ids: dict[str, int] = field(default_factory=dict)

    def add(self, symbol: str, name: str, venue: Venue, decimals: int = 2) -> Instrument:
        instrument = Instrument.objects.create(name=name, asset_class="equities", price_decimals=decimals)
        Listing.objects.create(instrument=instrument, venue=venue, currency="USD")
        InstrumentAlias.objects.create(instrument=instrument, value=f"{symbol}.{venue.mic}")
        self.ids[f"{symbol}.{venue.mic}"] = instrument.pk
        return instrument


def make_market() -> Market:
    venue = Venue.objects.create(mic="SIMX", name="Simulated exchange (always open)", calendar="24/7", is_internal=True)
    internal = Venue.objects.create(mic="MDIX", name="Internal", calendar="24/7", is_internal=True)
    SequencerState.objects.get_or_create(pk=1)
    Source.objects.create(code="simulated", name="Simulated", is_simulated=True)
    market = Market()
    market.add("AAPL", "Apple Inc. (simulated)", venue)
    market.add("MSFT", "Microsoft Corp. (simulated)", venue)
    market.add("EURUSD", "Euro / US dollar (simulated)", venue, decimals=5)
    market.add("CANARY", "Canary", internal)
    return market


@pytest.fixture
def market(db: None) -> Market:
    return make_market()


@pytest.fixture
def signed_in(db: None, client: DjangoClient, settings: Any) -> DjangoClient:
    settings.ACCESS_TOKEN = TOKEN
    client.get("/", {"token": TOKEN})
    return client


class Publisher:
    """Plays the sequencer's end: numbered ticks and bars on the integrated topics."""

    def __init__(self, namespace: PulsarNamespace) -> None:
        client = namespace.client()
        options = {"batching_enabled": False, "block_if_queue_full": True}
        self._ticks = client.create_producer(namespace.topic("ticks"), **options)
        self._bars = client.create_producer(namespace.topic("bars"), **options)
        self.pub_seq = 0
        self.sequences: dict[int, int] = {}

    def ticks(self, *rows: dict[str, int], skip: int = 0) -> None:
        """Send one message; each row has instrument_id and price, and what else it wants to say."""
        now = time.time_ns()
        default = {
            "kind": TRADE,
            "size": NANOS,
            "ts_event": now,
            "ts_publish": now,
            "session_date": now // (86_400 * 10**9),
        }
        ticks = Ticks.zeros(len(rows))
        for name in TICK_COLUMNS:
            getattr(ticks, name)[:] = [row.get(name, default.get(name, 0)) for row in rows]
        self.send(ticks, skip)

    def send(self, ticks: Ticks, skip: int = 0) -> None:
        """Number ticks and send them; `skip` numbers are left out before."""
        self.pub_seq += 1
        numbers = []
        for instrument in ticks.instrument_id.tolist():
            self.sequences[instrument] = self.sequences.get(instrument, 0) + 1 + skip
            skip = 0
            numbers.append(self.sequences[instrument])
        epochs = np.ones(len(ticks), np.int32)
        sequences = np.array(numbers, np.int64)
        data = encode_numbered_ticks(
            ticks, epochs=epochs, sequences=sequences, batch=self.pub_seq, pub_seq=self.pub_seq, epoch=1
        )
        self._ticks.send(data)

    def trade(self, instrument: int, price: int, **facts: int) -> None:
        self.ticks({"instrument_id": instrument, "price": price, **facts})

    def quote(self, instrument: int, bid: int, ask: int) -> None:
        self.ticks(
            {
                "instrument_id": instrument,
                "kind": QUOTE,
                "price": bid,
                "size": NANOS,
                "ask_price": ask,
                "ask_size": NANOS,
            }
        )

    def bar(self, instrument: int, symbol: str, start: int, **facts: Any) -> None:
        values: dict[str, Any] = {
            "open": NANOS,
            "high": 2 * NANOS,
            "low": NANOS,
            "close": 2 * NANOS,
            "volume": 5 * NANOS,
        }
        values |= {
            "turnover": 10 * NANOS,
            "adjusted_close": 2 * NANOS,
            "timeframe": "1m",
            "revision": 1,
            "reason": "first",
        }
        values |= {
            "source_id": 0,
            "source": "consolidated",
            "trade_count": 3,
            "sequence": 1,
            "epoch": 1,
            "timestamp": start,
        }
        day = start // (86_400 * 10**9)
        self._bars.send(
            encode_bar(
                BarEvent(instrument_id=instrument, symbol=symbol, start=start, session_date=day, **values | facts)
            )
        )


@dataclass
class Site:
    """The running application."""

    url: str
    market: Market
    publisher: Publisher

    @property
    def link(self) -> str:
        """The link that signs in."""
        return f"{self.url}/?token={TOKEN}"

    @property
    def socket(self) -> str:
        """The address of the live protocol."""
        return self.url.replace("http://", "ws://") + "/ws/v1/market-data"

    def cookie(self, username: str = "desk") -> str:
        """Sign a user in and give the cookie header."""
        user, _ = get_user_model().objects.get_or_create(username=username)
        client = DjangoClient()
        client.force_login(user)
        return "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())


@pytest.fixture
def site(transactional_db: None, settings: Any, pulsar_namespace: PulsarNamespace) -> Iterator[Site]:
    """Serve the application; the desk has read the stored state and follows the topics when this yields."""
    from config.asgi import application
    from distribution.feeds import Desk

    settings.ACCESS_TOKEN = TOKEN
    settings.INTEGRATED_TOPICS = {name: pulsar_namespace.topic(name) for name in ("ticks", "bars")}
    market = make_market()
    publisher = Publisher(pulsar_namespace)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="uvicorn")
        thread.start()
        try:
            until(lambda: (desk := Desk.running()) is not None and desk.state[0] == "live")
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", market, publisher)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20) -> None:
    """Wait until something is so; a test that waits for ever says what for by its own line."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
