"""`manage.py replay_ticks`: stored ticks again, in the order of their numbers, to a file or a topic. See `integration.replay`."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from integration.market.times import ns_from_text
from integration.models import InstrumentAlias
from integration.replay import Pace, Query, publish, replayed, write_arrow, write_jsonl
from integration.sources import pulsar_client


class Command(BaseCommand):
    """Replay a range of stored ticks; what is stored does not change."""

    help = (
        "Replay stored ticks (ts_event from --from to before --to) in the order of their numbers, to a file or a topic."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", dest="start", required=True, help="ISO 8601 with a zone, or ns")
        parser.add_argument("--to", dest="end", required=True, help="ISO 8601 with a zone, or ns; exclusive")
        parser.add_argument("--instrument", action="append", default=[], help="SYMBOL.MIC or id; may be repeated (all)")
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument("--to-topic", help="full name of a topic that is not one of ours")
        target.add_argument("--output", type=Path, help="a new file: .arrow or .jsonl")
        parser.add_argument(
            "--speed", type=float, default=0.0, help="so many times as fast as it happened; 0 as fast as it goes (0)"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        query = Query(_time(options["start"]), _time(options["end"]), tuple(_instruments(options["instrument"])))
        if options["output"] is not None:
            count = _to_file(query, options["output"])
        else:
            count = _to_topic(query, options["to_topic"], options["speed"])
        self.stdout.write(f"{count:,} ticks")


def _to_file(query: Query, path: Path) -> int:
    writers = {".arrow": write_arrow, ".jsonl": write_jsonl}
    if path.suffix not in writers:
        raise CommandError(f"--output ends in .arrow or .jsonl, was {path.name!r}")
    try:
        return writers[path.suffix](replayed(query), path)
    except OSError as problem:
        raise CommandError(f"cannot write {path}: {problem.strerror}") from problem


def _to_topic(query: Query, topic: str, speed: float) -> int:
    ours = {*settings.NORMALIZED_TOPICS.values(), *settings.INTEGRATED_TOPICS.values(), settings.CANARY_TOPIC}
    if topic in ours:
        raise CommandError("a replay must not go to a topic of the live stream")
    import pulsar

    client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN)
    try:
        producer = client.create_producer(
            topic, block_if_queue_full=True, batching_enabled=True, batching_type=pulsar.BatchingType.KeyBased
        )
        return publish(replayed(query), producer, Pace(speed))
    except (pulsar.PulsarException, RuntimeError) as problem:
        raise CommandError(f"cannot publish to {topic}: {problem}") from problem
    finally:
        client.close()


def _time(text: str) -> int:
    try:
        return int(text) if text.isdigit() else ns_from_text(text)
    except ValueError as problem:
        raise CommandError(f"a time is ISO 8601 with a zone, or ns, was {text!r}") from problem


def _instruments(names: list[str]) -> list[int]:
    found = []
    for name in names:
        known = (
            [int(name)]
            if name.isdigit()
            else list(InstrumentAlias.objects.filter(value=name).values_list("instrument_id", flat=True))
        )
        if not known:
            raise CommandError(f"no instrument of this name, was {name!r}")
        found += known
    return sorted(set(found))
