"""The desk's pages without a browser: who gets in, what the server renders, the bars, and the stored state they start from."""

import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from distribution import selectors
from distribution.access import is_same_origin
from distribution.board import MINUTE_NS, Board, reduce_ticks
from distribution.views import spark_points
from integration.market.ticks import CONDITION_BITS, FLAG_CANCEL
from integration.market.units import NANOS
from integration.models import (
    Alert,
    Bar,
    Batch,
    Gap,
    InstrumentStatus,
    OutgoingMessage,
    Position,
    QuarantinedEvent,
    SequencerState,
    Source,
    Subscription,
    Venue,
)
from integration.slices import SliceMap
from tests.distribution.conftest import TOKEN, Market
from tests.distribution.test_board import columns, trade

STRICT = "default-src 'none'"


def test_the_links_token_is_exchanged_for_a_session_and_leaves_the_address(
    client: Client, market: Market, settings: Any
) -> None:
    settings.ACCESS_TOKEN = TOKEN
    answer = client.get("/", {"token": TOKEN})
    assert (answer.status_code, answer["Location"]) == (302, "/")
    page = client.get("/")
    assert page.status_code == 200
    assert page.context["user"].username == "desk"
    assert not page.context["user"].is_staff


@pytest.mark.parametrize("token", ["wrong", "", TOKEN + "x", "é", "\0"])
def test_a_wrong_token_is_refused_with_the_way_out(client: Client, db: None, settings: Any, token: str) -> None:
    settings.ACCESS_TOKEN = TOKEN
    answer = client.get("/", {"token": token})
    assert answer.status_code == 403
    assert b"make run" in answer.content
    assert client.get("/").status_code == 302


def test_no_token_set_means_no_link_works(client: Client, db: None, settings: Any) -> None:
    settings.ACCESS_TOKEN = ""
    assert client.get("/", {"token": ""}).status_code == 403


def test_without_a_session_the_login_page_opens(client: Client, db: None) -> None:
    answer = client.get("/", follow=True)
    assert answer.status_code == 200
    assert answer.redirect_chain == [("/login/?next=/", 302)]
    assert b"password" in answer.content
    get_user_model().objects.create_user("ada", password="right-horse")
    wrong = client.post("/login/", {"username": "ada", "password": "wrong"})
    assert b"do not belong together" in wrong.content
    assert client.post("/login/", {"username": "ada", "password": "right-horse", "next": "/"})["Location"] == "/"
    assert (
        client.post("/login/", {"username": "ada", "password": "right-horse", "next": "//evil.example"})["Location"]
        == "/"
    )


def test_signing_out_ends_the_session(signed_in: Client, market: Market) -> None:
    assert signed_in.get("/").status_code == 200
    assert signed_in.post("/logout/").status_code == 302
    assert signed_in.get("/").status_code == 302


@pytest.mark.parametrize("path", ["/", "/login/", "/?token=wrong", "/api/desk/bars"])
def test_every_page_of_ours_has_the_strict_policy_and_no_inline_script(
    signed_in: Client, market: Market, path: str
) -> None:
    answer = signed_in.get(path)
    policy = answer["Content-Security-Policy"]
    assert policy.startswith(STRICT)
    assert "unsafe" not in policy
    text = answer.content.decode()
    assert " style=" not in text
    assert " on" + "click" not in text
    for piece in text.split("<script")[1:]:
        assert "src=" in piece.split(">")[0] or 'type="application/json"' in piece.split(">")[0]


def test_the_admin_alone_may_evaluate(client: Client, db: None) -> None:
    policy = client.get("/admin/login/")["Content-Security-Policy"]
    assert "'unsafe-eval'" in policy
    assert "default-src 'none'" in policy


def test_the_table_is_rendered_by_the_server_and_what_feeds_say_is_escaped(signed_in: Client, market: Market) -> None:
    venue = Venue.objects.get(mic="SIMX")
    market.add("EVIL", "<script>alert(1)</script>", venue)
    text = signed_in.get("/").content.decode()
    for symbol in ("AAPL.SIMX", "MSFT.SIMX", "EURUSD.SIMX", "EVIL.SIMX"):
        assert f"<b>{symbol}</b>" in text
    assert "<script>alert" not in text
    assert "CANARY" not in text
    assert "simulated" in text
    assert "NaN" not in text


