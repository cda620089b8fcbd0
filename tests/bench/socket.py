"""From the broker to a websocket: 10,000 ticks a second through consumer, sequencer and web server as processes of their own.

A row's delay runs from the venue's time, which is when the producer sent it, to its arrival in the client.
"""

import asyncio
import http.cookiejar
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import numpy as np
from django.conf import settings

from integration.models import Batch, OutgoingMessage
from integration.sources import pulsar_client
from tests.bench import market

RATE = 10_000
SECONDS = 12
WARM_SECONDS = 5
TICKS_A_MESSAGE = 100
SYMBOLS = 50
START_TIMEOUT_S = 60


def measure(topic: str) -> dict[str, float]:
    """Give the 50th and 95th percentile of the delay in milliseconds."""
    port = settings.MDI.port
    web = [
        sys.executable,
        "-m",
        "uvicorn",
        "config.asgi:application",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    commands = (
        [sys.executable, "manage.py", "consume_ticks", "--topic", topic], [sys.executable, "manage.py", "sequence_ticks"], web
    )  # fmt: skip
    running = [subprocess.Popen(command, env=os.environ | {"MDI_PORT": str(port)}) for command in commands]
    try:
        _wait_until_sent()
        delays = asyncio.run(_listen(port, topic))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=20)
    p50, p95 = np.percentile(delays, [50, 95])
    print(
        f"websocket: {len(delays):,} rows, p50 {p50:.0f} ms, p95 {p95:.0f} ms at {RATE:,} ticks/s",
        file=sys.stderr,
        flush=True,
    )
    return {"socket_p50_ms": float(p50), "socket_p95_ms": float(p95), "socket_rows": float(len(delays))}


def _wait_until_sent() -> None:
    """Wait until what earlier measurements stored is numbered and sent: the path is to be measured, not its backlog."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (
            not Batch.objects.filter(pub_seq=None).exists()
            and not OutgoingMessage.objects.filter(sent_at=None).exists()
        ):
            return
        time.sleep(0.5)


async def _listen(port: int, topic: str) -> list[float]:
    import websockets

    cookie = await asyncio.to_thread(_sign_in, port)
    stop = threading.Event()
    producer = threading.Thread(target=_produce, args=(topic, stop))
    address = f"ws://127.0.0.1:{port}/ws/v1/market-data"
    delays: list[float] = []
    async with websockets.connect(
        address, additional_headers={"Cookie": cookie}, subprotocols=[websockets.Subprotocol("md1.json")], max_size=None
    ) as socket:
        symbols = [f"B{number}.{market.VENUE}" for number in range(SYMBOLS)]
        await socket.send(json.dumps({"op": "sub", "id": 1, "ch": "quotes", "sym": symbols}))
        producer.start()
        began = time.time()
        async for text in socket:
            now = time.time_ns()
            frame: dict[str, Any] = json.loads(text)
            if frame["t"] == "data" and frame["ch"] == "quotes" and time.time() - began > WARM_SECONDS:
                delays += [(now - _time_of(row)) / 1e6 for row in frame["rows"]]
            if time.time() - began > WARM_SECONDS + SECONDS:
                break
    stop.set()
    producer.join()
    return delays


def _time_of(row: list[Any]) -> int:
    """Give the `ts` of a row (docs/websocket.md)."""
    return int(row[2])


def _sign_in(port: int) -> str:
    """Follow the run's link once the server answers, and give the cookie that it sets."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            opener.open(f"http://127.0.0.1:{port}/?token={settings.ACCESS_TOKEN}", timeout=10).read()
            return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.25)


def _produce(topic: str, stop: threading.Event) -> None:
    """Send streams of 100 ticks, each stamped with the time of its sending."""
    client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN)
    producer = client.create_producer(client.get_topic_partitions(topic)[0], block_if_queue_full=True)
    session, sequence, began = time.time_ns(), 1, time.perf_counter()
    columns = market.walk(RATE * (SECONDS + WARM_SECONDS + 2), 21)
    for start in range(0, len(columns["which"]), TICKS_A_MESSAGE):
        if stop.is_set():
            break
        part = {name: values[start : start + TICKS_A_MESSAGE] for name, values in columns.items()}
        due = began + start / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        part["ts_event"] = np.full(len(part["which"]), time.time_ns())
        producer.send(market.arrow_message(part, session, sequence).data, partition_key="bench")
        sequence += TICKS_A_MESSAGE
    client.close()
