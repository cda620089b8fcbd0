"""The operators' desk in a real Chromium: every page is clean and accessible, decisions are taken by hand and the pipeline obeys.

What the pages show came through the real consumer, sequencer and job runner; only the broker's messages are put in by hand.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from playwright.sync_api import Browser, Locator, expect

from integration import jobs, services
from integration.consumer import PartitionWorker
from integration.models import Issuer, Job, QuarantinedEvent, Quote, Subscription, Trade
from integration.sources import MemorySource
from tests.distribution.test_desk_browser import IN_CHROMIUM, Visit, chromium
from tests.e2e.events import SECOND, messages, quote, trade
from tests.e2e.world import World, build_world
from tests.integration.test_sequencing import Broker, loop, settle
from tests.stack import PulsarNamespace

pytestmark = IN_CHROMIUM
State = QuarantinedEvent.State
PASSWORD = "of-this-test-alone"
NOT_OURS = [
    ".select2-container",  # Django's own copy of select2 gives its box no name; the field behind it has its label
]
# model, what is searched for, what a row then shows
LISTS = [
    ("venue", "SIMX", "SIMX"),
    ("issuer", "Simulated", "Simulated plc"),
    ("instrument", "AAA.SIMX", "AAA.SIMX"),
    ("instrumentalias", "AAA.SIMX", "AAA.SIMX"),
    ("source", "alpha", "alpha"),
    ("subscription", "equities", "equities"),
    ("quarantinedevent", "NEW.SIMX", "unknown_instrument"),
    ("gap", "alpha", "alpha"),
    ("batch", "1", "1"),
    ("outgoingmessage", "1", "out/ticks"),
    ("job", "of_another_version", "of_another_version"),
    ("alert", "canary", "canary_late"),
]


@dataclass
class Story:
    """The admin behind an address, and the pipeline that filled it and goes on."""

    url: str
    world: World
    worker: PartitionWorker
    operator: User

    def work(self) -> None:
        """Let the consumer do what waits, and what is due once a second."""
        self.worker.checked_at = 0.0
        self.worker.step()

    @property
    def source(self) -> MemorySource:
        """What the consumer reads from."""
        assert isinstance(self.worker.source, MemorySource)
        return self.worker.source

    def event(self, code: str) -> QuarantinedEvent:
        """Give the oldest event of a reason."""
        return QuarantinedEvent.objects.filter(code=code).earliest("id")


def fill(worker: PartitionWorker, now: int) -> None:
    """Send what a morning brings: ticks, a gap, a name nobody knows, crossed quotes, prices that cannot be, junk."""
    events = [
        *(trade(number, ts=now + number, price=f"10.{number}") for number in range(1, 6)),
        quote(7, "12.5", "9", ts=now + 7),
        quote(8, "14", "9", ts=now + 8),
        trade(9, ts=now + 9, price="-1", event_id="<b>minus</b>"),
        trade(10, ts=now + 10, instrument="NEW.SIMX"),
        b'{"event_id": "cut off',
        b"\xff\xfe\x00",
    ]
    assert isinstance(worker.source, MemorySource)
    for seconds, data in ((0, events), (1, [trade(11, ts=now + SECOND)]), (9, [trade(12, ts=now + 9 * SECOND)])):
        worker.source.put(*messages(*data, published=now + 100 + seconds * SECOND))
        while worker.source.waiting or worker.pending:
            worker.step()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def story(transactional_db: None, live_server: Any, pulsar_namespace: PulsarNamespace) -> Iterator[Story]:
    topic = pulsar_namespace.topic("equities")
    world = build_world(topic)
    now = time.time_ns() - 20 * SECOND
    worker = world.worker(topic=topic, partition=f"{topic}-partition-0", now_ns=time.time_ns)
    fill(worker, now)
    sequencer = loop(Broker(), grace_ns=SECOND)
    settle(sequencer)
    Job.enqueue(kind="of_another_version", key="k")  # nobody handles it, so it fails for good
    jobs.run_due_jobs()
    services.open_alert(kind="canary_late", key="canary", severity="critical", message="the canary is 40 s old")
    Issuer.objects.create(name="Simulated plc", country="US")
    operator = User.objects.create_superuser("operator", password=PASSWORD)
    yield Story(live_server.url, world, worker, operator)
    sequencer.close()
    worker.stop.set()
    worker.close()


@pytest.fixture
def visit(browser: Browser, story: Story) -> Iterator[Any]:
    contexts = []

    def open_page(address: str, *, signed_in: bool = True, width: int = 1440, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        if signed_in:
            client = Client()
            client.force_login(story.operator)
            cookie = client.cookies[settings.SESSION_COOKIE_NAME]
            context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie.value, "url": story.url}])
        made = Visit(context.new_page())
        made.watch()
        made.page.goto(story.url + address)
        return made

    yield open_page
    for context in contexts:
        context.close()


def address(model: str, page: str = "changelist", *args: Any) -> str:
    return reverse(f"admin:integration_{model}_{page}", args=args)


def rows(visit: Visit) -> Locator:
    return visit.page.locator("#result_list tbody tr")


def assert_clean(visit: Visit) -> None:
    """Hold a page against the console, the network and axe."""
    assert visit.problems == [], visit.page.url
    assert visit.barriers(but=NOT_OURS) == [], visit.page.url


def search(visit: Visit, query: str) -> None:
    """Search a list and wait for what it finds."""
    visit.page.fill("#searchbar", query)
    visit.page.keyboard.press("Enter")
    expect(visit.page).to_have_url(re.compile(f"[?&]q={query}(&|$)"))
    visit.page.wait_for_load_state()


def open_row(visit: Visit) -> None:
    """Follow the first row's link and wait until its page is whole."""
    rows(visit).first.locator("th a, td a").first.click()
    expect(visit.page).to_have_url(re.compile("/change/"))
    visit.page.wait_for_load_state()


