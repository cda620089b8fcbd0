"""Probes and metrics: what they say, to whom, and what they say when a server is away."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.test import Client

from distribution import probes
from integration import canary
from integration.metrics import (
    SCRAPED,
    record_batch,
    record_job,
    record_published,
    record_quarantined,
    record_sequenced,
)
from integration.models import Alert, Batch, Gap, Job, Lease, OutgoingMessage
from tests.integration import desk

DOCS = Path(django_settings.BASE_DIR, "docs", "operations.md")
ELSEWHERE = {"REMOTE_ADDR": "203.0.113.7"}


@pytest.fixture(autouse=True)
def fresh_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask anew in every test: answers are kept for a second, the broker's for five."""
    monkeypatch.setattr(probes, "_kept", (0.0, []))
    monkeypatch.setattr("integration.broker._answers", {})
    monkeypatch.setattr(canary, "CACHE_KEY", f"canary-{uuid4()}")  # parallel tests share one Valkey


@pytest.fixture
def well() -> None:
    """Make the whole path look alive."""
    Lease.objects.create(name=desk.position().partition, epoch=1, holder="h", renewed_at=datetime.now(UTC))
    Lease.objects.create(name="sequencer", epoch=1, holder="h", renewed_at=datetime.now(UTC))
    canary.mark_canary(time.time_ns())


def ask(client: Client, address: str, environ: dict[str, Any]) -> Any:
    return client.get(address, **environ)


def parts(response: Any) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in response.json()["parts"]}


def test_alive_asks_nobody(client: Client, settings: Any) -> None:
    settings.DATABASE_URL = settings.REDIS_URL = "nonsense"
    assert client.get("/livez").content == b"ok\n"  # no database mark: a query would fail the test
    assert client.post("/livez").status_code == 405


@pytest.mark.django_db
def test_ready_when_every_part_is(client: Client, well: None) -> None:
    response = client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready"), response.json()
    found = parts(response)
    assert list(found) == [
        "postgres",
        "valkey",
        "disk",
        "pulsar",
        "consumers",
        "sequencer",
        "publisher",
        "canary",
        "jobs",
    ]
    assert {part["state"] for part in found.values()} == {"ok"}
    assert response.headers["Cache-Control"].startswith("max-age=0")


@pytest.mark.django_db
def test_an_empty_service_is_not_ready_and_says_why(client: Client) -> None:
    response = client.get("/readyz")
    assert response.status_code == 503
    late = {name for name, part in parts(response).items() if part["state"] != "ok"}
    assert late == {"consumers", "sequencer", "canary"}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["sequencer", "publisher", "canary"])
def test_one_late_part_is_enough(client: Client, well: None, name: str) -> None:
    long_ago = time.time_ns() - 120 * 10**9
    if name == "sequencer":
        Lease.objects.filter(name="sequencer").update(renewed_at=datetime.fromtimestamp(long_ago / 1e9, UTC))
    elif name == "publisher":
        values = {"clock": 1, "ts_received": 1, "ts_processed": long_ago, "reference_version": 1}
        Batch.objects.create(id=1, position=desk.position(), number=1, **values)
    else:
        canary.mark_canary(long_ago)
    response = client.get("/readyz")
    assert response.status_code == 503
    found = parts(response)
    assert [part["name"] for part in found.values() if part["state"] == "late"] == [name]
    assert found[name]["age_s"] == pytest.approx(120, abs=30)


@pytest.mark.django_db
def test_jobs_that_wait_are_told_and_do_not_matter(client: Client, well: None) -> None:
    job = Job.objects.create(kind="k", key="a")
    Job.objects.filter(pk=job.pk).update(run_after=datetime(2026, 1, 1, tzinfo=UTC))
    response = client.get("/readyz")
    assert response.status_code == 200
    assert parts(response)["jobs"]["state"] == "late"


@pytest.mark.django_db
def test_servers_that_are_away_are_named(client: Client, well: None, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    settings.PULSAR_ADMIN_URL = "http://127.0.0.1:1"
    found = parts(client.get("/readyz"))
    assert found["valkey"]["state"] == found["pulsar"]["state"] == "down"
    assert found["consumers"]["state"] == "ok"


def test_without_postgres_the_rest_is_unknown(client: Client, settings: Any) -> None:
    settings.DATABASE_URL = "postgresql://nobody:x@127.0.0.1:1/none"
    response = client.get("/readyz")
    assert response.status_code == 503
    found = parts(response)
    assert found["postgres"]["state"] == "down"
    assert {found[name]["state"] for name in ("consumers", "sequencer", "publisher", "canary")} == {"unknown"}


@pytest.mark.django_db
def test_many_probes_ask_once(client: Client, well: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    examine = probes.examine

    def counted() -> Any:
        asked.append(1)
        return examine()

    monkeypatch.setattr(probes, "examine", counted)
    for _ in range(5):
        client.get("/readyz")
    assert len(asked) == 1


# -- who may know ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_details_are_for_the_loopback_and_for_bearers_of_the_token(client: Client, well: None, settings: Any) -> None:
    settings.MDI = replace(settings.MDI, metrics_token="right")
    for allowed in (
        {},
        {"REMOTE_ADDR": "::1"},
        ELSEWHERE | {"HTTP_AUTHORIZATION": "Bearer right"},
        {"HTTP_X_FORWARDED_FOR": "203.0.113.7", "HTTP_AUTHORIZATION": "bearer right"},
    ):
        assert ask(client, "/metrics", allowed).status_code == 200
        assert "parts" in ask(client, "/readyz", allowed).json()
    for refused in (
        ELSEWHERE,
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},  # through a proxy on this machine: not local
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        ELSEWHERE | {"HTTP_AUTHORIZATION": "Bearer wrong"},
        ELSEWHERE | {"HTTP_AUTHORIZATION": "Bearer "},
        ELSEWHERE | {"HTTP_AUTHORIZATION": "Basic right"},
        {"REMOTE_ADDR": ""},
    ):
        assert ask(client, "/metrics", refused).status_code == 403
        answer = ask(client, "/readyz", refused)
        assert set(answer.json()) == {"status"}


@pytest.mark.django_db
def test_an_empty_token_opens_nothing(client: Client, settings: Any) -> None:
    settings.MDI = replace(settings.MDI, metrics_token="")
    assert ask(client, "/metrics", ELSEWHERE | {"HTTP_AUTHORIZATION": "Bearer "}).status_code == 403


# -- metrics --------------------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line and line[0] != "#"
    }


