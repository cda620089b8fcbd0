"""Arrow in and out: what breaks the contract is refused before it is read, a bad row alone, its neighbours flow."""

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from integration.market.errors import SkippableError
from integration.market.events import (
    MAX_STREAM_BYTES,
    MAX_STREAM_ROWS,
    decode,
    decode_numbered_ticks,
    encode_numbered_ticks,
    encode_ticks_stream,
    row_bytes,
)
from integration.market.identifiers import identity_hash
from integration.market.tick_streams import SCHEMA_IN, _batch_header
from integration.market.ticks import TICK_COLUMNS, UNREADABLE, Message, Rejection, Ticks
from integration.market.units import MAX_NANOS
from tests.integration.market.wire import PUBLISHED, TIME, message, outcomes, quote_3, trade_2

METADATA = {"version": "1", "source": "simulated", "channel": "1", "session": "20260105"}


def stream(rows: int = 5, *, instruments: list[str] | None = None, first: int = 1, **columns: Any) -> bytes:
    values: dict[str, Any] = {
        "sequence": np.arange(first, first + rows),
        "kind": np.ones(rows),
        "ts_event": np.full(rows, TIME),
        "price": np.arange(1, rows + 1) * 10**9,
        "size": np.full(rows, 10**9),
    }
    names = instruments or ["AAPL.XNAS", "MSFT.XNAS"] * rows
    return encode_ticks_stream(values | columns, names[:rows], source="simulated", channel=1, session=20260105)


def as_message(data: bytes) -> Message:
    return Message(data, PUBLISHED, PUBLISHED + 1)


def table(data: bytes) -> pa.Table:
    return ipc.open_stream(data).read_all()


