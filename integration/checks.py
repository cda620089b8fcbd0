"""System checks of the app: what is misconfigured stops the start with an id, instead of failing at the first event."""

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

_TOPIC: Final = re.compile(r"persistent://[\w-]+/[\w-]+/[\w-]+")
_WIRED: Final = ("TICK_PIPELINE", "TICK_SEQUENCER")


@register("integration")
def check_integration(**_: Any) -> list[CheckMessage]:
    """Check the wiring, the topics and the metrics folder; touches no server."""
    return [*_check_wiring(), *_check_topics(), *_check_metrics_folder(), *_check_schedule()]


def _check_wiring() -> Iterator[CheckMessage]:
    for name in _WIRED:
        path = str(getattr(settings, name, ""))
        module, _, attribute = path.rpartition(".")
        try:
            is_found = bool(module and attribute and importlib.util.find_spec(module))
        except ModuleNotFoundError:
            is_found = False
        if not is_found:
            yield Error(f"{name} must be the dotted path of a function, was {path!r}", id="integration.E001")


def _check_topics() -> Iterator[CheckMessage]:
    topics = [*settings.NORMALIZED_TOPICS.values(), *settings.INTEGRATED_TOPICS.values(), settings.CANARY_TOPIC]
    for topic in topics:
        if not _TOPIC.fullmatch(topic):
            yield Error(f"a topic is persistent://TENANT/NAMESPACE/NAME, was {topic!r}", id="integration.E002")
    for topic, count in Counter(topics).items():
        if count > 1:
            yield Error(
                f"a topic has two meanings, was {topic!r}",
                hint="MDI_NORMALIZED_NAMESPACE and MDI_INTEGRATED_NAMESPACE must differ, and neither may be “canary”.",
                id="integration.E003",
            )


def _check_metrics_folder() -> Iterator[CheckMessage]:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    if folder and not (Path(folder).is_dir() and os.access(folder, os.W_OK)):
        yield Error(
            f"PROMETHEUS_MULTIPROC_DIR must be a folder that can be written, was {folder!r}", id="integration.E004"
        )


def _check_schedule() -> Iterator[CheckMessage]:
    from integration import tasks

    known = {task.name for task in vars(tasks).values() if hasattr(task, "name")}
    for title, entry in settings.CELERY_BEAT_SCHEDULE.items():
        if entry["task"].startswith("integration.") and entry["task"] not in known:
            yield Error(f"the schedule {title!r} names no task of ours, was {entry['task']!r}", id="integration.E005")
