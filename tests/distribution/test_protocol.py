"""What clients may say: strict, bounded, and every refusal has a code."""

import json
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge

from distribution import metrics, protocol


def test_requests_are_read() -> None:
    text = '{"op":"sub","id":7,"ch":"quotes","sym":["A"],"hz":5,"snap":false,"since":{"e":"x","q":12}}'
    expected = protocol.Subscribe(id=7, ch="quotes", sym=["A"], hz=5, snap=False, since=protocol.Since("x", 12))
    assert protocol.read_request(text) == expected
    assert protocol.read_request('{"op":"ack","n":3}') == protocol.Acknowledge(n=3)
    assert protocol.read_request('{"op":"ping"}') == protocol.Ping()
    assert protocol.read_request('{"op":"set","id":1,"ack":9}') == protocol.Configure(id=1, ack=9)
    assert protocol.read_request('{"op":"unsub","id":1,"ch":"trades"}') == protocol.Unsubscribe(id=1, ch="trades")


@pytest.mark.parametrize(
    ("text", "code", "fatal"),
    [
        (None, "malformed", True),
        ("", "malformed", True),
        ("[]", "malformed", True),
        ("{", "malformed", True),
        ("[" * 16_000, "malformed", True),
        ('"' + "x" * protocol.MESSAGE_BYTES_LIMIT + '"', "too_large", True),
        ('"' + "é" * (protocol.MESSAGE_BYTES_LIMIT // 2) + '"', "too_large", True),
        ('{"op":"hello","id":4}', "unknown_op", False),
        ('{"id":4}', "unknown_op", False),
        ('{"op":"sub","id":4,"ch":"quotes","colour":"red"}', "schema", False),
        ('{"op":"sub","id":4,"ch":["quotes"]}', "schema", False),
        ('{"op":"ack","id":4,"n":1.5}', "schema", False),
        ('{"op":"sub","id":4,"ch":"quotes","since":{"e":"x","q":null}}', "schema", False),
    ],
)
def test_what_cannot_be_read_has_a_code(text: str | None, code: str, fatal: bool) -> None:
    with pytest.raises(protocol.ProtocolError) as error:
        protocol.read_request(text)
    assert (error.value.code, error.value.fatal) == (code, fatal)
    if not fatal:
        assert error.value.request == 4
        assert json.loads(protocol.err(error.value))["id"] == 4


def test_an_error_names_no_request_that_it_cannot_name() -> None:
    with pytest.raises(protocol.ProtocolError) as error:
        protocol.read_request('{"op":"hello","id":true}')
    assert error.value.request is None


def test_data_and_snapshot_frames_are_json() -> None:
    frame = json.loads(protocol.data(channel="quotes", frame=3, q=9, delay_ms=12, rows=["[1,2]", "[3,4]"]))
    assert frame == {"t": "data", "ch": "quotes", "f": 3, "q": 9, "ms": 12, "rows": [[1, 2], [3, 4]]}
    assert "ms" not in json.loads(protocol.data(channel="quotes", frame=3, q=9, delay_ms=None, rows=[]))
    snap = json.loads(protocol.snap(channel="trades", q=1, recovered=True, rows=["[1]"]))
    assert snap == {
        "t": "snap",
        "ch": "trades",
        "q": 1,
        "rec": True,
        "cols": list(protocol.COLUMNS["trades"]),
        "rows": [[1]],
    }


def test_the_documentation_names_every_channel_column_operation_code_and_metric() -> None:
    text = (Path(__file__).parents[2] / "docs" / "websocket.md").read_text()
    for channel, columns in protocol.COLUMNS.items():
        assert f"`{channel}`" in text
        assert ", ".join(columns) in text, channel
    codes = [value for name, value in vars(protocol).items() if name.startswith("CLOSE_")]
    assert len(codes) == 6
    for word in (*protocol.OPERATIONS, *codes):
        assert f"`{word}`" in text or f"| {word} |" in text, word
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge):
            (family,) = metric.describe()
            name = family.name + ("_total" if isinstance(metric, Counter) else "")
            assert f"`{name}`" in text