def test_a_page_without_instruments_says_what_to_do(signed_in: Client) -> None:
    text = signed_in.get("/").content.decode()
    assert "There are no instruments yet." in text
    assert "DEMO=1" in text


def bar(instrument: int, start: int, **facts: Any) -> Bar:
    length = {"1m": MINUTE_NS, "5m": 5 * MINUTE_NS, "1d": 1440 * MINUTE_NS}[facts.get("timeframe", "1m")]
    values: dict[str, Any] = {
        "timeframe": "1m",
        "end": start + length,
        "revision": 1,
        "reason": "first",
        "session_date": datetime.fromtimestamp(start / 1e9, UTC).date(),
        "open": Decimal(10),
        "high": Decimal(12),
        "low": Decimal(9),
        "close": Decimal(11),
        "volume": Decimal(100),
        "turnover": Decimal(1050),
        "trade_count": 5,
        "first_ts": start,
        "last_ts": start + 1,
        "pub_seq": 1,
    }
    return Bar.objects.create(instrument_id=instrument, start=start, **values | facts)


def test_bars_are_ascending_unique_and_the_newest_revision(signed_in: Client, market: Market) -> None:
    apple = market.ids["AAPL.SIMX"]
    start = time.time_ns() // MINUTE_NS * MINUTE_NS
    for minutes in (3, 1, 2):
        bar(apple, start - minutes * MINUTE_NS)
    bar(apple, start - 2 * MINUTE_NS, revision=2, reason="late_trade", close=Decimal("11.5"))
    bar(apple, start - 2 * MINUTE_NS, source_id=4)
    answer = signed_in.get("/api/desk/bars", {"instrument": str(apple), "timeframe": "1m", "limit": "2"}).json()
    assert [row[0] for row in answer["bars"]] == [start - 2 * MINUTE_NS, start - MINUTE_NS]
    assert answer["bars"][0][4] == "11.5"
    assert answer["open_start"] <= time.time_ns() < answer["open_end"] + MINUTE_NS


def test_a_bar_that_was_withdrawn_is_no_bar(signed_in: Client, market: Market) -> None:
    apple = market.ids["AAPL.SIMX"]
    start = time.time_ns() // MINUTE_NS * MINUTE_NS
    bar(apple, start - 2 * MINUTE_NS)
    bar(apple, start - MINUTE_NS, close=Decimal(12))
    facts = {"volume": Decimal(0), "turnover": Decimal(0), "trade_count": 0, "first_ts": 0, "last_ts": 0}
    bar(apple, start - MINUTE_NS, revision=2, reason="cancel", close=Decimal(12), **facts)
    answer = signed_in.get("/api/desk/bars", {"instrument": str(apple), "timeframe": "1m"}).json()
    assert [row[0] for row in answer["bars"]] == [start - 2 * MINUTE_NS]
    assert selectors.sparklines([apple], time.time_ns()) == {apple: [11 * 10**9]}


