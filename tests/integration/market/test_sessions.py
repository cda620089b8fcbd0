"""Sessions: which trading day a time belongs to, whether the venue is open, where bars start and end."""

import subprocess
import sys
from datetime import date, timedelta
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration import bar_kernel
from integration.market.sessions import DAY, HOUR, MINUTE, SECOND, TIMEFRAMES, SessionTable, session_table

ALWAYS = SessionTable.of_always_open()
NEW_YORK = session_table("XNYS", first_year=2024, last_year=2026)
CHICAGO = session_table("CMES", first_year=2024, last_year=2026)
FIVE_DAYS = session_table("24/5", first_year=2024, last_year=2026)
HONG_KONG = session_table("XHKG", first_year=2024, last_year=2026)
TABLES = {"always": ALWAYS, "XNYS": NEW_YORK, "CMES": CHICAGO, "24/5": FIVE_DAYS, "XHKG": HONG_KONG}


def at(*texts: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(texts, "datetime64[ns]").astype(np.int64)


def ns(text: str) -> int:
    return int(at(text)[0])


def day(table: SessionTable, text: str) -> str:
    return str(table.session_dates(at(text)).astype("datetime64[D]")[0])


def span(table: SessionTable, text: str, timeframe: str) -> tuple[str, str]:
    start, end = table.bar_starts(at(text), timeframe)
    return str(start.astype("datetime64[ns]")[0])[:16], str(end.astype("datetime64[ns]")[0])[:16]


@pytest.mark.parametrize(
    ("name", "ts", "expected"),
    [
        ("XNYS", "2026-01-05T14:30:00", "2026-01-05"),  # the open
        ("XNYS", "2026-01-05T09:00:00", "2026-01-05"),  # pre-market
        ("XNYS", "2026-01-06T00:59:00", "2026-01-05"),  # after hours, the next UTC date
        ("XNYS", "2026-01-06T04:59:59.999999999", "2026-01-05"),
        ("XNYS", "2026-01-06T05:00:00", "2026-01-06"),  # local midnight
        ("XNYS", "2026-01-10T12:00:00", "2026-01-12"),  # Saturday: the next trading day
        ("XNYS", "2025-12-25T15:00:00", "2025-12-26"),  # a holiday likewise
        ("XNYS", "2026-07-07T03:59:59", "2026-07-06"),  # summer: midnight is 04:00 UTC
        ("XNYS", "2026-07-07T04:00:00", "2026-07-07"),
        ("XNYS", "2026-03-09T03:59:59", "2026-03-09"),  # the Sunday on which clocks changed belongs to Monday
        ("XNYS", "2026-03-10T04:00:00", "2026-03-10"),
        ("CMES", "2026-01-05T22:59:59", "2026-01-05"),
        ("CMES", "2026-01-05T23:00:00", "2026-01-06"),  # 17:00 Chicago: the next session
        ("CMES", "2026-01-09T23:00:00", "2026-01-12"),  # Friday evening: Monday
        ("CMES", "2026-01-11T23:00:00", "2026-01-12"),  # Sunday open
        ("CMES", "2026-07-06T22:00:00", "2026-07-07"),  # summer
        ("24/5", "2026-01-09T23:59:59", "2026-01-09"),
        ("24/5", "2026-01-10T00:00:00", "2026-01-12"),
        ("XHKG", "2026-01-05T15:59:59", "2026-01-05"),
        ("XHKG", "2026-01-05T16:00:00", "2026-01-06"),  # midnight in Hong Kong
        ("always", "2026-01-10T23:59:59.999999999", "2026-01-10"),
        ("always", "2026-01-11T00:00:00", "2026-01-11"),
        ("XNYS", "1999-06-01T12:00:00", "1999-06-01"),  # outside the table: the UTC date
        ("XNYS", "2027-01-01T05:00:00", "2027-01-01"),
    ],
)
def test_session_dates(name: str, ts: str, expected: str) -> None:
    assert day(TABLES[name], ts) == expected
    assert TABLES[name].session_dates(at(ts)).dtype == np.int32


@pytest.mark.parametrize(
    ("name", "ts", "state"),
    [
        ("XNYS", "2026-01-05T14:29:59.999999999", "closed"),
        ("XNYS", "2026-01-05T14:30:00", "open"),
        ("XNYS", "2026-01-05T20:59:59.999999999", "open"),
        ("XNYS", "2026-01-05T21:00:00", "closed"),
        ("XNYS", "2025-11-28T17:59:59", "open"),  # half day
        ("XNYS", "2025-11-28T18:00:00", "closed"),
        ("XNYS", "2026-03-06T14:29:00", "closed"),  # before the clocks change
        ("XNYS", "2026-03-09T13:30:00", "open"),  # after
        ("XNYS", "2026-01-10T15:00:00", "closed"),
        ("XNYS", "2024-01-02T04:59:59.999999999", "unknown"),  # the table begins at the midnight of its first session
        ("XNYS", "2024-01-02T05:00:00", "closed"),
        ("XNYS", "2030-01-01T15:00:00", "unknown"),
        ("CMES", "2026-01-05T23:00:00", "open"),
        ("CMES", "2026-01-10T12:00:00", "closed"),
        ("24/5", "2026-01-10T00:00:00", "closed"),
        ("always", "2050-01-01T00:00:00", "open"),
    ],
)
def test_state(name: str, ts: str, state: str) -> None:
    assert TABLES[name].state(ns(ts)) == state
    assert TABLES[name].is_open(at(ts)).tolist() == [state == "open"]


@pytest.mark.parametrize(
    ("name", "ts", "change"),
    [
        ("XNYS", "2026-01-05T12:00:00", "2026-01-05T14:30:00"),
        ("XNYS", "2026-01-05T14:30:00", "2026-01-05T21:00:00"),
        ("XNYS", "2026-01-09T21:00:00", "2026-01-12T14:30:00"),
        ("CMES", "2026-01-05T12:00:00", "2026-01-09T23:00:00"),  # days that touch are one long opening
        ("CMES", "2026-01-10T12:00:00", "2026-01-11T23:00:00"),
        ("24/5", "2026-01-07T12:00:00", "2026-01-10T00:00:00"),
    ],
)
def test_next_change(name: str, ts: str, change: str) -> None:
    assert TABLES[name].next_change(ns(ts)) == ns(change)


@pytest.mark.parametrize(
    ("name", "ts"), [("always", "2026-01-05"), ("XNYS", "2027-06-01"), ("XNYS", "2026-12-31T21:00:00")]
)
def test_no_change_is_known(name: str, ts: str) -> None:
    assert TABLES[name].next_change(ns(ts)) is None


@pytest.mark.parametrize(
    ("name", "ts", "timeframe", "start", "end"),
    [
        ("XNYS", "2026-01-05T14:31:59", "1m", "2026-01-05T14:31", "2026-01-05T14:32"),
        ("XNYS", "2026-01-05T14:34:59", "5m", "2026-01-05T14:30", "2026-01-05T14:35"),
        ("XNYS", "2026-01-05T14:44:59", "15m", "2026-01-05T14:30", "2026-01-05T14:45"),
        ("XNYS", "2026-01-05T14:30:00", "1h", "2026-01-05T14:30", "2026-01-05T15:30"),
        ("XNYS", "2026-01-05T15:29:59", "1h", "2026-01-05T14:30", "2026-01-05T15:30"),
        ("XNYS", "2026-01-05T20:59:59", "1h", "2026-01-05T20:30", "2026-01-05T21:00"),  # cut at the close
        ("XNYS", "2026-01-05T21:00:00", "1h", "2026-01-05T21:00", "2026-01-05T21:30"),
        ("XNYS", "2026-01-05T21:30:00", "1h", "2026-01-05T21:30", "2026-01-05T22:30"),
        ("XNYS", "2026-01-05T14:29:59", "1h", "2026-01-05T13:30", "2026-01-05T14:30"),  # pre-market
        ("XNYS", "2026-01-05T14:30:00", "4h", "2026-01-05T14:30", "2026-01-05T18:30"),
        ("XNYS", "2026-01-05T18:30:00", "4h", "2026-01-05T18:30", "2026-01-05T21:00"),
        ("XNYS", "2026-01-06T04:00:00", "4h", "2026-01-06T02:30", "2026-01-06T05:00"),  # cut at local midnight
        ("XNYS", "2026-01-06T05:00:00", "4h", "2026-01-06T05:00", "2026-01-06T06:30"),
        ("XNYS", "2025-11-28T17:45:00", "1h", "2025-11-28T17:30", "2025-11-28T18:00"),  # half day
        ("XNYS", "2026-03-06T14:30:00", "1h", "2026-03-06T14:30", "2026-03-06T15:30"),
        ("XNYS", "2026-03-09T13:30:00", "1h", "2026-03-09T13:30", "2026-03-09T14:30"),  # summer time
        ("XNYS", "2026-01-05T22:00:00", "1d", "2026-01-05T14:30", "2026-01-05T21:00"),
        ("CMES", "2026-01-05T23:30:00", "4h", "2026-01-05T23:00", "2026-01-06T03:00"),
        ("CMES", "2026-01-05T22:30:00", "1d", "2026-01-04T23:00", "2026-01-05T23:00"),
        ("always", "2026-01-10T07:59:59", "4h", "2026-01-10T04:00", "2026-01-10T08:00"),
        ("always", "2026-01-10T07:59:59", "1h", "2026-01-10T07:00", "2026-01-10T08:00"),
        ("always", "2026-01-10T07:59:59", "1d", "2026-01-10T00:00", "2026-01-11T00:00"),
        ("XNYS", "2028-01-10T07:59:59", "4h", "2028-01-10T04:00", "2028-01-10T08:00"),
    ],
)
def test_bar_starts(name: str, ts: str, timeframe: str, start: str, end: str) -> None:
    assert span(TABLES[name], ts, timeframe) == (start, end)


def test_a_timeframe_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError):
        ALWAYS.bar_starts(at("2026-01-05"), "7m")