def written(content: pa.Table | list[pa.RecordBatch], schema: pa.Schema | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    schema = schema or (content.schema if isinstance(content, pa.Table) else content[0].schema)
    with ipc.new_stream(sink, schema, options=ipc.IpcWriteOptions(**options)) as writer:
        for batch in content.to_batches() if isinstance(content, pa.Table) else content:
            writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def only_rejection(data: bytes) -> Rejection:
    (outcome,) = outcomes([as_message(data)]).values()
    assert isinstance(outcome, Rejection)
    return outcome


def test_a_stream_becomes_rows() -> None:
    found = outcomes([as_message(stream(3, first=7))])
    assert list(found) == [(0, 0), (0, 1), (0, 2)]
    row = found[0, 1]
    expected = dict.fromkeys(TICK_COLUMNS, 0) | {
        "kind": 1, "channel": 1, "session": 20260105, "sequence": 8, "ts_event": TIME, "ts_publish": PUBLISHED, "price": 2 * 10**9,
        "size": 10**9, "row": 1, "instrument": "MSFT.XNAS", "source": "simulated", "currency": "",
    }  # fmt: skip
    assert row == expected


def test_columns_are_ours_and_typed() -> None:
    decoded = decode([as_message(stream())])
    for name, column in decoded.ticks.columns():
        assert column.dtype == TICK_COLUMNS[name]
        assert column.flags.writeable
        assert column.flags.aligned
    assert decoded.instrument.dtype == "int32"


def test_streams_and_json_keep_their_order() -> None:
    decoded = decode([message(trade_2()), as_message(stream(2)), message(quote_3()), as_message(stream(2, first=9))])
    assert decoded.ticks.message.tolist() == [0, 1, 1, 2, 3, 3]
    assert decoded.ticks.sequence.tolist() == [43, 1, 2, 7, 9, 10]
    assert [decoded.instruments[place] for place in decoded.instrument] == [
        "AAPL.XNAS", "AAPL.XNAS", "MSFT.XNAS", "EURUSD.SIMX", "AAPL.XNAS", "MSFT.XNAS",
    ]  # fmt: skip
    assert [decoded.currencies[place] for place in decoded.currency] == ["", "", "", "USD", "", ""]


def test_several_record_batches_are_one_stream() -> None:
    whole = table(stream(6))
    data = written(whole.slice(0, 2).to_batches() + whole.slice(2, 4).to_batches())
    decoded = decode([as_message(data)])
    assert decoded.ticks.sequence.tolist() == [1, 2, 3, 4, 5, 6]
    assert decoded.ticks.row.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_largest_stream_is_taken_and_one_row_more_is_not() -> None:
    assert (
        len(decode([as_message(stream(MAX_STREAM_ROWS, instruments=["A.XNAS"] * MAX_STREAM_ROWS))]).ticks)
        == MAX_STREAM_ROWS
    )
    more = MAX_STREAM_ROWS + 1
    assert only_rejection(stream(more, instruments=["A.XNAS"] * more)).code == "arrow_rows"


def replaced(metadata: dict[str, str]) -> bytes:
    return written(table(stream()).replace_schema_metadata(metadata))


def field_as(name: str, kind: pa.DataType, nullable: bool = False) -> bytes:
    whole = table(stream())
    position = whole.schema.get_field_index(name)
    return written(whole.set_column(position, pa.field(name, kind, nullable), whole.column(name).cast(kind)))


def nulls() -> bytes:
    columns = [pa.array([None if name == "price" else value], kind) for name, kind, value in one_row()]
    return written([pa.RecordBatch.from_arrays(columns, schema=SCHEMA_IN.with_metadata(METADATA))])


def one_row() -> list[tuple[str, pa.DataType, Any]]:
    return [(field.name, field.type, "A.XNAS" if field.name == "instrument" else 1) for field in SCHEMA_IN]


def patched_offsets(data: bytes) -> bytes:
    good = np.array([0, 9, 18, 27, 36], np.int32).tobytes()
    assert data.count(good) == 1
    return data.replace(good, np.array([0, 9, 2_000_000_000, 27, 36], np.int32).tobytes())


def not_utf8() -> bytes:
    return stream(4).replace(b"AAPL.XNASMSFT", b"AAPL\xffXNASMSFT")


def claimed_rows(claim: int) -> bytes:
    # the length of the batch is the only int64 of this value in front of the body
    data = stream(77, instruments=["A.XNAS"] * 77)
    at = data.index((77).to_bytes(8, "little"))
    return data[:at] + claim.to_bytes(8, "little") + data[at + 8 :]


def dictionary() -> bytes:
    return field_as("instrument", pa.dictionary(pa.int32(), pa.utf8()))


def renamed() -> bytes:
    whole = table(stream())
    return written(whole.rename_columns(["number" if name == "sequence" else name for name in whole.column_names]))


def messages(data: bytes) -> list[bytes]:
    reader = ipc.MessageReader.open_stream(data)
    found = []
    while True:
        try:
            found.append(reader.read_next_message().serialize().to_pybytes())
        except StopIteration:
            return found


def with_dictionary_message() -> bytes:
    schema, batch = messages(stream())
    smuggled = messages(dictionary())[1]
    return schema + smuggled + batch + stream()[-8:]


def schema_twice() -> bytes:
    schema, batch = messages(stream())
    return schema + batch + schema + batch + stream()[-8:]


def broken_schema() -> bytes:
    data = stream()
    return data[:8] + b"\0" * 200 + data[208:]


def only_schema_message_missing() -> bytes:
    return messages(stream())[1] + stream()[-8:]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing behind the prefix": (lambda: b"\xff\xff\xff\xff", "arrow_invalid"),
    "only an end": (lambda: b"\xff\xff\xff\xff\0\0\0\0", "arrow_invalid"),
    "cut off": (lambda: stream()[:-20], "arrow_invalid"),
    "cut off between batches": (lambda: stream()[:-8], "arrow_invalid"),
    "cut off early": (lambda: stream()[:30], "arrow_invalid"),
    "a dictionary message": (with_dictionary_message, "arrow_schema"),
    "a second schema": (schema_twice, "arrow_schema"),
    "a broken schema": (broken_schema, "arrow_invalid"),
    "no schema": (only_schema_message_missing, "arrow_invalid"),
    "bytes behind the end": (lambda: stream() + b"more", "arrow_invalid"),
    "two streams": (lambda: stream() * 2, "arrow_invalid"),
    "too many bytes": (lambda: stream() + b"\0" * MAX_STREAM_BYTES, "too_large"),
    "no rows": (lambda: written([table(stream()).to_batches()[0].slice(0, 0)]), "arrow_rows"),
    "no batches": (lambda: written([], SCHEMA_IN.with_metadata(METADATA)), "arrow_rows"),
    "no metadata": (lambda: written(table(stream()).replace_schema_metadata(None)), "arrow_schema"),
    "no source": (lambda: replaced({key: value for key, value in METADATA.items() if key != "source"}), "arrow_schema"),
    "surplus metadata": (lambda: replaced(METADATA | {"pandas": "{}"}), "arrow_schema"),
    "version 2": (lambda: replaced(METADATA | {"version": "2"}), "unsupported_version"),
    "a source that cannot be": (lambda: replaced(METADATA | {"source": "Simulated!"}), "arrow_schema"),
    "a channel that is no number": (lambda: replaced(METADATA | {"channel": "one"}), "arrow_schema"),
    "a channel with a zero in front": (lambda: replaced(METADATA | {"channel": "01"}), "arrow_schema"),
    "a channel out of range": (lambda: replaced(METADATA | {"channel": str(2**31)}), "arrow_schema"),
    "a session out of range": (lambda: replaced(METADATA | {"session": str(2**63)}), "arrow_schema"),
    "a session of a thousand digits": (lambda: replaced(METADATA | {"session": "1" * 1000}), "arrow_schema"),
    "a column renamed": (renamed, "arrow_schema"),
    "a column missing": (lambda: written(table(stream()).drop_columns(["size"])), "arrow_schema"),
    "columns in other order": (lambda: written(table(stream()).select(SCHEMA_IN.names[::-1])), "arrow_schema"),
    "a wider type": (lambda: field_as("kind", pa.int64()), "arrow_schema"),
    "a float price": (lambda: field_as("price", pa.float64()), "arrow_schema"),
    "a nullable column": (lambda: field_as("price", pa.int64(), nullable=True), "arrow_schema"),
    "large text": (lambda: field_as("instrument", pa.large_utf8()), "arrow_schema"),
    "a dictionary": (dictionary, "arrow_schema"),
    "compression lz4": (
        lambda: written(table(stream(500, instruments=["A.XNAS"] * 500)), compression="lz4"),
        "arrow_schema",
    ),
    "compression zstd": (
        lambda: written(table(stream(500, instruments=["A.XNAS"] * 500)), compression="zstd"),
        "arrow_schema",
    ),
    "nulls in a column that has none": (nulls, "arrow_invalid"),
    "offsets outside the text": (lambda: patched_offsets(stream(4)), "arrow_invalid"),
    "text that is not UTF-8": (not_utf8, "arrow_invalid"),
    "more rows claimed than sent": (lambda: claimed_rows(60_000), "arrow_invalid"),
    "2^62 rows claimed": (lambda: claimed_rows(2**62), "arrow_invalid"),
    "2^40 rows claimed": (lambda: claimed_rows(2**40), "arrow_invalid"),
    "fewer rows claimed than sent": (lambda: claimed_rows(3), "arrow_invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_stream_that_breaks_the_contract_is_refused_whole(name: str) -> None:
    make, code = REFUSED[name]
    data = make()
    bad, neighbour = as_message(data), as_message(stream(2))
    found = outcomes([neighbour, bad, message(trade_2())])
    rejection = found.pop((1, -1))
    assert isinstance(rejection, Rejection)
    assert rejection.code == code, rejection.detail
    assert (rejection.channel, rejection.session, rejection.sequence) == (UNREADABLE, UNREADABLE, identity_hash(data))
    assert sorted(found) == [(0, 0), (0, 1), (2, 0)]


def test_a_refused_stream_names_its_source_when_the_schema_was_good() -> None:
    assert only_rejection(patched_offsets(stream(4))).source == "simulated"


def column(**values: Any) -> dict[str, Any]:
    return {name: np.array([0, value, 0]) for name, value in values.items()}


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "kind 0": ({"kind": np.array([1, 0, 1])}, "schema"),
    "kind 3": ({"kind": np.array([1, 3, 1])}, "schema"),
    "action 3": (column(action=3), "schema"),
    "an unknown condition": (column(conditions=1 << 14), "schema"),
    "a trade with an ask": (column(ask_price=1), "schema"),
    "a trade with an ask size": (column(ask_size=1), "schema"),
    "a correction without trade_id": (column(action=1), "schema"),
    "a cancelled quote": ({"kind": np.array([1, 2, 1]), **column(action=2, trade_id=5)}, "schema"),
    "sequence 0": ({"sequence": np.array([1, 0, 3])}, "number"),
    "sequence negative": ({"sequence": np.array([1, -5, 3])}, "number"),
    "trade_id negative": (column(trade_id=-1), "number"),
    "price 9.2e9": (column(price=MAX_NANOS), "number"),
    "price -9.2e9": (column(price=-MAX_NANOS), "number"),
    "price -2^63": (column(price=-(2**63)), "number"),
    "size too large": (column(size=2**63 - 1), "number"),
    "time negative": ({"ts_event": np.array([TIME, -1, TIME])}, "time"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_alone_and_its_bytes_are_a_stream(name: str) -> None:
    columns, code = BAD_ROWS[name]
    bad = as_message(stream(3, **columns))
    found = outcomes([bad])
    assert sorted(found) == [(0, 0), (0, 1), (0, 2)]
    rejection = found[0, 1]
    assert isinstance(rejection, Rejection)
    assert (rejection.code, rejection.row, rejection.source) == (code, 1, "simulated")
    assert isinstance(found[0, 0], dict)
    assert isinstance(found[0, 2], dict)
    (alone,) = outcomes([as_message(row_bytes(bad, 1))]).values()
    assert isinstance(alone, Rejection)
    assert (alone.code, alone.row, alone.instrument, alone.ts_event) == (
        code,
        0,
        rejection.instrument,
        rejection.ts_event,
    )
    if "sequence" not in columns:
        assert (alone.channel, alone.session, alone.sequence) == (1, 20260105, 2)
        assert (rejection.channel, rejection.session, rejection.sequence) == (1, 20260105, 2)


@pytest.mark.parametrize("name", ["", "AAPL", "AAPL.xnas", "A B.XNAS", "ISIN:US0378331006", "é.XNAS"])
def test_a_bad_instrument_is_refused_alone(name: str) -> None:
    decoded = decode([as_message(stream(3, instruments=["A.XNAS", name, "B.XNAS"]))])
    assert [(rejection.row, rejection.code, rejection.instrument) for rejection in decoded.rejections] == [
        (1, "identifier", "")
    ]
    assert [decoded.instruments[place] for place in decoded.instrument] == ["A.XNAS", "B.XNAS"]
    assert decoded.instruments == ["A.XNAS", "B.XNAS"]


def test_rows_without_a_number_of_their_own_have_distinct_stable_identities() -> None:
    bad = as_message(stream(3, sequence=np.zeros(3)))
    first, again = decode([bad]).rejections, decode([bad]).rejections
    assert [rejection.sequence for rejection in first] == [rejection.sequence for rejection in again]
    assert len({rejection.sequence for rejection in first}) == 3
    assert {rejection.channel for rejection in first} == {UNREADABLE}


def test_a_stream_of_bad_rows_has_no_ticks() -> None:
    decoded = decode([as_message(stream(3, kind=np.zeros(3)))])
    assert len(decoded.ticks) == 0
    assert [rejection.row for rejection in decoded.rejections] == [0, 1, 2]


def test_the_bytes_of_a_good_row_decode_to_that_row() -> None:
    whole = as_message(stream(5))
    (row,) = outcomes([as_message(row_bytes(whole, 3))]).values()
    assert isinstance(row, dict)
    assert (row["sequence"], row["price"], row["instrument"]) == (4, 4 * 10**9, "MSFT.XNAS")


def test_the_bytes_of_json_and_of_whole_messages_are_the_message() -> None:
    for event, row in ((message(trade_2()), 0), (message(trade_2()), -1), (as_message(stream()), -1)):
        assert row_bytes(event, row) is event.data


good_rows = st.lists(
    st.tuples(
        st.integers(1, 2**63 - 1),
        st.integers(0, 2**63 - 1),
        *[st.integers(-MAX_NANOS + 1, MAX_NANOS - 1)] * 4,
        st.integers(0, 2**14 - 1),
    ),
    min_size=1,
    max_size=20,
)


@given(good_rows)
@settings(deadline=None)
def test_quotes_come_back_as_they_were_encoded(rows: list[tuple[int, ...]]) -> None:
    names = ("sequence", "ts_event", "price", "size", "ask_price", "ask_size", "conditions")
    columns = {name: np.array([row[number] for row in rows], np.int64) for number, name in enumerate(names)}
    instruments = [f"S{row[0] % 3}.XNAS" for row in rows]
    data = encode_ticks_stream(columns | {"kind": np.full(len(rows), 2)}, instruments, source="s", session=2**63 - 1)
    decoded = decode([as_message(data)])
    assert decoded.rejections == []
    for name in names:
        assert getattr(decoded.ticks, name).tolist() == columns[name].tolist()
    assert [decoded.instruments[place] for place in decoded.instrument] == instruments
    assert set(decoded.ticks.session.tolist()) == {2**63 - 1}


def numbered() -> tuple[Ticks, bytes]:
    rng = np.random.default_rng(1)
    ticks = Ticks.zeros(6)
    for name, values in ticks.columns():
        values[:] = rng.integers(0, 200, 6)
        assert name in TICK_COLUMNS
    ticks.session_date[:] = 20458
    data = encode_numbered_ticks(ticks, epochs=np.full(6, 2), sequences=np.arange(10, 16), batch=7, pub_seq=8, epoch=9)
    return ticks, data


def test_numbered_ticks_come_back() -> None:
    ticks, data = numbered()
    message_ = decode_numbered_ticks(data)
    assert (message_.batch, message_.pub_seq, message_.epoch) == (7, 8, 9)
    assert message_.columns["sequence"].tolist() == [10, 11, 12, 13, 14, 15]
    assert message_.columns["epoch"].tolist() == [2] * 6
    for name in set(message_.columns) - {"sequence", "epoch"}:
        assert message_.columns[name].tolist() == getattr(ticks, name).tolist()


def test_numbered_ticks_show_dates_to_any_client_of_arrow() -> None:
    _, data = numbered()
    assert str(table(data).schema.field("session_date").type) == "date32[day]"
    assert str(table(data).column("session_date")[0]) == "2026-01-05"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff", "arrow_invalid"),
        (stream(), "arrow_schema"),
        (replaced(METADATA | {"version": "2"}), "unsupported_version"),
    ],
)
def test_what_is_no_message_of_numbered_ticks_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(SkippableError) as caught:
        decode_numbered_ticks(data)
    assert caught.value.code == code


@pytest.mark.parametrize("flatbuffer", [b"", b"\0" * 16, b"\4\0\0\0\xff\0\0\0" + b"\0" * 8, b"\xff" * 16])
def test_a_header_that_is_no_flatbuffer_is_refused(flatbuffer: bytes) -> None:
    with pytest.raises((SkippableError, struct.error)):
        _batch_header(flatbuffer)


FUZZ = """
import sys, random
from integration.market.events import decode, row_bytes
from integration.market.ticks import Message
data = sys.stdin.buffer.read()
size = int(sys.argv[1])
streams = [data[at : at + size] for at in range(0, len(data), size)]
for number, item in enumerate(streams):
    message = Message(item, 1, 1)
    decoded = decode([message])
    rows = sorted([*decoded.ticks.row.tolist(), *[rejection.row for rejection in decoded.rejections]])
    assert rows == [-1] or rows == list(range(len(rows))), rows
    if rows != [-1] and decoded.rejections:
        row_bytes(message, decoded.rejections[0].row)
print("survived", len(streams))
"""


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_never_raise_and_never_end_the_process(seed: int) -> None:
    rng = random.Random(seed)
    good = stream(20)
    damaged = []
    for _ in range(800):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(4, len(data)) if rng.random() < 0.5 else rng.randrange(4, 1100)
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        damaged.append(bytes(data))
    child = subprocess.run(
        [sys.executable, "-c", FUZZ, str(len(good))], input=b"".join(damaged), capture_output=True, check=False
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    assert child.stdout.decode().split() == ["survived", "800"]