def test_a_longer_bar_comes_with_the_minutes_of_the_one_in_the_making(signed_in: Client, market: Market) -> None:
    apple = market.ids["AAPL.SIMX"]
    day = time.time_ns() // (1440 * MINUTE_NS) * 1440 * MINUTE_NS
    bar(apple, day - 1440 * MINUTE_NS, timeframe="1d")
    bar(apple, day)
    bar(apple, day - MINUTE_NS)
    answer = signed_in.get("/api/desk/bars", {"instrument": str(apple), "timeframe": "1d"}).json()
    assert (len(answer["bars"]), answer["open_start"]) == (1, day)
    assert [row[0] for row in answer["minutes"]] == [day]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"instrument": "1", "timeframe": "2m"}, 400, "timeframe"),
        ({"instrument": "x"}, 400, "number"),
        ({"instrument": "١"}, 400, "number"),
        ({"instrument": "1", "limit": "0"}, 400, "number"),
        ({"instrument": "1", "limit": "2001"}, 400, "number"),
        ({"instrument": "9999999999"}, 400, "number"),
        ({"instrument": "2147483647"}, 404, "unknown_instrument"),
    ],
)
def test_wrong_questions_have_clear_answers(signed_in: Client, query: dict[str, str], status: int, code: str) -> None:
    answer = signed_in.get("/api/desk/bars", query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_bars_need_a_session(client: Client, db: None) -> None:
    assert client.get("/api/desk/bars", {"instrument": "1"}).status_code == 401


class Store:
    """Stored batches of trades, as consumers and sequencer leave them."""

    def __init__(self) -> None:
        subscription = Subscription.objects.create(topic="persistent://market-data/normalized/equities")
        self.position = Position.objects.create(partition="equities-partition-0", subscription=subscription)
        self.source = Source.objects.get(code="simulated")
        self.batches = 0
        self.sequence = 0

    def batch(self, rows: list[dict[str, int]], pub_seq: int | None, **facts: Any) -> Batch:
        self.batches += 1
        made = Batch.objects.create(
            id=self.batches, position=self.position, number=self.batches, clock=0, ts_received=0, ts_processed=5_000_000,
            reference_version=1, tick_count=len(rows), pub_seq=pub_seq, **facts,
        )  # fmt: skip
        for row in rows:
            self._trade(row)
        return made

    def _trade(self, row: dict[str, int]) -> None:
        self.sequence += 1
        SliceMap("trade").ensure(np.array([row["ts_event"]], np.int64))
        facts: dict[str, Any] = {
            "ts_publish": row["ts_event"], "source_id": self.source.pk, "channel": 0, "session": 0, "sequence": self.sequence,
            "batch_id": self.batches, "conditions": 0, "flags": 0, "trade_id": 0, "size": NANOS,
            "session_date": datetime.fromtimestamp(row["ts_event"] / 1e9, UTC).date(),
        } | row  # fmt: skip
        names = ", ".join(facts)
        with connection.cursor() as cursor:
            marks = ", ".join(["%s"] * len(facts))
            cursor.execute(f"INSERT INTO integration_trade ({names}) VALUES ({marks})", list(facts.values()))  # noqa: S608


def test_the_stored_state_and_the_stream_on_top_of_it_count_every_trade_once(market: Market) -> None:
    """Closed minutes + trades after them + messages after the last numbered batch = all trades, each once."""
    apple, now = market.ids["AAPL.SIMX"], time.time_ns()
    minute = now // MINUTE_NS * MINUTE_NS
    SequencerState.objects.update_or_create(pk=1, defaults={"epoch": 1, "pub_seq": 2})
    store = Store()
    closed = {"instrument_id": apple, "price": 10 * NANOS, "ts_event": minute - MINUTE_NS}
    fresh = {"instrument_id": apple, "price": 12 * NANOS, "ts_event": minute + 1}
    store.batch([closed, closed], pub_seq=1)
    odd = {**fresh, "price": 99 * NANOS, "conditions": CONDITION_BITS["odd_lot"]}
    cancelled = {**fresh, "price": 98 * NANOS, "flags": FLAG_CANCEL}
    store.batch([fresh, odd, cancelled], pub_seq=2)
    store.batch([{**fresh, "price": 77 * NANOS}], pub_seq=None)  # not numbered yet: its message will come
    bar(apple, minute - MINUTE_NS, volume=Decimal(2), open=Decimal(9), close=Decimal(10), trade_count=2)
    bar(apple, minute - 1440 * MINUTE_NS, timeframe="1d", close=Decimal("9.5"), session_date=date(2020, 1, 1))
    snapshot = selectors.board_snapshot(now)
    state = next(state for state in snapshot.instruments if state.id == apple)
    assert (snapshot.epoch, snapshot.pub_seq) == (1, 2)
    assert (state.last, state.volume) == (12 * NANOS, 4 * NANOS)
    assert (state.reference, state.reference_kind) == (9_500_000_000, "close")
    assert state.minute is not None
    assert (state.minute.start, state.minute.open, state.minute.high, state.minute.trades) == (
        minute,
        12 * NANOS,
        12 * NANOS,
        2,
    )
    board = Board(epoch="e")
    board.load(snapshot)
    session = (datetime.fromtimestamp(minute / 1e9, UTC).date() - date(1970, 1, 1)).days
    message = columns([trade(apple, 6, price=77 * NANOS, ts_event=minute + 1, session_date=session)])
    assert board.apply(reduce_ticks(message), at=now)
    assert (board.instruments[apple].volume, board.instruments[apple].minute.close) == (5 * NANOS, 77 * NANOS)  # type: ignore[union-attr]


def test_the_newest_quote_is_part_of_the_stored_state(market: Market) -> None:
    apple, now = market.ids["AAPL.SIMX"], time.time_ns()
    SequencerState.objects.update_or_create(pk=1, defaults={"epoch": 1, "pub_seq": 1})
    Store().batch([], pub_seq=1)
    SliceMap("quote").ensure(np.array([now], np.int64))
    with connection.cursor() as cursor:
        for sequence, bid in enumerate((10, 11), 1):
            cursor.execute(
                "INSERT INTO integration_quote (ts_event, ts_publish, instrument_id, source_id, channel, session, sequence, batch_id,"
                " conditions, flags, session_date, bid, bid_size, ask, ask_size) VALUES (%s,%s,%s,1,0,0,%s,1,0,0,'2026-01-05',%s,1,%s,2)",
                [now - 1, now - 1, apple, sequence, bid, bid + 1],
            )
    state = next(state for state in selectors.board_snapshot(now).instruments if state.id == apple)
    assert state.quote == (11, 1, 12, 2)


def test_the_watch_counts_every_event_once_and_excludes_the_canary(market: Market, settings: Any) -> None:
    store, second = Store(), 10**9
    canary = Subscription.objects.create(topic=settings.CANARY_TOPIC)
    heartbeat = Position.objects.create(partition="heartbeat", subscription=canary)
    watch = selectors.ServiceWatch()
    options: dict[str, Any] = {"identities": set(), "with_venues": True}
    assert watch.look(1 * second, **options).sample is None
    store.batch([], None, message_count=10)
    Batch.objects.filter(pk=1).update(tick_count=7, rejected_count=1, parked_count=1, duplicate_count=1)
    Batch.objects.create(
        id=99, position=heartbeat, number=1, clock=0, ts_received=0, ts_processed=0, reference_version=1, tick_count=50
    )
    first = watch.look(3 * second, **options).sample
    assert first is not None
    assert (first.received, first.validated, first.stored, first.quarantined, first.sent) == (5.0, 4.5, 3.5, 0.5, 0.0)
    SequencerState.objects.filter(pk=1).update(pub_seq=1)
    Batch.objects.filter(pk=1).update(pub_seq=1)
    OutgoingMessage.objects.create(topic=settings.INTEGRATED_TOPICS["ticks"], epoch=1, number=1, pub_seq=1)
    second_sample = watch.look(4 * second, **options).sample
    assert second_sample is not None
    assert (second_sample.received, second_sample.sent, second_sample.unsent, second_sample.delay_ms) == (0, 0, 1, 5.0)
    OutgoingMessage.objects.update(sent_at=datetime.now(UTC))
    third = watch.look(5 * second, **options).sample
    assert third is not None
    assert (third.sent, third.unsent) == (7, 0)


def test_the_watch_tells_each_thing_once(market: Market) -> None:
    store, apple = Store(), market.ids["AAPL.SIMX"]

    def quarantine(code: str, **facts: Any) -> QuarantinedEvent:
        return QuarantinedEvent.objects.create(
            position=store.position, batch_id=1, code=code, detail="was -1", channel=0, session=0, sequence=1, ts_publish=1,
            ts_received=time.time_ns(), raw=b"{}", instrument="AAPL.SIMX", **facts,
        )  # fmt: skip

    for _ in range(40):
        quarantine("price_sign")
    status = {"instrument_id": apple, "source": store.source, "batch_id": 1}
    InstrumentStatus.objects.create(status="open", ts_event=1, **status)
    watch = selectors.ServiceWatch()

    def look() -> list[tuple[str, str]]:
        return [
            (event.kind, event.text) for event in watch.look(time.time_ns(), identities=set(), with_venues=False).events
        ]

    assert len(look()) == selectors.FIRST_EVENTS, "a first open is no news"
    assert look() == [], "what was there before is not told later"
    quarantine("crossed", state="parked")
    Gap.objects.create(source=store.source, channel=3, session=1, first=10, last=14)
    Alert.objects.create(kind="x", key="y", message="something to know")
    InstrumentStatus.objects.create(status="halted", ts_event=2, **status)
    told = look()
    assert sorted(kind for kind, _ in told) == ["alert", "gap", "parked", "status"]
    assert ("gap", "simulated channel 3: 5 events never came (10 to 14)") in told
    InstrumentStatus.objects.create(status="open", ts_event=3, **status)
    assert [kind for kind, _ in look()] == ["status"]
    for _ in range(100):
        quarantine("future")
    many = look()
    assert many[-1] == ("quarantine", "80 more quarantined events in the same second")
    assert look() == []


def test_alerts_of_one_round_and_kind_are_one_event(market: Market) -> None:
    watch = selectors.ServiceWatch()

    def look() -> list[tuple[str, str, str]]:
        events = watch.look(time.time_ns(), identities=set(), with_venues=False).events
        return [(event.severity, event.text, event.link) for event in events]

    def stale(number: int, **facts: Any) -> Alert:
        partition = f"persistent://a/b/equities-partition-{number}"
        return Alert.objects.create(
            kind="consumer_stale", key=partition, severity="critical", message="nobody", **facts
        )

    assert look() == []
    for number in range(3):
        stale(number)
    late = Alert.objects.create(kind="canary_late", key="canary", severity="critical", message="the canary is 20 s old")
    assert look() == [
        (
            "critical",
            "3 alerts consumer_stale: equities-partition-0, equities-partition-1, equities-partition-2",
            "/admin/integration/alert/",
        ),
        ("critical", "the canary is 20 s old", f"/admin/integration/alert/{late.pk}/change/"),
    ]
    # A later round is other news, and one alone says where.
    one = stale(3)
    link = f"/admin/integration/alert/{one.pk}/change/"
    assert look() == [("critical", "equities-partition-3: nobody", link)]
    assert look() == []
    Alert.objects.filter(pk=one.pk).update(opened_at=datetime.now(UTC) + timedelta(hours=1))
    # A desk that begins later tells the rounds apart by their time.
    first = selectors.ServiceWatch().look(time.time_ns(), identities=set(), with_venues=False).events
    assert [event.text.partition(":")[0] for event in first] == [
        "3 alerts consumer_stale",
        "the canary is 20 s old",
        "equities-partition-3",
    ]
    for number in range(4, 24):
        stale(number)
    ((_, text, _),) = look()
    assert text.startswith("20 alerts consumer_stale: equities-partition-4, ")
    assert (len(text), text[-1]) == (300, "…")


def test_events_link_into_the_admin(market: Market) -> None:
    store = Store()
    gap = Gap.objects.create(source=store.source, channel=3, session=1, first=10, last=14)
    (event,) = selectors.ServiceWatch().look(1, identities=set(), with_venues=False).events
    assert event.link == f"/admin/integration/gap/{gap.pk}/change/"


def test_an_unknown_calendar_claims_nothing(market: Market) -> None:
    Venue.objects.filter(mic="SIMX").update(calendar="NO_SUCH")
    (venue,) = selectors.venue_states(time.time_ns())
    assert (venue.state, venue.changes_at) == ("unknown", None)


def test_spark_points_stay_in_their_box() -> None:
    assert spark_points([5]) == ""
    assert spark_points([1, 2, 3]) == "0.0,20.0 42.0,11.0 84.0,2.0"
    assert spark_points([7, 7]) == "0.0,20.0 84.0,20.0"


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", False),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("null", "127.0.0.1:8000", False),
        ("http://evil.example:8000", "evil.example:8000", False),
        ("http://localhost", "LOCALHOST", True),
    ],
)
def test_the_origin_is_this_host_and_port(origin: str | None, host: str, expected: bool) -> None:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    assert is_same_origin({"headers": headers}) is expected
