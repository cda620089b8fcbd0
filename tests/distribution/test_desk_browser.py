"""The desk in a real Chromium: ticks move it, it is clean and accessible, it fits a phone, it says when it is cut off, keys work.

The admin's browser tests use its browser, its watched visit and its accessibility check.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site_settings
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect, sync_playwright

from distribution.feeds import Desk
from integration.market.units import NANOS
from integration.models import Gap, Source
from tests.distribution.conftest import Site, until

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
IN_CHROMIUM = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
pytestmark = IN_CHROMIUM
SCRIPT_LIMIT = 300_000
AXE = Path(site_settings.BASE_DIR) / "node_modules" / "axe-core" / "axe.min.js"
SCREENS = [(1440, 900), (390, 844)]


@dataclass
class Visit:
    """An open page, and everything that went wrong on it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    scripts: dict[str, int] = field(default_factory=dict)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")
        if response.url.endswith(".js"):
            self.scripts[response.url] = int(response.headers.get("content-length", "0"))

    def barriers(self, *, but: Sequence[str] = (), off: Sequence[str] = ()) -> list[str]:
        """Ask axe-core what keeps people out, serious or critical; `but` are selectors left out, `off` rules not asked."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "([but, off]) => axe.run({exclude: but.map(one => [one])}, "
            "{resultTypes: ['violations'], rules: Object.fromEntries(off.map(one => [one, {enabled: false}]))})",
            [list(but), list(off)],
        )
        assert found["passes"], "axe has looked at nothing"
        return [
            f"{rule['impact']} {rule['id']}: {node['html'][:160]} {node['failureSummary']}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def cell(self, symbol: str, name: str) -> Any:
        return self.page.locator("#table tbody tr", has_text=symbol).locator(f'[data-cell="{name}"]')


@contextmanager
def chromium() -> Iterator[Browser]:
    """Open a headless Chromium, and let Django's ORM be used beside it."""
    # Playwright's own loop stays alive while the browser does; Django would take it for an asynchronous context.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield opened
        opened.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Any]:
    contexts = []

    def open_page(width: int = 1440, height: int = 900, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        made = Visit(context.new_page())
        made.watch()
        made.page.goto(site.link)
        return made

    yield open_page
    for context in contexts:
        context.close()


def live(visit: Visit) -> None:
    expect(visit.page.locator("#connection")).to_have_attribute("data-state", "live", timeout=20_000)


def test_a_tick_is_seen_to_arrive(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    assert opened.page.url == f"{site.url}/#AAPL.SIMX", "the token has left the address"
    apple = site.market.ids["AAPL.SIMX"]
    site.publisher.quote(apple, 187_140_000_000, 187_160_000_000)
    site.publisher.trade(apple, 187_150_000_000, size=1_234_567 * NANOS)
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("187.15", timeout=20_000)
    expect(opened.cell("AAPL.SIMX", "bid")).to_have_text("187.14")
    expect(opened.cell("AAPL.SIMX", "ask")).to_have_text("187.16")
    expect(opened.cell("AAPL.SIMX", "volume")).to_have_text("1.23M")
    expect(opened.page.locator("#focus-last")).to_have_text("187.15")
    expect(opened.page.locator("#tape tbody tr").first).to_contain_text("187.15")
    expect(opened.page.locator("#chart-legend")).to_contain_text("C 187.15")
    site.publisher.trade(apple, 188_000_000_000)
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("188.00")
    expect(opened.page.locator(f'#table tr[data-id="{apple}"] .arrow')).to_have_attribute("data-direction", "up")
    expect(opened.page.locator("#chart-legend")).to_contain_text("H 188.00")
    expect(opened.cell("EURUSD.SIMX", "last")).to_have_text("–")
    site.publisher.trade(site.market.ids["EURUSD.SIMX"], 1_084_110_000)
    expect(opened.cell("EURUSD.SIMX", "last")).to_have_text("1.08411")
    text = opened.page.inner_text("body")
    assert not [word for word in ("NaN", "undefined", "Invalid Date", "null") if word in text]
    assert opened.problems == []
    assert sum(opened.scripts.values()) < SCRIPT_LIMIT, opened.scripts


def test_every_trade_is_on_the_tape_in_order_though_values_are_conflated(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    apple = site.market.ids["AAPL.SIMX"]
    expect(opened.page.locator("#tape-note")).to_have_text("Waiting for the next trade…")
    for cents in range(50):
        site.publisher.trade(apple, 100 * NANOS + cents * 10_000_000)
    expect(opened.page.locator("#tape tbody tr").first).to_contain_text("100.49", timeout=20_000)
    prices = opened.page.locator("#tape tbody td:nth-child(2)").all_inner_texts()
    assert prices == [f"100.{cents:02d}" for cents in reversed(range(50))]


def test_the_page_is_useful_before_and_without_its_scripts(visit: Any, site: Site) -> None:
    site.publisher.trade(site.market.ids["AAPL.SIMX"], 187_150_000_000)
    desk = Desk.running()
    assert desk is not None
    until(lambda: desk.board.instruments[site.market.ids["AAPL.SIMX"]].last is not None)
    opened = visit(java_script_enabled=False)
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("187.15")
    expect(opened.page.locator("#connection")).to_contain_text("live values need scripts")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1280, 800), (1920, 1080)])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_fits_every_screen(visit: Any, site: Site, width: int, height: int, scheme: str) -> None:
    opened = visit(width, height, color_scheme=scheme)
    live(opened)
    euro, hour_ago = site.market.ids["EURUSD.SIMX"], time.time_ns() - 59 * 60 * NANOS
    site.publisher.quote(euro, 1_084_110_000, 1_084_130_000)
    site.publisher.trade(euro, 1_210_000_000, size=345_678_900 * NANOS)
    site.publisher.trade(euro, 1_084_110_000, ts_event=hour_ago)
    site.publisher.trade(site.market.ids["AAPL.SIMX"], 123_456_780_000_000)
    expect(opened.cell("EURUSD.SIMX", "change")).to_have_text("-10.40%", timeout=20_000)
    expect(opened.cell("EURUSD.SIMX", "age")).to_have_text("59m", timeout=20_000)
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("123,456.78")
    widest = opened.page.evaluate("document.documentElement.scrollWidth")
    assert widest <= width, "no horizontal scroll"
    dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(11, 14, 19)") == (scheme == "dark")
    cut = opened.page.evaluate(
        "[...document.querySelectorAll('#table td, #tape td, .flow dd')].filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.className + ': ' + e.textContent)"
    )
    assert cut == []
    assert opened.problems == []


