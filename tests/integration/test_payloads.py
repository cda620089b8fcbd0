"""Raw bytes made readable, whatever they are."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.payloads import SHOWN_BYTES, readable


def arrow(values: list[int]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"sequence": pa.array(values, pa.int64())}).replace_schema_metadata({"source": "sim"})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@given(st.binary(max_size=300), st.sampled_from(["schema", "poison", "arrow_invalid"]))
def test_never_raises(raw: bytes, code: str) -> None:
    shown = readable(raw, code)
    assert shown.size == len(raw)
    assert len(shown.text) <= SHOWN_BYTES


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_pretty_json_is_the_same_json(value: object) -> None:
    shown = readable(json.dumps(value).encode(), "schema")
    assert shown.form == "JSON"
    assert json.loads(shown.text) == value


def test_numbers_and_repeated_keys_stay_as_written() -> None:
    text = readable(b'{"p":0.10,"p":1e400,"q":NaN,"r":-0}', "number").text
    assert text.split() == ["{", '"p":', "0.10,", '"p":', "1e400,", '"q":', "NaN,", '"r":', "-0", "}"]


def test_deep_and_long_input_is_shown_as_it_is() -> None:
    assert readable(b"[" * 5_000, "too_large").form == "text"
    long = readable(b"x" * (SHOWN_BYTES + 1), "too_large")
    assert long.is_cut
    assert len(long.text) == SHOWN_BYTES


def test_an_arrow_row_is_shown_by_column() -> None:
    shown = readable(arrow([7]), "price_sign")
    assert shown.form == "Arrow"
    assert "source = sim" in shown.text
    assert "sequence  7" in shown.text


@pytest.mark.parametrize("code", ["poison", "arrow_schema", "arrow_invalid", "arrow_rows"])
def test_a_stream_that_was_refused_whole_is_never_decoded(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pa.ipc, "open_stream", lambda *_: pytest.fail("decoded"))
    assert readable(arrow([7]), code).form == "bytes"


def test_bytes_are_a_hex_dump() -> None:
    assert readable(b"\xfeA\n", "encoding").text == "00000000  fe 41 0a" + " " * 39 + "  ·A·"
