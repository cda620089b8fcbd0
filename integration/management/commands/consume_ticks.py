"""`manage.py consume_ticks`: stores what the normalized topics deliver; more processes share the partitions."""

import gc
import os
import signal
import socket
import threading
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import import_string

from integration.canary import CanarySender
from integration.consumer import PartitionWorker
from integration.market.events import warm_up
from integration.models import Subscription
from integration.poison import InFlight
from integration.reference import ReferenceCache
from integration.sources import PulsarSource, pulsar_client

log = structlog.get_logger(__name__)


class Command(BaseCommand):
    """Run one worker thread per topic partition until SIGTERM or SIGINT."""

    help = "Consume normalized market data from Pulsar into PostgreSQL, exactly once. Start more processes to share the partitions."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--topic", action="append", help="Only this subscribed topic; may be repeated. Default: all subscriptions."
        )
        parser.add_argument(
            "--name", default=f"{socket.gethostname()}-{os.getpid()}", help="Consumer name at the broker; unique."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        warm_up()
        client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN, ca_file=settings.MDI.pulsar_ca_file)
        workers = build_workers(client, self._topics(options["topic"]), options["name"], stop)
        threads = [
            threading.Thread(target=_run, args=(worker, stop), name=worker.partition, daemon=True) for worker in workers
        ]
        canary = CanarySender(client, stop)
        # What is loaded now stays; the collector need not look at it again.
        gc.freeze()
        for thread in (*threads, canary):
            thread.start()
        log.info("consuming", partitions=len(workers), name=options["name"])
        stop.wait()
        for thread in threads:
            thread.join(timeout=8)
        client.close()
        if any(worker.failed for worker in workers):
            raise CommandError("a worker ended by an error; see the log above")

    def _topics(self, wanted: Sequence[str] | None) -> list[Subscription]:
        subscriptions = list(Subscription.objects.all())
        found = [item for item in subscriptions if not wanted or item.topic in wanted]
        if not found:
            raise CommandError("no subscription to consume; run `manage.py bootstrap` first, or check --topic")
        return found


def build_workers(
    client: Any, subscriptions: Sequence[Subscription], name: str, stop: threading.Event
) -> list[PartitionWorker]:
    """Make a worker for every partition of the subscribed topics."""
    slots = import_string(settings.TICK_PIPELINE)()
    references = ReferenceCache()
    folder = settings.MDI.var_dir / "run" / "in-flight"
    return [
        PartitionWorker(
            topic=subscription.topic,
            partition=partition,
            source=PulsarSource(client, partition, subscription.name, name),
            slots=slots,
            references=references,
            in_flight=InFlight(folder, partition),
            holder=name,
            batch_messages=settings.MDI.batch_messages,
            bar_grace_ns=settings.MDI.bar_grace_ms * 1_000_000,
            stop=stop,
        )
        for subscription in subscriptions
        for partition in client.get_topic_partitions(subscription.topic)
    ]


def _run(worker: PartitionWorker, stop: threading.Event) -> None:
    try:
        worker.run()
    except Exception:
        # A fault that no rule of the loop covers: end the process, so that start and recovery are the same path.
        log.exception("worker ended", partition=worker.partition)
        worker.failed = True
        stop.set()