@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_keeps_nobody_out(visit: Any, site: Site, width: int, height: int, scheme: str) -> None:
    apple = site.market.ids["AAPL.SIMX"]
    source = Source.objects.create(code="feed-one", name="Feed one")
    opened = visit(width, height, color_scheme=scheme)
    live(opened)
    Gap.objects.create(source=source, channel=1, session=1, first=5, last=9)
    for price in (100, 101, 100):
        site.publisher.trade(apple, price * NANOS)
    expect(opened.page.locator("#tape tbody tr:not([hidden])")).to_have_count(3, timeout=20_000)
    expect(opened.page.locator("#events li")).not_to_have_count(0, timeout=20_000)
    assert opened.barriers() == []
    opened.page.keyboard.press("?")
    expect(opened.page.locator("#help")).to_be_visible()
    assert opened.barriers() == []
    opened.page.keyboard.press("Escape")
    opened.page.context.set_offline(True)
    expect(opened.page.locator("#banner")).to_contain_text("Connection lost", timeout=20_000)
    assert opened.barriers() == []


def test_a_lost_connection_is_said_and_the_page_comes_back(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    apple = site.market.ids["AAPL.SIMX"]
    site.publisher.trade(apple, 100 * NANOS)
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("100.00", timeout=20_000)
    opened.page.context.set_offline(True)
    expect(opened.page.locator("#banner")).to_contain_text("Connection lost", timeout=20_000)
    expect(opened.page.locator("body")).to_have_attribute("data-link", "lost")
    for _ in range(3):
        site.publisher.trade(apple, 101 * NANOS)
    opened.page.context.set_offline(False)
    live(opened)
    expect(opened.page.locator("#banner")).to_be_hidden()
    expect(opened.cell("AAPL.SIMX", "last")).to_have_text("101.00", timeout=20_000)
    expect(opened.page.locator("#tape tbody tr:not([hidden])")).to_have_count(4)


def test_a_connection_that_the_server_ends_comes_back_by_itself(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    desk = Desk.running()
    assert desk is not None
    for connection in list(desk.identities):
        desk.call(connection.close, 1012, "the service restarts")
    expect(opened.page.locator("#banner")).to_contain_text("the service restarts", timeout=20_000)
    live(opened)
    expect(opened.page.locator("#banner")).to_be_hidden()
    assert opened.problems == []


def test_a_lost_feed_is_said(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    desk = Desk.running()
    assert desk is not None
    reader = desk._readers[0]
    reader.say("reconnecting", "the broker is away")
    banner = opened.page.locator("#banner")
    expect(banner).to_contain_text("lost its broker", timeout=10_000)
    expect(banner).to_be_hidden(timeout=20_000)  # the reader finds its broker well and says so


def test_search_and_keys(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("micro")
    expect(page.locator("#table tbody tr:visible")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("#focus-symbol")).to_have_text("MSFT.SIMX")
    page.keyboard.press("Escape")
    expect(page.locator("#table tbody tr:visible")).to_have_count(3)
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    expect(page.locator("#no-match")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#focus-symbol")).to_have_text("EURUSD.SIMX")
    page.keyboard.press("3")
    expect(page.locator('[data-timeframe="15m"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("#focus-symbol")).to_have_text("EURUSD.SIMX")
    assert opened.problems == []


def test_events_are_text_and_link_into_the_admin(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    evil = Source.objects.create(code="evil-one", name="<img src=x onerror=alert(1)>")
    gap = Gap.objects.create(source=evil, channel=1, session=1, first=5, last=9)
    line = opened.page.locator("#events li", has_text="5 events never came")
    expect(line).to_be_visible(timeout=20_000)
    assert line.locator("a").get_attribute("href") == f"/admin/integration/gap/{gap.pk}/change/"
    assert opened.page.locator("#events img").count() == 0
    assert opened.problems == []


def test_closed_bars_and_their_revisions_are_drawn(visit: Any, site: Site) -> None:
    opened = visit()
    live(opened)
    apple = site.market.ids["AAPL.SIMX"]
    start = time.time_ns() // (60 * NANOS) * 60 * NANOS
    expect(opened.page.locator("#chart-note")).to_contain_text("No bars yet", timeout=20_000)
    site.publisher.bar(apple, "AAPL.SIMX", start, open=10 * NANOS, high=12 * NANOS, low=9 * NANOS, close=11 * NANOS)
    expect(opened.page.locator("#chart-legend")).to_contain_text("H 12.00", timeout=20_000)
    site.publisher.bar(
        apple,
        "AAPL.SIMX",
        start,
        open=10 * NANOS,
        high=13 * NANOS,
        low=9 * NANOS,
        close=11 * NANOS,
        revision=2,
        reason="late_trade",
    )
    expect(opened.page.locator("#chart-legend")).to_contain_text("H 13.00", timeout=20_000)
    assert opened.problems == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_refusal_and_the_login_page_are_clean(browser: Browser, site: Site, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    opened = Visit(context.new_page())
    opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.page.goto(f"{site.url}/?token=wrong")
    expect(opened.page.locator("h1")).to_contain_text("no longer opens")
    assert opened.barriers() == []
    opened.page.click("text=sign in with an account")
    expect(opened.page.locator("button")).to_have_text("Sign in")
    assert opened.barriers() == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.problems == []
    context.close()