def test_signing_in_leads_to_the_work_queue(story: Story, visit: Any) -> None:
    opened = visit(reverse("admin:index"), signed_in=False)
    assert_clean(opened)
    opened.page.fill("#id_username", "operator")
    opened.page.fill("#id_password", "wrong")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("body")).to_contain_text("Please enter the correct username and password")
    assert_clean(opened)
    opened.page.fill("#id_username", "operator")
    opened.page.fill("#id_password", PASSWORD)
    opened.page.keyboard.press("Enter")
    queue = opened.page.locator("section", has_text="What needs a decision?").locator("tbody tr")
    for words in ("price_sign", "crossed", "NEW.SIMX", "not come, in", "of_another_version", "canary_late"):
        expect(queue.filter(has_text=words)).to_have_count(1)
    queue.filter(has_text="price_sign").get_by_role("link").click()
    expect(rows(opened)).to_have_count(1)
    assert opened.problems == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_page_is_clean_and_keeps_nobody_out(story: Story, visit: Any, scheme: str) -> None:
    opened = visit(reverse("admin:index"), color_scheme=scheme)
    assert_clean(opened)
    for model, query, shown in LISTS:
        opened.page.goto(f"{story.url}{address(model)}")
        expect(rows(opened).filter(has_text=shown).first).to_be_visible()
        assert_clean(opened)
        search(opened, "987654321")
        expect(rows(opened)).to_have_count(0)
        search(opened, query)
        expect(rows(opened).filter(has_text=shown).first).to_be_visible()
        open_row(opened)
        assert_clean(opened)
    for model in ("venue", "instrument", "instrumentalias", "source"):
        opened.page.goto(f"{story.url}{address(model, 'add')}")
        assert_clean(opened)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_next_step_is_in_sight_on_a_phone(story: Story, visit: Any, scheme: str) -> None:
    opened = visit(reverse("admin:index"), width=390, color_scheme=scheme)
    step = opened.page.locator("tr", has_text="price_sign").get_by_role("link")
    box = step.bounding_box()
    assert box is not None
    assert 0 < box["x"] < box["x"] + box["width"] < 390
    assert_clean(opened)
    step.click()
    expect(rows(opened)).to_have_count(1)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.wait_for_load_state()
    assert_clean(opened)


