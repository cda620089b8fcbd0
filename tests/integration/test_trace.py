"""Where an event is: every form followed from its message to the message that it went out with; what is not here is explained."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from integration import services
from integration import trace as tracing
from integration.models import Batch, Gap, InstrumentAlias, OutgoingMessage, QuarantinedEvent, Slice, Trade
from integration.trace import EventName, Trace, trace
from tests.e2e.events import SECOND, SESSION, TS, arrow, normalized, quote, status, trade
from tests.e2e.world import World
from tests.integration import desk
from tests.integration.test_consumer import settle
from tests.integration.test_sequencing import TOPICS, Broker, consume, loop
from tests.integration.test_sequencing import settle as settle_sequencer


def number(sequence: int, channel: int = 0) -> EventName:
    return EventName(channel, SESSION, sequence, "alpha")


def stages(found: Trace) -> list[str]:
    return [step.stage for step in found.steps]


def facts(found: Trace, stage: str) -> dict[str, Any]:
    return next(step.facts for step in found.steps if step.stage == stage)


def test_a_tick_is_followed_from_its_batch_to_its_number_and_its_message(world: World) -> None:
    consume(world, trade(1), quote(2), trade(3, instrument="BBB.SIMX"), trade(4, price="12.5"))
    consume(world, trade(5), arrow([10, 11, 12]))
    broker = Broker()
    sequencer = loop(broker)
    found = trace(number(4))
    assert (found.state, found.rows) == ("stored", 1)
    settle_sequencer(sequencer)
    found = trace(number(4))
    batch = Batch.objects.order_by("id")[0]
    stored = facts(found, "stored")
    assert (found.state, stored["batch"], stored["row_in_batch"], stored["price"]) == ("published", batch.pk, 3, "12.5")
    assert stages(found) == ["received", "stored", "numbered", "published"]
    # the third tick of its instrument: a trade and a quote came before, one of another instrument between
    assert facts(found, "numbered") == {
        "pub_seq": 1,
        "epoch": 1,
        "instrument": world.instruments["AAA.SIMX"],
        "sequence": 3,
    }
    assert facts(found, "published") == {"topic": TOPICS["ticks"], "number": 1, "epoch": 1}
    in_stream = trace(number(11, channel=7))
    assert (
        facts(in_stream, "numbered")["sequence"] == 6
    )  # 3 before, one in this batch's first message, one before it in the stream
    assert facts(in_stream, "stored")["row_in_batch"] == 2
    times = [step.at for step in found.steps]
    assert times[0] == batch.ts_received
    assert times[1] == batch.ts_processed
    assert facts(found, "stored")["ts_event"] == TS


def test_numbers_agree_with_what_was_published(world: World) -> None:
    from integration.market.events import decode_numbered_ticks

    consume(world, *(trade(at, instrument=("AAA.SIMX", "BBB.SIMX")[at % 2], price=f"{at}") for at in range(1, 30)))
    consume(world, *(quote(at, instrument=("AAA.SIMX", "BBB.SIMX")[at % 3 % 2]) for at in range(30, 60)))
    broker = Broker()
    settle_sequencer(loop(broker))
    for message in (sent for (topic, _, _), sent in broker.kept.items() if topic == "ticks"):
        out = decode_numbered_ticks(message.payload)
        rows = zip(*(out.columns[name].tolist() for name in ("instrument_id", "sequence", "price")), strict=True)
        published = list(rows)
        batch = Batch.objects.get(pk=out.batch)
        for at, name in enumerate(sequences_of(batch)):
            numbered = facts(trace(number(name)), "numbered")
            assert (numbered["instrument"], numbered["sequence"]) == published[at][:2]
            assert numbered["pub_seq"] == out.pub_seq


def sequences_of(batch: Batch) -> list[int]:
    from integration.rows import unpack_payload

    return [int(value) for value in unpack_payload(bytes(batch.payload)).sequence]


def test_an_event_without_a_number_is_found_by_its_event_id(world: World) -> None:
    consume(world, trade(0, event_id="naïve-1", price="3"))
    found = trace(EventName.of_event_id("naïve-1"))
    assert (found.state, found.name.source, facts(found, "stored")["price"]) == ("stored", "alpha", "3")
    assert trace(EventName.of_event_id("naive-1")).state == "unknown"


def test_refusal_decision_and_release_are_steps_with_names(world: World) -> None:
    consume(world, trade(7, price="0"), trade(8, instrument="ZZZ.SIMX"), b"junk")
    worker = world.workers[0]
    refused, parked = trace(number(7)), trace(number(8))
    assert (refused.state, facts(refused, "quarantined")["code"]) == ("quarantined", "price_sign")
    assert (parked.state, stages(parked)) == ("parked", ["received", "parked"])
    somebody = desk.operator()
    services.request_release(events=QuarantinedEvent.objects.filter(sequence=7), actor=somebody, note="a real zero")
    assert trace(number(7)).state == "release_requested"
    settle(worker)
    InstrumentAlias.objects.create(instrument_id=world.instruments["BBB.SIMX"], value="ZZZ.SIMX")
    settle(worker)
    released = trace(number(7))
    assert (released.state, released.rows) == ("stored", 1)
    assert stages(released) == ["received", "quarantined", "decided", "released", "stored"] or "decided" in stages(
        released
    )
    decided = next(step for step in released.steps if step.stage == "decided")
    assert somebody.username in decided.words
    assert "a real zero" in decided.words
    assert facts(released, "released")["batch"] == Trade.objects.get(sequence=7).batch_id
    flowed = trace(number(8))
    assert (flowed.state, facts(flowed, "stored")["instrument"]) == ("stored", world.instruments["BBB.SIMX"])
    # by the event_id of a numbered event, from the bytes that the quarantine keeps
    assert trace(EventName.of_event_id("t-7")).name.sequence == 7


def test_a_conflict_names_the_first_and_who_came_second(world: World) -> None:
    consume(world, trade(1, price="10"))
    consume(world, trade(1, price="10"), trade(1, price="11"))
    found = trace(number(1))
    first = Batch.objects.order_by("id")[0]
    assert (found.state, found.rows, facts(found, "stored")["batch"]) == ("stored", 1, first.pk)
    assert facts(found, "conflict")["batch"] == Batch.objects.order_by("id")[1].pk
    assert facts(found, "stored")["price"] == "10"
    assert any("counted 1 repeats" in note for note in found.notes)


def test_status_changes_and_delivered_bars_are_found(world: World) -> None:
    consume(world, status(5, "halted"), normalized(6, "ohlc"))
    settle_sequencer(loop(Broker()))
    for sequence in (5, 6):
        found = trace(number(sequence))
        assert (found.state, found.rows, facts(found, "stored")["table"]) == (
            "published",
            1,
            "integration_upstreamevent",
        )


def test_what_is_not_here_is_a_gap_known_or_unknown(world: World) -> None:
    source = world.sources["alpha"]
    consume(world, trade(1), trade(4))
    Gap.objects.create(source_id=source, channel=0, session=SESSION, first=2, last=3)
    assert trace(number(2)).state == "missing"
    assert trace(number(9)).state == "unknown"
    Trade.objects.all()._raw_delete("default")
    gone = trace(number(4))
    assert (gone.state, facts(gone, "known")["partitions"]) == ("known", [world.workers[0].partition])


def test_a_deleted_batch_and_message_are_said(world: World) -> None:
    consume(world, trade(1))
    settle_sequencer(loop(Broker()))
    OutgoingMessage.objects.all().delete()
    found = trace(number(1))
    assert found.state == "published"
    assert any("retention" in note for note in found.notes)
    Batch.objects.all().delete()
    found = trace(number(1))
    assert (found.state, found.rows) == ("published", 1)
    assert any("deleted by retention" in note for note in found.notes)


def test_an_empty_budget_is_said_and_a_hint_goes_first(world: World) -> None:
    consume(world, *(trade(at, ts=TS + at * 3600 * SECOND) for at in range(1, 5)), published=TS + 5 * 3600 * SECOND)
    found = trace(number(1), budget_s=-1)
    assert any("0 of" in note for note in found.notes)
    order = tracing._ordered_slices([TS + 2 * 3600 * SECOND], SESSION)
    assert order[0].start <= TS + 2 * 3600 * SECOND < order[0].end
    assert len(order) == Slice.objects.count()


def test_the_command_prints_words_or_json_and_exits_by_what_it_found(world: World) -> None:
    consume(world, trade(1))
    asked = {"source": "alpha", "session": SESSION, "sequence": 1}
    out = StringIO()
    call_command("trace_event", json=True, stdout=out, **asked)
    told = json.loads(out.getvalue())
    assert (told["state"], told["steps"][0]["stage"]) == ("stored", "received")
    out = StringIO()
    call_command("trace_event", stdout=out, around="2026-01-05T14:30:00Z", **asked)
    assert "waits for the sequencer" in out.getvalue()
    with pytest.raises(CommandError, match="never seen") as ended:
        call_command("trace_event", "nobody", stdout=StringIO())
    assert ended.value.returncode == 1
    wrongs: tuple[dict[str, Any], ...] = (
        {},
        {"event_id": "x", "sequence": 1},
        {"sequence": 1, "source": "nobody"},
        {"sequence": 1, "around": "noon"},
    )
    for wrong in wrongs:
        with pytest.raises(CommandError):
            call_command("trace_event", stdout=StringIO(), **wrong)


def test_two_rows_of_one_identity_are_a_defect(world: World) -> None:
    from django.db import connection

    consume(world, trade(1))
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO integration_trade SELECT * FROM integration_trade")
    with pytest.raises(CommandError) as ended:
        call_command("trace_event", source="alpha", session=SESSION, sequence=1, stdout=StringIO())
    assert ended.value.returncode == 3


@pytest.fixture
def client(world: World) -> Client:
    browser = Client()
    browser.force_login(desk.operator())
    return browser


def test_the_page_answers_and_links(world: World, client: Client) -> None:
    consume(world, trade(1), trade(7, price="0"))
    page = reverse("trace_event")
    assert b"Where is an event" in client.get(page).content
    asked: dict[str, str | int] = {"source": "alpha", "channel": 0, "session": SESSION, "sequence": 7}
    found = client.get(page, asked).content.decode()
    event = QuarantinedEvent.objects.get()
    assert reverse("admin:integration_quarantinedevent_change", args=[event.pk]) in found
    assert "price_sign" in found
    wrong = client.get(page, {"sequence": "seven"})
    assert wrong.status_code == 200
    assert b"whole number" in wrong.content
    assert b"Never seen" in client.get(page, {"event_id": "<script>alert(1)</script>"}).content
    assert b"<script>alert(1)" not in client.get(page, {"event_id": "<script>alert(1)</script>"}).content
    quarantine = client.get(reverse("admin:integration_quarantinedevent_change", args=[event.pk])).content.decode()
    assert page in quarantine
    batch = Batch.objects.get()
    assert page in client.get(reverse("admin:integration_batch_change", args=[batch.pk])).content.decode()


def test_the_page_needs_the_right_to_see_events(world: World) -> None:
    from tests.integration.test_admin import viewer

    page = reverse("trace_event")
    assert Client().get(page).status_code == 302
    assert viewer().get(page).status_code == 403
    assert viewer_may(world).get(page).status_code == 200


def viewer_may(world: World) -> Client:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import Permission

    user = get_user_model().objects.create_user("looker", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_quarantinedevent", "view_batch"]))
    browser = Client()
    browser.force_login(user)
    return browser