times = st.integers(ns("2023-12-20"), ns("2027-01-10"))


@settings(deadline=None)
@given(st.sampled_from(sorted(TABLES)), st.lists(times, min_size=1, max_size=30))
def test_every_time_has_one_bar_and_the_kernel_finds_the_same(name: str, moments: list[int]) -> None:
    table, ts = TABLES[name], np.array(moments, np.int64)
    rows = np.stack(
        (table.session_date, table.day_start_ns, table.open_ns, table.close_ns, table.owned_until_ns), axis=1
    ).astype(np.int64)
    bounds = np.array([0, len(table), table.owned_from_ns])
    session = np.empty(6, np.int64)
    dates = table.session_dates(ts)
    for frame, timeframe in enumerate(TIMEFRAMES):
        starts, ends = table.bar_starts(ts, timeframe)
        assert np.all(starts < ends)
        if timeframe != "1d":  # a day's bar is named by its session, and holds what is before and after it too
            assert np.all((starts <= ts) & (ts < ends))
        for edge in (starts, ends - 1):
            if timeframe != "1d":
                again = table.bar_starts(edge, timeframe)
                assert np.array_equal(again[0], starts)
                assert np.array_equal(again[1], ends)
                assert np.array_equal(table.is_open(edge), table.is_open(ts))
                assert np.array_equal(table.session_dates(edge), dates) or frame < 3
        for i, moment in enumerate(moments):
            bar_kernel.session_of(moment, rows, bounds, session)
            assert bar_kernel.bar_span(moment, frame, session) == (starts[i], ends[i])
            assert session[1] == dates[i]


