"""`analysis_data_ready`: exact out and back, and strict about what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market.bar_events import BarEvent, decode_bar, encode_bar
from integration.market.errors import SkippableError
from integration.market.times import MAX_NS

nanos = st.integers(-(2**63), 2**63 - 1)
bars = st.builds(
    BarEvent,
    instrument_id=st.integers(1, 2**31 - 1),
    symbol=st.sampled_from(["AAPL.XNAS", 'ISIN:US0378331005', '"\\'] ),
    source_id=st.integers(0, 100),
    source=st.sampled_from(["consolidated", "simulated"]),
    timeframe=st.sampled_from(["1m", "5m", "15m", "1h", "4h", "1d"]),
    start=st.integers(0, MAX_NS),
    session_date=st.integers(0, 100_000),
    open=nanos, high=nanos, low=nanos, close=nanos, adjusted_close=nanos,
    volume=st.integers(0, 2**80),
    turnover=st.integers(-(2**120), 2**120),
    trade_count=st.integers(0, 2**31),
    revision=st.integers(1, 1000),
    reason=st.sampled_from(["first", "late_trade", "correction", "cancel", "release", "override", "delivered"]),
    sequence=st.integers(1, 2**63 - 1),
    epoch=st.integers(1, 1000),
    timestamp=st.integers(0, MAX_NS),
    is_partial=st.booleans(), is_final=st.booleans(), validation_passed=st.booleans(),
    factor_version=st.integers(0, 1000),
    quality_score=st.none() | st.floats(0, 1),
    processing_time_ms=st.floats(0, 1e6),
    corporate_actions=st.sampled_from([(), ({"type": "SPLF", "ratio": "4"},)]),
)  # fmt: skip


@given(bars)
def test_a_bar_comes_back(bar: BarEvent) -> None:
    assert decode_bar(encode_bar(bar)) == bar


@given(bars)
def test_any_json_reader_sees_the_contract(bar: BarEvent) -> None:
    document = json.loads(encode_bar(bar))
    assert document["event_id"] == f"bar:{bar.instrument_id}:{bar.source_id}:{bar.timeframe}:{bar.start}:{bar.revision}"
    assert document["analysis_data"]["processing_metadata"]["source"] == bar.source


def sample() -> BarEvent:
    return BarEvent(
        instrument_id=7, symbol="AAPL.XNAS", source_id=0, source="consolidated", timeframe="1m", start=1_767_623_400_000_000_000, session_date=20458,
        open=187_100_000_000, high=187_200_000_000, low=187_050_000_000, close=187_150_000_000, adjusted_close=187_150_000_000,
        volume=1200 * 10**9, turnover=224_550_500_000_000 * 10**9, trade_count=14, revision=1, reason="first", sequence=15, epoch=1,
        timestamp=1_767_623_462_000_000_000, processing_time_ms=1.84,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"revision":1', b'"revision":2'),  # the event_id names another one
        (b'"event_id":"bar:7:', b'"event_id":"bar:8:'),
        (b'"event_id":"bar:7:0:', b'"event_id":"bar:7:'),
        (b'"event_id":"bar:7:0:', b'"event_id":"bar:7:x:'),
        (b'"187.1"', b'"1e2"'),
        (b'"187.1"', b"187.1"),
        (b'"session_date":"2026-01-05"', b'"session_date":"2026-02-30"'),
        (b'"start":"2026', b'"start":"1926'),
        (b'"reason":"first"', b'"reason":"whim"'),
        (b'"epoch":1', b'"epoch":1,"surplus":1'),
        (b'"epoch":1,', b""),
        (b"}", b""),
    ],
)
def test_what_is_no_bar_is_refused(old: bytes, new: bytes) -> None:
    data = encode_bar(sample())
    assert old in data
    with pytest.raises(SkippableError) as caught:
        decode_bar(data.replace(old, new, 1))
    assert caught.value.code == "schema"