@pytest.mark.django_db
def test_gauges_are_read_from_postgres(client: Client, well: None) -> None:
    desk.quarantined("crossed")
    desk.quarantined("crossed")
    Gap.objects.create(source=desk.source(), channel=0, session=0, first=1, last=2)
    Alert.objects.create(kind="k", key="a", severity="critical", message="m")
    Job.objects.create(kind="k", key="a", state=Job.State.FAILED)
    OutgoingMessage.objects.create(topic="t", epoch=1, number=1, pub_seq=1)
    found = samples(client.get("/metrics").content.decode())
    assert found['mdi_quarantine_waiting_events{code="crossed",state="quarantined"}'] == 2
    assert found['mdi_open_gaps{source="simulated"}'] == 1
    assert found['mdi_open_alerts{severity="critical"}'] == 1
    assert found['mdi_jobs{state="failed"}'] == 1
    assert found["mdi_unsent_messages"] == 1
    assert found["mdi_database_up"] == 1
    assert 0 <= found["mdi_canary_age_seconds"] < 60
    assert found[f'mdi_partition_batches{{partition="{desk.position().partition}"}}'] == 0
    names = {name.partition("{")[0] for name in found}
    assert set(SCRAPED) - names <= {"mdi_partition_waiting_messages"}  # only where the broker has the topic


def test_metrics_without_postgres_say_so_and_go_on(client: Client, settings: Any) -> None:
    settings.DATABASE_URL = "postgresql://nobody:x@127.0.0.1:1/none"
    found = samples(client.get("/metrics").content.decode())
    assert found["mdi_database_up"] == 0
    assert "mdi_batches_sequenced_total" in found
    assert not set(SCRAPED) & set(found) - {"mdi_database_up"}


def test_recording_functions_count() -> None:
    def value(name: str, **labels: str) -> float:
        from prometheus_client import REGISTRY

        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = {
        "ticks": value("mdi_ticks_stored_total", topic="t"),
        "stage": value("mdi_stage_duration_seconds_count", stage="decode"),
        "bars": value("mdi_bars_written_total"),
        "bytes": value("mdi_published_bytes_total"),
        "code": value("mdi_events_quarantined_total", code="crossed"),
        "jobs": value("mdi_jobs_finished_total", kind="k", outcome="done"),
    }
    record_batch("t", ticks=7, rejected=1, duplicates=2, parked=3, stage_seconds={"decode": 0.001, "record": 0.002})
    record_quarantined("crossed", 4)
    record_sequenced(batches=1, ticks=7, bars=2, seconds=0.01)
    record_published(messages=3, bytes=500)
    record_job("k", "done", 0.5)
    assert value("mdi_ticks_stored_total", topic="t") == before["ticks"] + 7
    assert value("mdi_stage_duration_seconds_count", stage="decode") == before["stage"] + 1
    assert value("mdi_events_quarantined_total", code="crossed") == before["code"] + 4
    assert value("mdi_bars_written_total") == before["bars"] + 2
    assert value("mdi_published_bytes_total") == before["bytes"] + 500
    assert value("mdi_jobs_finished_total", kind="k", outcome="done") == before["jobs"] + 1


def test_processes_are_added_up(tmp_path: Path) -> None:
    """Two processes that count into one folder, as `make run` has them, are one figure."""
    code = "from integration.metrics import record_sequenced; record_sequenced(1, 5, 0, 0.1)"
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=django_settings.BASE_DIR)
    read = (
        "from distribution import probes; from prometheus_client import generate_latest;"
        "print(generate_latest(probes._process_registry()).decode())"
    )
    setup = f"import django; django.setup(); {read}"
    done = subprocess.run(
        [sys.executable, "-c", setup], env=env, check=True, cwd=django_settings.BASE_DIR, capture_output=True, text=True
    )
    assert samples(done.stdout)["mdi_ticks_sequenced_total"] == 10


def test_each_metric_has_a_line_in_the_docs() -> None:
    from prometheus_client.metrics import MetricWrapperBase

    import integration.metrics as declared

    text = DOCS.read_text()
    named = {
        family.name + ("_total" if family.type == "counter" else "")
        for metric in vars(declared).values()
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
    }
    assert len(named) > 10
    documented = set(re.findall(r"^\| `(mdi_[a-z_]+)`", text, re.MULTILINE))
    assert documented == named | set(SCRAPED)