@settings(deadline=None)
@given(st.sampled_from(sorted(TABLES)), times)
def test_the_state_stays_until_the_next_change(name: str, moment: int) -> None:
    table = TABLES[name]
    change = table.next_change(moment)
    if change is not None:
        assert change > moment
        assert table.state(change - 1) == table.state(moment)
        assert table.state(change) != table.state(moment)


def test_many_at_once_is_one_by_one() -> None:
    ts = np.arange(ns("2025-11-20"), ns("2025-12-05"), 37 * MINUTE + SECOND, dtype=np.int64)
    assert NEW_YORK.session_dates(ts).tolist() == [
        int(NEW_YORK.session_dates(ts[i : i + 1])[0]) for i in range(len(ts))
    ]
    assert NEW_YORK.is_open(ts).sum() == sum(NEW_YORK.state(int(moment)) == "open" for moment in ts)


def test_sessions_cover_the_years_asked_for() -> None:
    table = session_table("XNYS", last_year=2026)
    assert str(table.session_date[:1].astype("datetime64[D]")[0]) == "2000-01-03"
    assert str(table.session_date[-1:].astype("datetime64[D]")[0]) == "2026-12-31"
    assert session_table("XNYS", last_year=2026) is table
    assert day(table, "1999-12-31T12:00:00") == "1999-12-31"


