"""SUITE=ingest: messages to durable rows and on to the websocket, beside the typical loop on the same bytes.

Both sides: decode, the same checks, identity, durable commit with the position, output encoded; bars on neither side. Ours also
keeps each batch's payload.
"""

import gc
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.models import Sum
from django.utils.module_loading import import_string

from integration.consumer import PartitionWorker
from integration.market.events import warm_up
from integration.market.ticks import Message
from integration.models import Batch
from integration.poison import InFlight
from integration.reference import ReferenceCache
from integration.rows import COPY_HEAD, COPY_TAIL, copy_pieces, copy_statement, unpack_payload
from integration.sequencer import tick_message
from integration.sequencing import SequencerLoop
from integration.slices import SliceMap
from integration.sources import MemorySource, PulsarSource, TickSource, pulsar_client
from tests.bench import market, socket
from tests.bench.typical import TypicalLoop, create_tables, timed

ROUNDS = 3
TYPICAL_EVENTS = 10_000
JSON_EVENTS = 220_000
ARROW_TICKS = 750_000
BATCH = 20_000  # ticks a transaction, for both forms
ARROW_MESSAGES = BATCH // market.ARROW_ROWS
LATENCY_SECONDS = 6
MODERATE_PER_S = 100_000
BROKER_JSON = 75_000
BROKER_ARROW = 1_000_000
BROKER_LIMIT_S = 120
STEPS_A_LOOK = 2


def run(suite: str) -> dict[str, float]:
    """Measure everything (`ingest`), or only what is `storing` or the `socket`; give the figures by name."""
    call_command("migrate", verbosity=0)
    call_command("bootstrap", verbosity=0)
    topics = list(settings.NORMALIZED_TOPICS.values())
    aliases = market.create_reference(topics)
    create_tables()
    warm_up()
    figures: dict[str, float] = {}
    if suite != "socket":
        figures |= ratios(topics[0], aliases)
        p50, p99 = latency(topics[0], figures["json_per_s"] / 2, "half")
        figures |= {"commit_p50_ms": p50, "commit_p99_ms": p99, "commit_rate_per_s": figures["json_per_s"] / 2}
        p50, p99 = latency(topics[0], MODERATE_PER_S, "moderate")
        figures |= {"commit_p50_at_100k_ms": p50, "commit_p99_at_100k_ms": p99}
        figures |= sequencer_rate()
        figures |= copy_ratio()
    if suite == "ingest":
        figures |= broker(topics)
    if suite != "storing":
        figures |= socket.measure(topics[0])
    return {name: round(value, 3) for name, value in figures.items()}


def worker(topic: str, source: TickSource, name: str, batch: int) -> PartitionWorker:
    """Make a consumer's worker over any source."""
    return PartitionWorker(
        topic=topic,
        partition=f"{topic}-{name}",
        source=source,
        slots=import_string(settings.TICK_PIPELINE)(),
        references=ReferenceCache(),
        in_flight=InFlight(settings.MDI.var_dir / "run" / "in-flight", name),
        holder="bench",
        batch_messages=batch,
        bar_grace_ns=settings.MDI.bar_grace_ms * 1_000_000,
        stop=threading.Event(),
    )


def ours(topic: str, name: str, messages: Sequence[Message], batch: int) -> tuple[int, float, float]:
    """Store messages and encode their output; give (ticks, wall seconds, CPU seconds of this process)."""
    running = worker(topic, MemorySource(messages), name, batch)
    running.step()  # takes the partition and makes the first slice
    skipped = stored(running)
    wall, cpu = time.perf_counter(), time.process_time()
    while running.source.waiting or running.has_work:  # type: ignore[attr-defined]  # a MemorySource
        running.step()
    wall_stored = time.perf_counter() - wall
    cpu_stored = time.process_time() - cpu
    ticks = stored(running) - skipped
    encode = encoding_seconds(running)
    return ticks, wall_stored + encode, cpu_stored + encode


def stored(running: PartitionWorker) -> int:
    """Count the ticks that a worker's partition has committed."""
    position = running.owned.position if running.owned else None
    return Batch.objects.filter(position=position).aggregate(total=Sum("tick_count"))["total"] or 0


