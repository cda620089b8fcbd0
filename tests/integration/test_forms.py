"""The venue's form against every calendar that the library lists: what it takes can be built, what it refuses cannot."""

import time

import pytest
from django.utils import timezone

from integration.forms import VenueForm, calendar_problem, known_calendars
from integration.market.sessions import DAY, session_table

# What the library lists and cannot build with the pandas of requirements.txt, and its other names for them. One that can be
# built again may go from here.
BROKEN = {"ASEX", "XBEL", "XBSE", "XCYS", "XTAE", "BVB", "TASE"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the library's own, by the hundred
def test_every_calendar_that_the_form_takes_has_sessions_and_every_other_is_said_to_have_none() -> None:
    now, last_year = time.time_ns(), timezone.now().year + 1
    refused = set()
    for name in sorted(known_calendars()):
        table = session_table(name, last_year=last_year)
        # Two weeks hold every holiday: a venue that is never open in them is not one that was built.
        days = [now + day * DAY for day in range(14)]
        opens = table.always_open or any(table.state(day) != "unknown" and table.next_change(day) for day in days)
        assert (calendar_problem(name) == "") == opens, name
        if not opens:
            refused.add(name)
    assert refused == BROKEN
    assert len(known_calendars() - refused) > 60


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("calendar", "words"),
    [
        ("XTAE", "exchange-calendars knows XTAE but cannot build it with the installed pandas"),
        ("MOON", "No calendar of exchange-calendars has this name, was “MOON”"),
    ],
)
def test_a_calendar_that_gives_no_sessions_is_refused_with_the_reason(calendar: str, words: str) -> None:
    values = {"mic": "XNYS", "name": "New York", "calendar": calendar, "timezone": "America/New_York"}
    form = VenueForm(values)
    assert not form.is_valid()
    assert str(form.errors["calendar"][0]).startswith(words)
    for good in ("XNYS", "NYSE", "CMES", "24/7"):
        assert VenueForm(values | {"calendar": good}).is_valid()