def test_a_calendar_that_ends_earlier_is_unknown_beyond() -> None:
    table = session_table("XHKG", first_year=2020, last_year=2100)
    assert table.known
    assert table.state(ns("2020-01-02T02:00:00")) == "open"
    assert table.state(ns("2099-01-02T02:00:00")) == "unknown"


@pytest.mark.parametrize("name", ["24/7", "always_open"])
def test_always_open_needs_no_library(name: str) -> None:
    table = session_table(name, last_year=2026)
    assert table.state(ns("1971-01-01")) == "open"
    assert table.known


@pytest.mark.parametrize("name", ["NOPE", "", "XNYS "])
def test_an_unknown_calendar_fails_closed(name: str) -> None:
    table = session_table(name, last_year=2026)
    assert (table.name, table.known) == (name, False)
    assert table.state(ns("2026-01-05T15:00:00")) == "unknown"
    assert not table.is_open(at("2026-01-05T15:00:00"))[0]
    assert table.next_change(0) is None
    assert day(table, "2026-01-05T23:00:00") == "2026-01-05"


def test_a_library_that_fails_fails_closed() -> None:
    with mock.patch("exchange_calendars.get_calendar", side_effect=NotImplementedError):
        assert session_table("XLON", last_year=2026).state(ns("2026-01-05T10:00:00")) == "unknown"
    session_table.cache_clear()


def test_importing_sessions_does_not_import_the_library() -> None:
    program = "import sys, integration.market.sessions; print([m for m in ('pandas', 'exchange_calendars', 'numba') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def table_of(opens: list[int], closes: list[int], until: list[int]) -> SessionTable:
    dates = np.arange(len(opens), dtype=np.int32)
    columns = [np.array(values, np.int64) for values in (opens, opens, closes, until)]
    return SessionTable("made", True, False, 0, dates, *columns)


def test_a_table_made_by_hand() -> None:
    table = table_of([HOUR, DAY + HOUR], [2 * HOUR, DAY + 2 * HOUR], [DAY, 2 * DAY])
    assert table.session_dates(np.array([0, DAY - 1, DAY, 2 * DAY - 1])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("opens", "closes", "until", "words"),
    [
        ([HOUR + 1], [2 * HOUR], [DAY], "whole minutes"),
        ([HOUR], [2 * HOUR], [DAY + SECOND], "whole minutes"),
        ([2 * HOUR], [HOUR], [DAY], "in order"),
        ([HOUR], [2 * DAY], [DAY], "in order"),
        ([HOUR, DAY - HOUR], [2 * HOUR, DAY + HOUR], [DAY, 2 * DAY], "in order"),  # opens in the span of the one before
        ([HOUR, HOUR], [2 * HOUR, 2 * HOUR], [DAY, DAY], "in order"),
        ([-HOUR], [2 * HOUR], [DAY], "in order"),
    ],
)
def test_tables_that_cannot_be(opens: list[int], closes: list[int], until: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table_of(opens, closes, until)


@pytest.mark.parametrize("name", ["XLON", "XTKS", "XASX", "us_futures", "BVMF", "XNZE"])
def test_real_calendars_hold_the_invariants(name: str) -> None:
    table = session_table(name, first_year=2015, last_year=2026)
    assert table.known
    assert len(table) > 2500
    # Every session's own open belongs to it.
    assert np.array_equal(table.session_dates(table.open_ns), table.session_date)
    assert np.all(table.is_open(table.open_ns))
    first = date(1970, 1, 1) + timedelta(days=int(table.session_date[0]))
    assert first.year == 2015
