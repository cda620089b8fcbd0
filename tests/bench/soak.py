"""SUITE=soak: the real processes at a steady rate for a long while, with restarts and days that close: nothing grows, all balances.

A consumer and a sequencer run as they do in production; a tenth of the ticks is of days past, which the archiver moves to the
lake meanwhile. `SOAK_MINUTES` (30) and `SOAK_RATE` (20,000 ticks/s) make it shorter.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.models import Sum

from integration import archive, history
from integration.market.events import warm_up
from integration.models import Batch, LakeDay, OutgoingMessage, QuarantinedEvent, Source
from integration.sources import pulsar_client
from tests.bench import market
from tests.faults.processes import Runner

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
RATE = int(os.environ.get("SOAK_RATE", "20000"))
ROWS = 1_000
SAMPLE_S = 5.0
RESTART_S = 240.0
ARCHIVE_S = 60.0
WARM_S = 60.0  # a process grows while it meets its first slices, instruments and kernels
DAY_NS = 86_400_000_000_000
DAYS_PAST = 10
PAST_EVERY = 10


@dataclass
class Watch:
    """What a process held, sample by sample: (seconds of its life, resident MB, open files)."""

    runner: Runner
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    lives: list[list[tuple[float, float, int]]] = field(default_factory=list)

    def sample(self) -> None:
        """Look at the process."""
        assert self.runner.process is not None
        folder = Path(f"/proc/{self.runner.process.pid}")
        resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        self.samples.append((time.monotonic() - self.runner.started_at, resident, len(list((folder / "fd").iterdir()))))

    def restart(self) -> None:
        """End it as an operator would and start it again."""
        self.lives.append(self.samples)
        self.samples = []
        self.runner.stop()
        self.runner.start()

    def growth(self) -> tuple[float, int, float]:
        """Give MB a minute (the median of its lives), the most files opened over a life, and the peak in MB."""
        slopes, files, peak = [], 0, 0.0
        for life in [*self.lives, self.samples]:
            steady = [sample for sample in life if sample[0] > WARM_S]
            if len(steady) > 5:
                ages, resident = np.array([sample[:2] for sample in steady]).T
                slopes.append(float(np.polyfit(ages / 60, resident, 1)[0]))
                files = max(files, steady[-1][2] - steady[0][2])
                peak = max(peak, float(resident.max()))
        return (float(np.median(slopes)) if slopes else 0.0), files, peak


def run() -> dict[str, float]:
    """Soak; give the figures by name."""
    call_command("migrate", verbosity=0)
    call_command("bootstrap", verbosity=0)
    topics = list(settings.NORMALIZED_TOPICS.values())
    market.create_reference(topics)
    Source.objects.update(ancient_limit_s=90 * 86_400)
    warm_up()
    log = settings.MDI.var_dir / "soak.log"
    variables = dict(os.environ)
    watches = [Watch(Runner(command, variables, log)) for command in ("consume_ticks", "sequence_ticks")]
    client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN)
    producer = client.create_producer(
        client.get_topic_partitions(topics[0])[0], block_if_queue_full=True, batching_enabled=False
    )
    try:
        for watch in watches:
            watch.runner.start()
        sent, connections = soak(producer, watches)
        drain(sent)
    finally:
        for watch in watches:
            watch.runner.stop()
        client.close()
    return figures(watches, sent, connections)


def soak(producer: Any, watches: list[Watch]) -> tuple[int, list[int]]:
    """Send at the rate until the time is over; look, restart and archive as they are due. Give ticks sent and connections seen."""
    session, sent, connections = time.time_ns(), 0, list[int]()
    began = time.monotonic()
    due = {"sample": SAMPLE_S, "restart": RESTART_S, "archive": ARCHIVE_S, "tell": 60.0}
    number = 0
    while (now := time.monotonic() - began) < MINUTES * 60:
        if sent > now * RATE:
            time.sleep((sent - now * RATE) / RATE)
        producer.send_async(message(number, session, sent + 1), lambda *_: None, partition_key="soak")
        sent, number = sent + ROWS, number + 1
        if now > due["sample"]:
            due["sample"] += SAMPLE_S
            connections.append(count_connections())
            for watch in watches:
                watch.sample()
        if now > due["archive"]:
            due["archive"] += ARCHIVE_S
            archive_all()
        if now > due["restart"]:
            due["restart"] += RESTART_S
            for watch in watches:
                watch.restart()
        if now > due["tell"]:
            due["tell"] += 60.0
            peaks = ", ".join(
                f"{watch.runner.command} {watch.samples[-1][1]:.0f} MB" for watch in watches if watch.samples
            )
            say(f"{now / 60:.0f} min: {sent:,} sent, {stored():,} stored, {peaks}, {connections[-1]} connections")
    producer.flush()
    return sent, connections


def message(number: int, session: int, first: int) -> bytes:
    """Make one stream; every tenth is of a day long closed."""
    part = market.walk(ROWS, number)
    if number % PAST_EVERY == 0:
        part["ts_event"] = part["ts_event"] - (DAYS_PAST + number // PAST_EVERY % DAYS_PAST) * DAY_NS
    return market.arrow_message(part, session, first).data


def archive_all() -> None:
    """Move the closed days that hold anything to the lake."""
    for table, day in archive.closed_days(time.time_ns()):
        archive.archive_day(table, day)


def stored() -> int:
    """Count the ticks of committed batches."""
    return int(Batch.objects.aggregate(total=Sum("tick_count"))["total"] or 0)


def count_connections() -> int:
    """Count the sessions of our database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


def drain(sent: int) -> None:
    """Wait until all is stored, numbered and published, as long as it goes on."""
    end, before = time.monotonic() + 60, -1
    while time.monotonic() < end:
        waiting = Batch.objects.filter(pub_seq=None).count() + OutgoingMessage.objects.filter(sent_at=None).count()
        now = stored() - waiting
        if stored() >= sent and not waiting:
            return
        end, before = (time.monotonic() + 60 if now != before else end), now
        time.sleep(0.5)


def figures(watches: list[Watch], sent: int, connections: list[int]) -> dict[str, float]:
    """Put the figures together; `balance` is what was sent less what a reader of slices and lake finds."""
    found = sum(batch.num_rows for batch in history.stream_ticks("trade", None, 0, 2**62, ["sequence"]))
    in_lake = int(LakeDay.objects.aggregate(total=Sum("row_count"))["total"] or 0)
    result = {
        "minutes": MINUTES, "sent": float(sent), "balance": float(sent - found),
        "quarantined": float(QuarantinedEvent.objects.count()),
        "in_lake": float(in_lake), "connections_first": float(np.median(connections[:12] or [0])),
        "connections_last": float(np.median(connections[-12:] or [0])),
    }  # fmt: skip
    for watch in watches:
        slope, files, peak = watch.growth()
        name = watch.runner.command.partition("_")[0]
        result |= {f"{name}_mb_a_minute": slope, f"{name}_files_opened": float(files), f"{name}_peak_mb": peak}
    return result


def say(text: str) -> None:
    """Tell how it goes."""
    print(text, file=sys.stderr, flush=True)
