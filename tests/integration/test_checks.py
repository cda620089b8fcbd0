"""What is misconfigured stops the start with its id; the schedule and its tasks do what they say."""

from pathlib import Path
from typing import Any

import pytest

from integration import tasks
from integration.checks import check_integration
from integration.models import Alert, Job
from tests.integration import desk


def ids() -> list[str]:
    return [str(message.id) for message in check_integration()]


def test_the_settings_as_they_are_pass() -> None:
    assert ids() == []


@pytest.mark.parametrize("path", ["", "nowhere", "config.no_such_module.build", "no_such_package.pipeline.build"])
def test_wiring_that_leads_nowhere(settings: Any, path: str) -> None:
    settings.TICK_PIPELINE = path
    assert ids() == ["integration.E001"]


def test_topics(settings: Any) -> None:
    settings.CANARY_TOPIC = "heartbeat"
    assert ids() == ["integration.E002"]
    settings.CANARY_TOPIC = settings.NORMALIZED_TOPICS["equities"]
    assert ids() == ["integration.E003"]


def test_metrics_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert ids() == []
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "missing"))
    assert ids() == ["integration.E004"]


def test_schedule(settings: Any) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"a": {"task": "integration.no_such_task", "schedule": 1.0}}
    assert ids() == ["integration.E005"]


@pytest.mark.django_db
def test_each_scheduled_task_can_run(settings: Any) -> None:
    desk.quarantined("crossed")
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        name = entry["task"].rpartition(".")[2]
        if name != "run_jobs":  # builds indexes outside of a transaction: see test_jobs
            getattr(tasks, name)()
        assert entry["options"]["expires"] >= entry["schedule"]
    assert Alert.objects.get(kind="quarantine").key == "crossed"
    assert Job.objects.filter(kind="retention").exists()