def test_a_quarantined_event_is_read_and_released(story: Story, visit: Any) -> None:
    minus = story.event("price_sign")
    opened = visit(address("quarantinedevent", "change", minus.pk))
    payload = opened.page.locator("pre.payload")
    expect(payload).to_contain_text('\n    "price_data": {\n      "price": "-1"\n    },', use_inner_text=True)
    assert json.loads(payload.inner_text()) == json.loads(bytes(minus.raw))
    expect(opened.page.locator("body")).to_contain_text("A price of zero or below")
    assert opened.page.locator("pre b").count() == 0, "what came in is text"
    assert_clean(opened)

    crossed = story.event("crossed")
    opened.page.goto(story.url + address("quarantinedevent", "change", crossed.pk))
    opened.page.get_by_label("Why").fill("the source confirmed it")
    opened.page.get_by_role("button", name="Release this event").click()
    expect(opened.page.locator("body")).to_contain_text("1 quarantined event will be sent through the pipeline again")
    expect(opened.page.locator("body")).to_contain_text("Decided: release requested. “the source confirmed it”")
    assert not Quote.objects.exists()
    story.work()
    assert list(Quote.objects.values_list("sequence", flat=True)) == [crossed.sequence]
    opened.page.reload()
    expect(opened.page.locator("body")).to_contain_text("Decided: released.")
    expect(opened.page.get_by_role("button", name="Release this event")).to_have_count(0)
    assert_clean(opened)


def test_all_of_a_reason_are_released_after_a_look_at_what_it_would_do(story: Story, visit: Any) -> None:
    opened = visit(address("quarantinedevent"))
    card = opened.page.locator(".reason", has_text="crossed")
    card.get_by_role("link", name="release all").click()
    expect(opened.page.locator("tr", has_text="alpha")).to_contain_text("2")
    expect(opened.page.locator("tr", has_text="would be stored")).to_contain_text("2")
    assert_clean(opened)
    assert set(QuarantinedEvent.objects.values_list("state", flat=True)) == {State.QUARANTINED, State.PARKED}
    opened.page.get_by_label("Why").fill("a fast market")
    opened.page.get_by_role("button", name="Release 2 events").click()
    expect(opened.page.locator("body")).to_contain_text("2 quarantined events will be sent through the pipeline again")
    story.work()
    assert sorted(Quote.objects.values_list("sequence", flat=True)) == [7, 8]
    released = QuarantinedEvent.objects.filter(state=State.RELEASED)
    assert list(released.values_list("code", "note")) == [("crossed", "a fast market")] * 2
    opened.page.reload()
    expect(card).to_have_count(0)
    expect(rows(opened)).to_have_count(4)


def test_what_would_stay_is_told_before(story: Story, visit: Any) -> None:
    opened = visit(address("quarantinedevent", "release_reason", "malformed"), color_scheme="light")
    expect(opened.page.locator("tr", has_text="stays: malformed")).to_contain_text("1")
    assert_clean(opened)
    opened.page.get_by_role("link", name="Cancel").click()
    expect(opened.page).to_have_url(re.compile("code=malformed"))
    assert story.event("malformed").state == State.QUARANTINED


def test_a_subscription_is_paused_and_resumed_and_its_consumer_obeys(story: Story, visit: Any) -> None:
    before = Trade.objects.count()
    opened = visit(address("subscription", "change", Subscription.objects.get().pk))
    opened.page.get_by_role("button", name="Pause").click()
    expect(opened.page.locator("body")).to_contain_text("1 subscription paused")
    assert_clean(opened)
    now = time.time_ns()
    story.source.put(*messages(trade(13, ts=now), published=now + 1))
    for _ in range(3):
        story.work()
    assert (Trade.objects.count(), len(story.source.waiting)) == (before, 1)
    opened.page.goto(f"{story.url}{reverse('admin:index')}")
    opened.page.locator("tr", has_text="The broker keeps what comes").get_by_role("link", name="Resume").click()
    opened.page.get_by_role("button", name="Resume").click()
    expect(opened.page.locator("body")).to_contain_text("1 subscription resumed")
    story.work()
    story.work()
    assert (Trade.objects.count(), len(story.source.waiting)) == (before + 1, 0)
    assert opened.problems == []


def test_what_processes_write_offers_no_save(story: Story, visit: Any) -> None:
    opened = visit(reverse("admin:index"))
    save = "[name=_save], [name=_continue], [name=_addanother]"
    fields = "#content-main form[id$='_form'] :is(input:not([type=hidden]), select, textarea)"
    for model in ("subscription", "quarantinedevent", "batch", "outgoingmessage", "gap", "job", "alert"):
        opened.page.goto(f"{story.url}{address(model)}")
        assert opened.page.locator(f"#page a[href$='{address(model, 'add')}']").count() == 0
        open_row(opened)
        assert (model, opened.page.locator(save).count(), opened.page.locator(fields).count()) == (model, 0, 0)
    opened.page.goto(f"{story.url}{address('instrument')}")
    open_row(opened)
    assert opened.page.locator(save).count() == 3
    assert opened.page.locator(fields).count() > 5
