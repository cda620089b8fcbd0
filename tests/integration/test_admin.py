"""The operators' desk through HTTP: every page opens, decisions are posted and audited, forms refuse what producers may not send."""

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from integration.models import (
    Alert,
    Batch,
    Gap,
    Instrument,
    InstrumentAlias,
    Issuer,
    Job,
    Lease,
    OutgoingMessage,
    QuarantinedEvent,
    Source,
    Subscription,
    Venue,
)
from tests.integration import desk

pytestmark = pytest.mark.django_db
State = QuarantinedEvent.State
OURS = sorted(
    str(model._meta.model_name)
    for model in apps.get_app_config("integration").get_models()
    if admin.site.is_registered(model)
)


@pytest.fixture(autouse=True)
def quiet_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages ask the broker for its backlog; these tests are about the pages, so it says nothing waits."""
    monkeypatch.setattr("integration.broker.backlog", lambda topic, _: {f"{topic}-partition-0": 0})


@pytest.fixture
def client() -> Client:
    browser = Client()
    browser.force_login(desk.operator())
    return browser


def viewer(*permissions: str) -> Client:
    user = get_user_model().objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    browser = Client()
    browser.force_login(user)
    return browser


def one_of_everything() -> dict[str, Any]:
    instrument, position, now = desk.instrument(), desk.position(), time.time_ns()
    Lease.objects.create(name=position.partition, epoch=2, holder="host-1", renewed_at=datetime.now(UTC))
    batch = Batch.objects.create(
        id=1,
        position=position,
        number=1,
        clock=now,
        ts_received=now,
        ts_processed=now,
        reference_version=1,
        tick_count=600,
    )
    message = OutgoingMessage.objects.create(
        topic="persistent://market-data/integrated/ticks", epoch=1, number=1, pub_seq=1
    )
    return {
        "venue": Venue.objects.get(),
        "issuer": Issuer.objects.create(name="An issuer"),
        "instrument": instrument,
        "instrumentalias": instrument.aliases.get(),
        "source": desk.source(),
        "subscription": desk.subscription(),
        "batch": batch,
        "outgoingmessage": message,
        "gap": Gap.objects.create(source=desk.source(), channel=0, session=0, first=5, last=9),
        "job": Job.objects.create(kind="retention", key="d", state=Job.State.FAILED, error="it broke"),
        "alert": Alert.objects.create(kind="canary_late", key="canary", severity="critical", message="too late"),
        "quarantinedevent": desk.quarantined(),
    }


def test_every_page_opens_with_rows_and_without(client: Client) -> None:
    for name in OURS:
        assert client.get(reverse(f"admin:integration_{name}_changelist")).status_code == 200
    rows = one_of_everything()
    assert sorted(rows) == OURS
    for name, row in rows.items():
        assert client.get(reverse(f"admin:integration_{name}_changelist"), {"q": "1"}).status_code == 200
        assert client.get(reverse(f"admin:integration_{name}_change", args=[row.pk])).status_code == 200
    for name in ("venue", "issuer", "instrument", "instrumentalias", "source"):
        assert client.get(reverse(f"admin:integration_{name}_add")).status_code == 200


def test_filters_open(client: Client) -> None:
    one_of_everything()
    url = reverse("admin:integration_quarantinedevent_changelist")
    for query in (
        "state=all",
        "state=parked",
        "code=price_sign",
        "source=-",
        "source=simulated",
        "age=hour",
        "age=over_week",
    ):
        assert client.get(f"{url}?{query}").status_code == 200
    assert "price_sign" in client.get(f"{url}?age=day").content.decode()


def test_nothing_opens_without_a_login() -> None:
    for url in (reverse("admin:index"), reverse("admin:integration_quarantinedevent_changelist")):
        assert Client().get(url).status_code == 302


def test_what_processes_write_cannot_be_edited(client: Client) -> None:
    rows = one_of_everything()
    for name in ("batch", "outgoingmessage", "gap", "job", "alert", "subscription", "quarantinedevent"):
        row = rows[name]
        assert client.get(reverse(f"admin:integration_{name}_add")).status_code == 403
        assert client.post(reverse(f"admin:integration_{name}_change", args=[row.pk]), {"number": 7}).status_code == 403
        assert (
            client.post(reverse(f"admin:integration_{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
        )
    assert client.post(reverse("admin:integration_instrument_delete", args=[rows["instrument"].pk])).status_code == 403


# -- the first page -------------------------------------------------------------------------------------------------------


def test_the_index_is_the_work_queue(client: Client) -> None:
    assert "Nothing waits" in client.get(reverse("admin:index")).content.decode()
    rows = one_of_everything()
    desk.quarantined("unknown_instrument", state=State.PARKED, instrument="NEWCO.XNAS")
    desk.quarantined("crossed", state=State.RELEASE_REQUESTED)
    Subscription.objects.update(is_paused=True)
    page = client.get(reverse("admin:index")).content.decode()
    for words in ("price_sign", "NEWCO.XNAS", "canary_late", "5 sequences", "retention", "Resume", "not taken them up"):
        assert words in page
    links = set(re.findall(r'href="(/admin/integration/[^"]+)"', page.replace("&amp;", "&")))
    assert "/admin/integration/instrumentalias/add/?scheme=TICKER&value=NEWCO.XNAS" in links
    for link in links:
        assert client.get(link).status_code == 200, link
    assert rows["alert"].pk


def queries(client: Client, url: str) -> int:
    client.get(url)  # content types and permissions are cached by the first
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert client.get(url).status_code == 200
    return len(captured)


@pytest.mark.parametrize("name", ["index", *OURS])
def test_the_number_of_queries_does_not_grow_with_the_rows(client: Client, name: str) -> None:
    rows = one_of_everything()
    url = reverse("admin:index" if name == "index" else f"admin:integration_{name}_changelist")
    before = queries(client, url)
    for number in range(2, 8):
        position = desk.position(number)
        values = {"clock": 1, "ts_received": 1, "ts_processed": 1, "reference_version": 1}
        Batch.objects.create(id=number, position=position, number=1, **values)
        OutgoingMessage.objects.create(topic=f"t{number}", epoch=1, number=number, pub_seq=number)
        source = Source.objects.create(code=f"s{number}", name="s")
        source.bindings.create(topic=rows["subscription"].topic)
        Gap.objects.create(source=source, channel=0, session=0, first=1, last=2)
        Job.objects.create(kind=f"k{number}", key="d", state=Job.State.FAILED)
        Alert.objects.create(kind=f"k{number}", key="a", message="m")
        desk.quarantined(position=position)
        desk.instrument(f"N{number}.XNA{number}")
        Issuer.objects.create(name=str(number))
        Subscription.objects.create(topic=f"persistent://a/b/c{number}")
    assert queries(client, url) == before


# -- the quarantine -------------------------------------------------------------------------------------------------------


def test_raw_bytes_are_shown_and_escaped(client: Client) -> None:
    event = desk.quarantined(raw=b'{"a": "<script>alert(1)</script>", "n": 1e400, "n": 0.10}', detail="<b>bold</b>")
    page = client.get(reverse("admin:integration_quarantinedevent_change", args=[event.pk])).content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>bold</b>" not in page
    assert page.count("&quot;n&quot;") == 2  # a repeated key stays visible, numbers stay as written
    assert "1e400" in page
    assert "0.10" in page
    assert "A price of zero or below" in page


def test_one_event_is_released_and_confirmed_by_post_only(client: Client) -> None:
    event = desk.quarantined()
    url = reverse("admin:integration_quarantinedevent_release", args=[event.pk])
    assert client.get(url).status_code == 404
    assert client.post(url, {"note": "checked"}).status_code == 302
    event.refresh_from_db()
    assert (event.state, event.note) == (State.RELEASE_REQUESTED, "checked")
    client.post(reverse("admin:integration_quarantinedevent_confirm_bad", args=[event.pk]))
    event.refresh_from_db()
    assert event.state == State.CONFIRMED_BAD
    page = client.get(reverse("admin:integration_quarantinedevent_change", args=[event.pk])).content.decode()
    assert "Decided: confirmed bad" in page
    history = client.get(reverse("admin:integration_quarantinedevent_history", args=[event.pk])).content.decode()
    assert "Release requested. checked" in history


def test_decisions_need_the_token_of_the_form() -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(desk.operator())
    event, topic = desk.quarantined(), desk.subscription()
    for url in (
        reverse("admin:integration_quarantinedevent_release", args=[event.pk]),
        reverse("admin:integration_quarantinedevent_release_reason", args=["price_sign"]),
        reverse("admin:integration_subscription_pause", args=[topic.pk]),
    ):
        assert browser.post(url).status_code == 403
    assert QuarantinedEvent.objects.get().state == State.QUARANTINED


def test_who_may_look_may_not_decide() -> None:
    event, topic = desk.quarantined(), desk.subscription()
    browser = viewer("view_quarantinedevent", "view_subscription")
    page = browser.get(reverse("admin:integration_quarantinedevent_change", args=[event.pk])).content.decode()
    assert "You may look, but not decide" in page
    assert browser.get(reverse("admin:integration_quarantinedevent_changelist")).status_code == 200
    for url in (
        reverse("admin:integration_quarantinedevent_release", args=[event.pk]),
        reverse("admin:integration_quarantinedevent_release_reason", args=["price_sign"]),
        reverse("admin:integration_subscription_pause", args=[topic.pk]),
    ):
        assert browser.post(url).status_code == 403
    action = {"action": "release_selected", "_selected_action": [event.pk]}
    browser.post(reverse("admin:integration_quarantinedevent_changelist"), action)
    assert QuarantinedEvent.objects.get().state == State.QUARANTINED


def test_selected_events_are_released_and_confirmed(client: Client) -> None:
    first, second, third = (desk.quarantined() for _ in range(3))
    url = reverse("admin:integration_quarantinedevent_changelist")
    client.post(url, {"action": "release_selected", "_selected_action": [first.pk, second.pk]})
    client.post(url, {"action": "confirm_selected_bad", "_selected_action": [third.pk]})
    found = dict(QuarantinedEvent.objects.values_list("id", "state"))
    assert found == {
        first.pk: State.RELEASE_REQUESTED,
        second.pk: State.RELEASE_REQUESTED,
        third.pk: State.CONFIRMED_BAD,
    }


def trade(price: str, ticker: str = "AAPL.XNAS") -> bytes:
    now = time.time_ns()
    meta = {"source": "simulated", "kind": "trade", "channel": 1, "session": 1, "sequence": 1}
    data = {
        "instrument_id": ticker,
        "timestamp": now,
        "price_data": {"price": price},
        "volume_data": {"size": 1},
        "metadata": meta,
    }
    return json.dumps({"event_id": "n-1", "timestamp": now, "market_data": data}).encode()


def test_the_dry_run_tells_what_a_release_would_do_and_stores_nothing(client: Client) -> None:
    desk.source()
    desk.instrument()
    for raw in (trade("-1"), trade("-2"), trade("-3", "NEWCO.XNAS"), b"{"):
        desk.quarantined(raw=raw)
    url = reverse("admin:integration_quarantinedevent_release_reason", args=["price_sign"])
    page = client.get(url).content.decode()
    assert "The oldest 4 were sent through the pipeline" in page
    outcome = re.sub(r"<[^>]+>|\s+", " ", page)
    assert re.search(r"would be stored\s+2", outcome)
    assert re.search(r"stays: unknown_instrument\s+1", outcome)
    assert re.search(r"stays: malformed\s+1", outcome)
    assert set(QuarantinedEvent.objects.values_list("state", flat=True)) == {State.QUARANTINED}
    assert not Batch.objects.exists()
    assert client.post(url, {"note": "rule was wrong"}).status_code == 302
    assert set(QuarantinedEvent.objects.values_list("state", flat=True)) == {State.RELEASE_REQUESTED}


def test_what_cannot_be_released_is_not_offered(client: Client) -> None:
    event = desk.quarantined("poison", raw=b"\xff\xff\xff\xff" + b"\x00" * 64)
    page = client.get(reverse("admin:integration_quarantinedevent_change", args=[event.pk])).content.decode()
    assert "Release this event" not in page
    assert "ff ff ff ff" in page  # bytes, not a decoded stream: decoding ended a process before
    release = client.get(reverse("admin:integration_quarantinedevent_release_reason", args=["poison"])).content.decode()
    assert "No event can be released" in release
    client.post(reverse("admin:integration_quarantinedevent_release_reason", args=["poison"]))
    assert QuarantinedEvent.objects.get().state == State.QUARANTINED


# -- other decisions ------------------------------------------------------------------------------------------------------


def test_pause_and_resume(client: Client) -> None:
    topic = desk.subscription()
    page = client.get(reverse("admin:integration_subscription_change", args=[topic.pk])).content.decode()
    assert "Pause" in page
    client.post(reverse("admin:integration_subscription_pause", args=[topic.pk]))
    assert Subscription.objects.get().is_paused
    again = client.post(reverse("admin:integration_subscription_pause", args=[topic.pk]), follow=True).content.decode()
    assert "somebody was faster" in again
    client.post(reverse("admin:integration_subscription_resume", args=[topic.pk]))
    assert not Subscription.objects.get().is_paused
    url = reverse("admin:integration_subscription_changelist")
    chosen = {"_selected_action": [topic.pk]}
    page = client.post(url, chosen | {"action": "pause_selected"}, follow=True).content.decode()
    assert "1 subscription paused" in page
    assert Subscription.objects.get().is_paused
    client.post(url, chosen | {"action": "resume_selected"})
    assert not Subscription.objects.get().is_paused
    again = client.post(url, chosen | {"action": "resume_selected"}, follow=True).content.decode()
    assert "“Resume” changed nothing" in again


def test_fields_in_tables_say_their_names(client: Client) -> None:
    page = client.get(reverse("admin:integration_instrument_change", args=[desk.instrument().pk])).content.decode()
    for name, label in (
        ("aliases-0-value", "Value"),
        ("aliases-0-valid_from_1", "Valid from, time"),
        ("listings-0-venue", "Venue"),
        ("listings-0-tick_size", "Tick size"),
    ):
        assert re.search(rf'<(input|select)[^>]*name="{name}"[^>]*aria-label="{label}"', page), name


def test_gap_job_and_alert_decisions(client: Client) -> None:
    rows = one_of_everything()
    client.post(reverse("admin:integration_gap_confirm_lost", args=[rows["gap"].pk]))
    client.post(reverse("admin:integration_job_retry", args=[rows["job"].pk]))
    client.post(reverse("admin:integration_alert_acknowledge", args=[rows["alert"].pk]))
    assert Gap.objects.get().state == Gap.State.LOST
    assert Job.objects.get().state == Job.State.PENDING
    assert Alert.objects.get().acknowledged_by
    assert client.post(reverse("admin:integration_gap_confirm_lost", args=[99])).status_code == 404


def test_a_quiet_topic_is_told_from_one_that_nobody_reads(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.position()
    url = reverse("admin:integration_subscription_changelist")
    for waiting, word in (({"p": 0}, "Quiet"), ({"p": 3}, "No consumer"), (None, "Not known")):
        monkeypatch.setattr("integration.broker.backlog", lambda _topic, _name, waiting=waiting: waiting)
        assert word in client.get(url).content.decode()
    Lease.objects.create(name=desk.position().partition, holder="host-1", renewed_at=datetime.now(UTC))
    assert "Reading" in client.get(url).content.decode()


# -- reference data -------------------------------------------------------------------------------------------------------


def errors_of(response: Any) -> str:
    assert response.status_code == 200, "the form was accepted"
    return re.sub(r"\s+", " ", response.content.decode())


ALIAS = {"scheme": "TICKER", "valid_from_0": "", "valid_from_1": "", "valid_to_0": "", "valid_to_1": ""}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "ISIN", "value": "US0378331006"}, "Not a valid ISIN"),
        ({"scheme": "FIGI", "value": "BBG000B9XRY5"}, "Not a valid FIGI"),
        ({"value": "AAPL"}, "symbol"),
        ({"value": "AAPL.xnas"}, "MIC"),
        ({"value": "AA PL.XNAS"}, "symbol"),
        ({"value": "X.XNAS", "valid_from_0": "2026-01-02", "valid_from_1": "00:00", "valid_to_0": "2026-01-01", "valid_to_1": "0:0"},
         "must start before it ends"),
        ({"value": "AAPL.XNAS"}, "already names an instrument"),
    ],
)  # fmt: skip
def test_an_alias_that_cannot_be_one_is_refused(client: Client, values: dict[str, str], words: str) -> None:
    desk.instrument()
    other = Instrument.objects.create(name="Other", asset_class="equities")
    url = reverse("admin:integration_instrumentalias_add")
    assert words in errors_of(client.post(url, ALIAS | {"instrument": other.pk} | values))
    assert InstrumentAlias.objects.count() == 1


def test_an_alias_added_from_the_link_tells_what_waits(client: Client) -> None:
    desk.quarantined("unknown_instrument", state=State.PARKED, instrument="NEWCO.XNAS")
    new = Instrument.objects.create(name="New", asset_class="equities")
    url = reverse("admin:integration_instrumentalias_add")
    page = client.get(url, {"scheme": "TICKER", "value": "NEWCO.XNAS"}).content.decode()
    assert 'value="NEWCO.XNAS"' in page
    assert re.search(r"<strong>1</strong>\s+event\s+waits under the name <code>NEWCO.XNAS", page)
    assert client.post(url, ALIAS | {"instrument": new.pk, "value": "NEWCO.XNAS"}).status_code == 302
    assert InstrumentAlias.objects.get().instrument == new


def test_a_new_instrument_takes_the_name_from_the_link(client: Client) -> None:
    venue = Venue.objects.create(mic="SIMX", name="v", is_internal=True)
    url = reverse("admin:integration_instrument_add") + "?alias=NEWCO.SIMX&scheme=TICKER"
    page = client.get(url).content.decode()
    assert 'value="NEWCO.SIMX"' in page
    form = {
        "name": "New company", "asset_class": "equities", "price_decimals": "2", "is_active": "on",
        "aliases-TOTAL_FORMS": "1", "aliases-INITIAL_FORMS": "0", "aliases-0-scheme": "TICKER", "aliases-0-value": "NEWCO.SIMX",
        "listings-TOTAL_FORMS": "1", "listings-INITIAL_FORMS": "0", "listings-0-venue": venue.pk, "listings-0-currency": "USD",
        "listings-0-price_unit": "1", "listings-0-is_primary": "on",
    }  # fmt: skip
    assert client.post(url, form).status_code == 302
    assert InstrumentAlias.objects.get().wire_text == "NEWCO.SIMX"
    form["listings-0-currency"] = "GBX"
    form["aliases-0-value"] = "OTHER.SIMX"
    assert "Pence are the price unit 0.01 of GBP" in errors_of(client.post(url, form))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mic": "ZZZZ"}, "not registered in ISO 10383"),
        ({"calendar": "MOON"}, "No calendar"),
        ({"timezone": "Mars/Olympus"}, "No time zone"),
    ],
)
def test_a_venue_must_exist(client: Client, values: dict[str, str], words: str) -> None:
    good = {"mic": "XNAS", "name": "Nasdaq", "calendar": "XNYS", "timezone": "America/New_York"}
    url = reverse("admin:integration_venue_add")
    assert words in errors_of(client.post(url, good | values))
    assert client.post(url, good).status_code == 302
    assert (
        client.post(
            url, {"mic": "ZZZZ", "name": "Ours", "calendar": "24/7", "timezone": "UTC", "is_internal": "on"}
        ).status_code
        == 302
    )


def test_issuers_and_sources_are_checked(client: Client) -> None:
    issuer = reverse("admin:integration_issuer_add")
    assert "check digits" in errors_of(client.post(issuer, {"name": "n", "lei": "5493001KJTIIGC8Y1R13"}))
    assert "two letters" in errors_of(client.post(issuer, {"name": "n", "country": "U1"}))
    assert client.post(issuer, {"name": "n", "lei": "5493001KJTIIGC8Y1R12", "country": "us"}).status_code == 302
    source = desk.source()
    form = {
        "code": "other", "name": "n", "is_active": "on", "sequence_jump_limit": "5", "future_limit_ms": "5", "ancient_limit_s": "5",
        "crossed_limit_bps": "0", "bindings-TOTAL_FORMS": "1", "bindings-INITIAL_FORMS": "0", "bindings-0-topic": "persistent://a/b/c",
    }  # fmt: skip
    add = reverse("admin:integration_source_add")
    assert "reads no such topic" in errors_of(client.post(add, form))
    assert "A limit of at least 1" in errors_of(client.post(add, form | {"sequence_jump_limit": "0"}))
    assert client.post(add, form | {"bindings-0-topic": desk.subscription().topic}).status_code == 302
    assert source.pk


def test_nobody_overwrites_a_change_that_they_have_not_seen(client: Client) -> None:
    issuer = Issuer.objects.create(name="Before")
    url = reverse("admin:integration_issuer_change", args=[issuer.pk])
    seen = re.search(r'name="row_version" value="([0-9a-f]+)"', client.get(url).content.decode())
    assert seen
    Issuer.objects.filter(pk=issuer.pk).update(name="Changed by another")
    form = {"name": "Mine", "lei": "", "country": "", "row_version": seen[1]}
    assert "Somebody changed this row" in errors_of(client.post(url, form))
    assert Issuer.objects.get().name == "Changed by another"
    fresh = re.search(r'name="row_version" value="([0-9a-f]+)"', client.get(url).content.decode())
    assert fresh
    assert client.post(url, form | {"row_version": fresh[1]}).status_code == 302
    assert Issuer.objects.get().name == "Mine"


def test_a_form_without_the_version_it_was_opened_at_is_refused(client: Client) -> None:
    issuer = Issuer.objects.create(name="Before")
    url = reverse("admin:integration_issuer_change", args=[issuer.pk])
    assert "Somebody changed this row" in errors_of(client.post(url, {"name": "Mine", "row_version": "0"}))