def encoding_seconds(running: PartitionWorker) -> float:
    """Time the encoding of the published messages of a worker's batches, all but the first."""
    assert running.owned is not None
    payloads = list(
        Batch.objects.filter(position=running.owned.position).order_by("number").values_list("payload", flat=True)
    )[1:]
    heads = []
    for payload in payloads:
        present = np.unique(unpack_payload(bytes(payload)).instrument_id).astype(np.int64)
        heads.append(np.concatenate(([0], present, np.ones_like(present))).astype("<i8").tobytes())
    started = time.process_time()
    for payload, head in zip(payloads, heads, strict=True):
        tick_message(unpack_payload(bytes(payload)), head, 1, 1, 1)
    return time.process_time() - started


def ratios(topic: str, aliases: dict[str, int]) -> dict[str, float]:
    """Run the typical loop, ours with JSON and ours with Arrow in turn; give medians of the ratios of each round."""
    rows: list[dict[str, float]] = []
    loop = TypicalLoop(aliases)
    for number in range(ROUNDS):
        session = time.time_ns()
        events = market.json_messages(JSON_EVENTS, number, session)
        few = market.json_messages(TYPICAL_EVENTS, number, session + 1)
        settle_memory()
        typical_wall, typical_cpu = timed(loop, few)
        json_ticks, json_wall, json_cpu = ours(topic, f"json-{number}", events, BATCH)
        arrow = list(market.arrow_messages(ARROW_TICKS, number, session + 2))
        settle_memory()
        arrow_ticks, arrow_wall, arrow_cpu = ours(topic, f"arrow-{number}", arrow, ARROW_MESSAGES)
        typical, by_json, by_arrow = TYPICAL_EVENTS / typical_wall, json_ticks / json_wall, arrow_ticks / arrow_wall
        rows.append(
            {
                "typical_per_s": typical, "json_per_s": by_json, "arrow_per_s": by_arrow, "json_ratio": by_json / typical,
                "arrow_ratio": by_arrow / typical, "typical_cpu_s_per_m": typical_cpu / TYPICAL_EVENTS * 1e6,
                "json_cpu_s_per_m": json_cpu / json_ticks * 1e6, "arrow_cpu_s_per_m": arrow_cpu / arrow_ticks * 1e6,
            }
        )  # fmt: skip
        say(f"round {number + 1}: typical {typical:,.0f}/s, JSON {by_json:,.0f}/s, Arrow {by_arrow:,.0f}/s")
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def settle_memory() -> None:
    """Keep the collector from looking at the prepared input again and again, as `consume_ticks` does with what it loaded."""
    gc.collect()
    gc.freeze()


class PacedSource(MemorySource):
    """Delivers messages when they are due, all that are due at once; keeps how long each took until it was stored."""

    def __init__(self, messages: Sequence[Message], per_s: float) -> None:
        super().__init__(messages)
        self._gap = 1 / per_s
        self._taken = 0
        self.started = 0.0
        self.waits: list[float] = []

    def receive(self, limit: int, wait_s: float) -> list[Message]:
        if not self.started:
            self.started = time.perf_counter()
        ready = int((time.perf_counter() - self.started) / self._gap) + 1 - self._taken
        if ready <= 0:
            time.sleep(self._gap if wait_s else 0)
            return []
        taken = super().receive(min(limit, ready), 0)
        self._taken += len(taken)
        return taken

    def acknowledge(self, last: Message) -> None:
        done, first = time.perf_counter() - self.started, self.acknowledged
        super().acknowledge(last)
        self.waits += [done - at * self._gap for at in range(first, self.acknowledged)]


