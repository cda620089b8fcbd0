"""Time text and nanoseconds, against the standard library where that can follow."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.market.times import MAX_NS, date_from_days, days_from_date, ns_from_text, text_from_ns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(0, MAX_NS))
def test_text_comes_back(ns: int) -> None:
    assert ns_from_text(text_from_ns(ns)) == ns


@given(st.datetimes(datetime(1970, 1, 2), datetime(2262, 4, 10)), st.integers(-840, 840), st.integers(0, 6))  # noqa: DTZ001 - the zone is added
def test_any_offset_agrees_with_the_standard_library(local: datetime, minutes: int, digits: int) -> None:
    local = local.replace(
        microsecond=local.microsecond // 10 ** (6 - digits) * 10 ** (6 - digits),
        tzinfo=timezone(timedelta(minutes=minutes)),
    )
    sign, magnitude = "-" if minutes < 0 else "+", abs(minutes)
    fraction = f".{local.microsecond:06d}"[: digits + 1] if digits else ""
    text = f"{local:%Y-%m-%dT%H:%M:%S}{fraction}{sign}{magnitude // 60:02d}:{magnitude % 60:02d}"
    assert ns_from_text(text) == (local - EPOCH) // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-01-05", "2026-01-05T14:30:00", "2026-01-05 14:30:00Z", "2026-01-05T14:30Z", "2026-01-05T14:30:00z", "2026-01-05T14:30:60Z",
        "2026-01-05T24:00:00Z", "2026-01-05T14:60:00Z", "2026-02-29T00:00:00Z", "2026-00-01T00:00:00Z", "2026-13-01T00:00:00Z",
        "2026-04-31T00:00:00Z", "0000-01-01T00:00:00Z", "1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00+00:01",
        "2262-04-11T23:47:16.854775808Z", "9999-12-31T23:59:59Z", "2026-01-05T14:30:00+14:01", "2026-01-05T14:30:00-14:01",
        "2026-01-05T14:30:00+25:00", "2026-01-05T14:30:00+0530", "2026-01-05T14:30:00+05", "2026-01-05T14:30:00+05:60",
        "2026-01-05T14:30:00.Z", "2026-01-05T14:30:00.0000000000Z", "2026-01-05T14:30:00,5Z", "2026-01-05T14:30:00Z ", "2026-01-05T14:30:00Z\n",
        "２026-01-05T14:30:00Z", "+2026-01-05T14:30:00Z", "20260105T143000Z", "1767623400", "now",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"was|absolute|negative zero|month|day|year|outside"):
        ns_from_text(text)


@pytest.mark.parametrize("ns", [-1, MAX_NS + 1])
def test_text_needs_a_time_in_range(ns: int) -> None:
    with pytest.raises(ValueError, match=f"^outside 1970 to 2262, was {ns} ns$"):
        text_from_ns(ns)


def test_the_borders() -> None:
    assert ns_from_text("1970-01-01T00:00:00Z") == ns_from_text("1970-01-01T14:00:00+14:00") == 0
    assert ns_from_text("2262-04-11T23:47:16.854775807Z") == MAX_NS


def test_days() -> None:
    assert days_from_date(date(2026, 1, 5)) == 20458
    assert date_from_days(20458) == date(2026, 1, 5)
