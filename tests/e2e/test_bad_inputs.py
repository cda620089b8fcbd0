"""Bad inputs through the real broker into the real command: each has its code and its bytes, neighbours are stored, the service lives."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from pytest_django import DjangoDbBlocker

from config.embedded import endpoints, topology
from integration.market.ticks import FLAG_LATE
from integration.models import QuarantinedEvent, Trade
from tests.e2e.events import SECOND, arrow, distributed, normalized, quote, trade
from tests.e2e.world import build_world, empty_tables, until
from tests.faults.processes import Runner, environment
from tests.stack import PARTITIONS, PulsarNamespace, session_folder

pytestmark = pytest.mark.django_db
NOW = time.time_ns()
DAY = 86_400 * SECOND
STORED = "stored"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Case:
    """One bad input: its number in the list of threats, what it is, the bytes, and what must become of it."""

    name: str
    data: bytes
    expected: str
    properties: dict[str, str] = field(default_factory=dict)
    has_key: bool = True


class Numbers:
    """Gives every event a sequence of its own, so that only what is meant to repeat repeats."""

    def __init__(self) -> None:
        self.last = 1000

    def __call__(self) -> int:
        self.last += 1
        return self.last


n = Numbers()


def t(**values: Any) -> bytes:
    return trade(values.pop("sequence", None) or n(), **{"ts": NOW, **values})


def at(text: Any) -> bytes:
    return distributed(n(), ts=text)


def bar(**values: str) -> bytes:
    return normalized(n(), "ohlc", ts=NOW - NOW % (60 * SECOND), **values)


def replaced(event: bytes, old: str, new: str) -> bytes:
    assert event.count(old.encode()) == 1
    return event.replace(old.encode(), new.encode())


def nested(depth: int) -> bytes:
    return replaced(t(), '"10"', "[" * depth + "]" * depth)


SAME = n()
FLOAT = n()
CASES = [
    Case("E1 empty body", b"", "empty"),
    Case("E2 null", b"null", "unknown_form"),
    Case("E2 a list", b"[]", "unknown_form"),
    Case("E4 empty object", b"{}", "unknown_form"),
    Case("E5 truncated JSON", t()[:-9], "malformed"),
    Case("E5 truncated stream", arrow([1, 2], ts=NOW)[:-50], "arrow_invalid"),
    Case("E5 stream with other columns", arrow([3], ts=NOW).replace(b"trade_id", b"trade_ix"), "arrow_schema"),
    Case("E5 stream without rows", arrow([], ts=NOW), "arrow_rows"),
    Case("E7 byte order mark", b"\xef\xbb\xbf" + t(), "encoding"),
    Case("E8 UTF-16", t().decode().encode("utf-16"), "encoding"),
    Case("E8 not UTF-8", t(instrument="AAA.SIMX").replace(b"AAA", b"\xff\xfe\xfd"), "encoding"),
    Case("E10 NUL in symbol", t(instrument="A\0A.SIMX"), "identifier"),
    Case("E11 duplicate key", replaced(t(), '"price": "10"', '"price": "10", "price": "99"'), "duplicate_key"),
    Case("E13 Infinity", replaced(t(), '"10"', "Infinity"), "number"),
    Case("E13 Infinity as text", t(price="Infinity"), "number"),
    Case("E14 1e400", replaced(t(), '"10"', "1e400"), "number"),
    Case("E14 exponent bomb", t(price="1e500000000"), "number"),
    Case("E16 sNaN", t(price="sNaN"), "number"),
    Case("E16 NaN", replaced(t(), '"10"', "NaN"), "number"),
    Case("E17 -0", replaced(t(), '"10"', "-0"), "number"),
    Case("E17 -0.0 as text", t(price="-0.0"), "number"),
    Case("E17 Arabic digits", t(price="١٢"), "number"),
    Case("E17 ten decimals", t(price="1.0000000001"), "number"),
    Case("E19 zero price", t(price=0), "price_sign"),
    Case("E19 negative price", t(price="-1"), "price_sign"),
    Case("E19 zero size", t(size=0), "size_sign"),
    Case("E20 size 2^63", t(size=2**63), "number"),
    Case("E20 size 2^64", t(size=2**64), "number"),
    Case("E22 0.1 as a number", t(sequence=FLOAT, price=0.1), STORED),
    Case("E22 0.1 as text is the same price", t(sequence=FLOAT, price="0.1"), DUPLICATE),
    Case("E25 bid above ask", quote(n(), "10.02", "10.01", ts=NOW), "crossed"),
    Case("E26 high below low", bar(high="8", low="9"), "bar_invariant"),
    Case("E26 close outside", bar(close="12"), "bar_invariant"),
    Case("E28 a day ahead", t(ts=NOW + DAY), "future"),
    Case("E28 1970", t(ts=0), "ancient"),
    Case("E28 milliseconds as nanoseconds", t(ts=NOW // 10**6), "ancient"),
    Case("E28 nanoseconds as milliseconds", t(ts=NOW * 10**6), "time"),
    Case("E28 negative", t(ts=-1), "time"),
    Case("E28 year 9999", at("9999-12-31T23:59:59Z"), "time"),
    Case("E29 no zone", at("2026-01-05T14:30:00"), "time"),
    Case("E29 +25:00", at("2026-01-05T14:30:00+25:00"), "time"),
    Case("E29 24:00:00", at("2026-01-05T24:00:00Z"), "time"),
    Case("E29 leap second", at("2026-06-30T23:59:60Z"), "time"),
    Case("E29 hour that does not exist", at("2026-03-08T02:30:00"), "time"),
    Case("E29 hour that is there twice", at("2026-11-01T01:30:00"), "time"),
    Case("E31 ISIN check digit", t(instrument="ISIN:US0378331006"), "identifier"),
    Case("E31 FIGI check digit", t(instrument="FIGI:BBG000B9XRY5"), "identifier"),
    Case("E31 pence on a listing in dollars", normalized(n(), currency="GBX", ts=NOW), "currency"),
    Case("E31 currency of another listing", normalized(n(), currency="EUR", ts=NOW), "currency"),
    Case("E31 lower-case MIC", t(instrument="AAA.simx"), "identifier"),
    Case("E32 first of a sequence", t(sequence=SAME), STORED),
    Case("E32 same body again", t(sequence=SAME), DUPLICATE),
    Case("E32 other body", t(sequence=SAME, price="11"), "conflict"),
    Case("E38 bond price in ticks", t(price="101-16+"), "number"),
    Case("E38 bond price as decimal", t(price="101.515625"), STORED),
    Case("E38 yield 1e3", replaced(t(), '"10"', "1e3"), STORED),
    Case("E40 depth 200", nested(200), "too_large"),
    Case("E40 depth 30,000", nested(30_000), "too_large"),
    Case("E41 text of 1 MB", t(event_id="x" * 1_000_000), "too_large"),
    Case("E41 10,000 unknown fields", json.dumps({f"k{i}": i for i in range(10_000)}).encode(), "too_large"),
    Case("E41 1,000 unknown fields", replaced(t(), '"price": "10"', '"price": "10", ' + ", ".join(f'"k{i}": 1' for i in range(1000))), "schema"),
    Case("E44 source of another topic", t(source="elsewhere"), "source_not_bound"),
    Case("E44 source nobody knows", t(source="nobody"), "source_unknown"),
    Case("E44 properties with line breaks", t(), STORED, {"a\r\nb": "c\r\nd: e", "content-type": "x\r\ny"}),
    Case("E44 no key", t(), STORED, {}, False),
    Case("E47 markup", t(instrument="<script>alert(1)</script>.SIMX"), "unknown_instrument"),
    Case("E47 formula", t(instrument='=HYPERLINK("x").SIMX'), "unknown_instrument"),
    Case("E47 terminal escapes", t(instrument="\x1b[31mA.SIMX"), "identifier"),
    Case("E47 forged log line", t(instrument="A\nERROR forged.SIMX"), "identifier"),
    Case("E47 markup where a word is expected", t(conditions=["<script>"]), "schema"),
    Case("E49 three days late", t(ts=NOW - 3 * DAY), STORED),
]  # fmt: skip
NOT_HERE = {"E23", "E34", "E35", "E37", "E43", "E46", "E50"}  # other parts of the service, or no such input


@dataclass
class Judged:
    """What the service made of everything."""

    quarantined: dict[bytes, tuple[str, str]]
    stored: dict[int, int]
    flags: dict[int, int]
    neighbours: list[int]
    exits: list[int]


@pytest.fixture(scope="module")
def space() -> Iterator[PulsarNamespace]:
    made = PulsarNamespace(endpoints(session_folder()), topology.TENANT, f"bad-{uuid4().hex[:12]}")
    topology.ensure_namespace(
        made.admin,
        topology.Namespace(made.tenant, made.name, {"equities": PARTITIONS}, {topology.SERVICE_ROLE: topology.BOTH}),
    )
    yield made
    for client in made.clients:
        client.close()
    topology.delete_namespace(made.admin, made.name)


@pytest.fixture(scope="module")
def judged(
    space: PulsarNamespace,
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Judged:
    """Send every case between two good neighbours, all at once, and wait for the last neighbour."""
    with django_db_blocker.unblock():
        call_command("flush", interactive=False, verbosity=0)
        build_world(space.topic("equities"))
        log = tmp_path_factory.mktemp("bad") / "processes.log"
        runner = Runner("consume_ticks", environment(space.name, space.name), log)
        runner.start()
        try:
            neighbours = send(space)
            until(lambda: Trade.objects.filter(channel=1).count() >= len(neighbours), 90)
            return result(runner, neighbours)
        finally:
            runner.stop()
            call_command("flush", interactive=False, verbosity=0)
            empty_tables()


def send(space: PulsarNamespace) -> list[int]:
    producer = space.client().create_producer(space.topic("equities"))
    neighbours: list[int] = []

    def good() -> None:
        neighbours.append(len(neighbours) + 1)
        producer.send(trade(neighbours[-1], channel=1, ts=NOW), partition_key="AAA.SIMX")

    # One key, so that all pass through one partition in this order.
    good()
    for case in CASES:
        producer.send(case.data, partition_key="AAA.SIMX" if case.has_key else None, properties=case.properties)
        good()
    return neighbours


def result(runner: Runner, neighbours: list[int]) -> Judged:
    runner.has_died()
    rows = Trade.objects.filter(channel=0)
    return Judged(
        {
            bytes(raw): (code, detail)
            for raw, code, detail in QuarantinedEvent.objects.values_list("raw", "code", "detail")
        },
        {sequence: rows.filter(sequence=sequence).count() for sequence in rows.values_list("sequence", flat=True)},
        dict(rows.values_list("sequence", "flags")),
        sorted(Trade.objects.filter(channel=1).values_list("sequence", flat=True)),
        runner.exits,
    )


def sequence_of(data: bytes) -> int:
    return int(json.loads(data)["market_data"]["metadata"]["sequence"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, judged: Judged) -> None:
    if case.expected in (STORED, DUPLICATE):
        assert case.data not in judged.quarantined
        assert judged.stored[sequence_of(case.data)] == 1
    else:
        code, detail = judged.quarantined[case.data]
        assert code == case.expected, detail
        assert detail
        assert "\n" not in detail


def test_every_neighbour_is_stored_once_and_the_service_is_alive(judged: Judged) -> None:
    assert judged.neighbours == list(range(1, len(CASES) + 2))
    assert judged.exits == []


def test_late_event_is_flagged(judged: Judged) -> None:
    (late,) = [sequence_of(case.data) for case in CASES if case.name.startswith("E49")]
    assert judged.flags[late] & FLAG_LATE


def test_nothing_else_was_quarantined_or_stored(judged: Judged) -> None:
    expected = {case.data for case in CASES if case.expected not in (STORED, DUPLICATE)}
    assert judged.quarantined.keys() == expected
    assert judged.stored.keys() == {sequence_of(case.data) for case in CASES if case.expected == STORED}
