"""query_ticks and query_bars: names valid at the time, exact numbers in every format, bars as they were known."""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command

from integration import archive, lake, slices
from integration.models import Bar, Batch, Instrument, InstrumentAlias
from tests.e2e.world import empty_tables
from tests.integration import desk
from tests.integration.ticks import DAY, HOUR, START, add_batch, make_ticks, store

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE = 60_000_000_000


@pytest.fixture(autouse=True)
def place(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    settings.MDI = replace(settings.MDI, lake_url=str(tmp_path / "lake"))
    monkeypatch.setattr(slices, "_FIRST_WIDTH_NS", 6 * HOUR)
    empty_tables()
    lake.forget_versions()
    yield tmp_path
    empty_tables()


def ask(name: str, place: Path, *words: str, form: str = "jsonl") -> bytes:
    output = place / "out"
    call_command(name, *words, "--format", form, "--output", str(output))
    return output.read_bytes()


def two_ticks(instrument: Instrument) -> None:
    ticks = make_ticks(2)
    ticks.instrument_id[:] = instrument.pk
    ticks.ts_event[:] = (START + 5, START + 8 * HOUR)
    ticks.price[:] = (187_150_000_000, -1)
    ticks.size[:] = (100_000_000_000, 2**62)
    store(ticks)


@pytest.mark.parametrize("is_archived", [False, True], ids=["hot", "lake"])
def test_numbers_are_exact_in_every_format(place: Path, is_archived: bool) -> None:
    two_ticks(desk.instrument("AAPL.XNAS"))
    if is_archived:
        archive.archive_day("trade", DAY)
    words = ("AAPL.XNAS", "--from", "2026-01-05", "--to", "2026-01-06", "--columns", "ts_event,price,size")
    texts = [
        {"ts_event": "2026-01-05T00:00:00.000000005Z", "price": "187.15", "size": "100"},
        {"ts_event": "2026-01-05T08:00:00.000000000Z", "price": "-0.000000001", "size": "4611686018.427387904"},
    ]
    assert [orjson.loads(line) for line in ask("query_ticks", place, *words).splitlines()] == texts
    assert list(csv.DictReader(io.StringIO(ask("query_ticks", place, *words, form="csv").decode()))) == texts
    for table in (
        pq.read_table(io.BytesIO(ask("query_ticks", place, *words, form="parquet"))),
        pa.ipc.open_stream(ask("query_ticks", place, *words, form="arrow")).read_all(),
    ):
        assert table.schema.field("price").type == pa.decimal128(19, 9)
        assert table["price"].to_pylist() == [Decimal("187.15"), Decimal("-0.000000001")]
        assert table["ts_event"].cast(pa.int64()).to_pylist() == [START + 5, START + 8 * HOUR]


def test_a_name_means_what_it_named_then(place: Path) -> None:
    old = desk.instrument("OLD.XNAS")
    new = Instrument.objects.create(name="New", asset_class="equities")
    noon = datetime(2026, 1, 5, 6, tzinfo=UTC)
    InstrumentAlias.objects.create(instrument=old, value="X.XNAS", valid_to=noon)
    InstrumentAlias.objects.create(instrument=new, value="X.XNAS", valid_from=noon)
    two_ticks(old)
    two_ticks(new)
    words = ("X.XNAS", "--from", str(START), "--to", str(START + 24 * HOUR), "--columns", "instrument_id,ts_event")
    found = [orjson.loads(line) for line in ask("query_ticks", place, *words).splitlines()]
    assert [(row["instrument_id"], row["ts_event"][11:13]) for row in found] == [(old.pk, "00"), (new.pk, "08")]


def test_what_cannot_be_answered_leaves_no_file(place: Path) -> None:
    desk.instrument("AAPL.XNAS")
    span = ("--from", "2026-01-05", "--to", "2026-01-06")
    with pytest.raises(CommandError, match="no instrument"):
        ask("query_ticks", place, "NOBODY.XNAS", *span)
    with pytest.raises(CommandError, match="column"):
        ask("query_ticks", place, "AAPL.XNAS", *span, "--columns", "colour")
    assert not list(place.glob("out*"))


def bar(instrument: Instrument, revision: int, close: str, pub_seq: int) -> None:
    Bar.objects.create(
        instrument_id=instrument.pk, timeframe="1m", start=START, end=START + MINUTE, revision=revision, reason="first", session_date=DAY,
        open=Decimal(1), high=Decimal(9), low=Decimal(1), close=Decimal(close), volume=Decimal("5.5"), turnover=Decimal("0.000000000000000001"),
        trade_count=1, first_ts=START, last_ts=START, pub_seq=pub_seq,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("revision", "close"),
    [
        (["first"], "2"),
        (["final"], "4"),
        (["asof", str(START + 10)], "2"),
        (["asof", str(START + 20)], "3"),
        (["asof", str(START + 29)], "3"),
        (["asof", str(START + 30)], "4"),
        (["asof", str(START + 9)], None),
    ],
)
def test_bars_as_first_published_as_known_and_as_they_are(place: Path, revision: list[str], close: str | None) -> None:
    instrument = desk.instrument("AAPL.XNAS")
    bar(instrument, 0, "1", 1)  # held without a price: never published
    for number, price in ((1, "2"), (2, "3"), (3, "4")):
        add_batch(number, processed=START + number * 10)
        Batch.objects.filter(pk=number).update(pub_seq=number)
        bar(instrument, number, price, number)
    words = ("AAPL.XNAS", "--from", "2026-01-05", "--to", "2026-01-06", "--revision", *revision)
    rows = [orjson.loads(line) for line in ask("query_bars", place, *words).splitlines()]
    assert [row["close"] for row in rows] == ([close] if close else [])
    if rows:
        assert (rows[0]["volume"], rows[0]["turnover"]) == ("5.5", "0.000000000000000001")
    assert pq.read_table(io.BytesIO(ask("query_bars", place, *words, form="parquet"))).num_rows == len(rows)