def latency(topic: str, per_s: float, name: str) -> tuple[float, float]:
    """Offer JSON events at a fixed rate, time each from arrival to its durable commit; give the median and the 99th percentile in ms."""
    source = PacedSource(market.json_messages(int(per_s * LATENCY_SECONDS), 7, time.time_ns()), per_s)
    running = worker(topic, source, f"latency-{name}", 20_000)
    settle_memory()
    while source.waiting or running.has_work:
        running.step()
    settled = source.waits[int(per_s) :]  # the first second takes the partition and makes slices
    p50, p99 = np.percentile(settled, [50, 99]) * 1000
    say(f"at {per_s:,.0f}/s: commit p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return float(p50), float(p99)


class NoPublisher:
    """Stands where the broker's publisher is: the sequencer is measured without it."""

    def publish(self, messages: Sequence[Any], epoch: int) -> None:
        """Take messages."""

    def close(self) -> None:
        """Do nothing."""


def sequencer_rate() -> dict[str, float]:
    """Number all that waits, bars and messages included, each round in its own durable transaction."""
    topics = {**settings.INTEGRATED_TOPICS, "echo": settings.CANARY_ECHO_TOPIC}
    loop = SequencerLoop(
        holder="bench", publisher=NoPublisher(), reference=ReferenceCache().current, topics=topics,
        grace_ns=settings.MDI.bar_grace_ms * 1_000_000, standby_after_s=1, should_stop=lambda: False,
    )  # fmt: skip
    loop.step()
    waiting = Batch.objects.filter(pub_seq=None).aggregate(total=Sum("tick_count"))["total"] or 0
    started, cpu = time.perf_counter(), time.process_time()
    while Batch.objects.filter(pub_seq=None).exists():
        loop.step()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    loop.close()
    say(f"sequencer: {waiting / wall:,.0f} ticks/s, {cpu / waiting * 1e6:.2f} CPU s a million")
    return {"sequencer_per_s": waiting / wall, "sequencer_cpu_s_per_m": cpu / waiting * 1e6}


def copy_ratio() -> dict[str, float]:
    """Copy the same binary file into the trades by our COPY and by psql's, in turn; give ours over psql's rate."""
    from config.embedded.postgres import binary

    ticks = unpack_payload(bytes(Batch.objects.filter(tick_count=BATCH).values_list("payload", flat=True)[0]))
    SliceMap("trade").ensure(ticks.ts_event)
    once = b"".join(copy_pieces("trade", ticks, 0))
    many = once[:COPY_HEAD] + once[COPY_HEAD:-COPY_TAIL] * 40 + once[-COPY_TAIL:]
    ratios_seen = []
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(many)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            with connection.cursor() as cursor, cursor.copy(copy_statement("trade")) as copy:
                copy.write(many)
            mine = time.perf_counter() - started
            command = copy_statement("trade").replace("COPY", r"\copy", 1).replace("STDIN", f"'{file.name}'")
            started = time.perf_counter()
            subprocess.run([str(binary("psql")), settings.DATABASE_URL, "-qc", command], check=True)
            ratios_seen.append((time.perf_counter() - started) / mine)
    say(f"COPY: {statistics.median(ratios_seen):.2f} of psql's rate")
    return {"copy_ratio": statistics.median(ratios_seen)}


def broker(topics: Sequence[str]) -> dict[str, float]:
    """Store what a filled topic holds, one JSON event a message and then Arrow streams, through the real broker."""
    client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN)
    found: dict[str, float] = {}
    session = time.time_ns()
    json_events = (message.data for message in market.json_messages(BROKER_JSON, 11, session))
    streams = (message.data for message in market.arrow_messages(BROKER_ARROW, 12, session + 1))
    for name, topic, payloads, expected in (
        ("json", topics[1], json_events, BROKER_JSON),
        ("arrow", topics[2], streams, BROKER_ARROW),
    ):
        partition = client.get_topic_partitions(topic)[0]
        producer = client.create_producer(partition, block_if_queue_full=True, batching_enabled=name == "json")
        for payload in payloads:
            producer.send_async(payload, _sent, partition_key="bench")
        producer.flush()
        running = worker(topic, PulsarSource(client, partition, "bench", "bench"), f"broker-{name}", BATCH)
        started = time.perf_counter()
        while stored(running) < expected and time.perf_counter() - started < BROKER_LIMIT_S:
            for _ in range(STEPS_A_LOOK):
                running.step()
        wall = time.perf_counter() - started
        lost = expected - stored(running)
        running.close()
        say(f"broker, {name}: {expected / wall:,.0f}/s, {lost} lost")
        found |= {f"broker_{name}_per_s": expected / wall, f"broker_{name}_lost": float(lost)}
    client.close()
    return found


def _sent(result: Any, _: Any) -> None:
    import pulsar

    if result != pulsar.Result.Ok:
        raise RuntimeError(f"not sent: {result}")


def say(text: str) -> None:
    """Tell what was measured as it goes."""
    print(text, file=sys.stderr, flush=True)
