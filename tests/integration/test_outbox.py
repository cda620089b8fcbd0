"""What the sequencer writes: a bar's revision is never dropped, a held bar never shown, big sums come back exact."""

from dataclasses import replace

import pytest
from django.db import transaction

from integration import outbox
from integration.bars import Bar
from integration.market.errors import FatalError
from integration.market.gaps import GapChanges
from integration.models import Bar as StoredBar
from integration.sequencer import Sequenced
from integration.storage import binary_cursor

BAR = Bar(
    instrument_id=7, source_id=0, timeframe="1m", start=60_000_000_000, end=120_000_000_000, session_date=20_458, open=5, high=9, low=4,
    close=6, volume=12_345_678_901_234_567_890_123, turnover=98_765_432_109_876_543_210_987_654_321_098_765, trade_count=3,
    first_ts=61_000_000_000, last_ts=62_000_000_000, revision=1, reason="first",
)  # fmt: skip


def write(*bars: Bar, held: tuple[Bar, ...] = ()) -> None:
    with transaction.atomic(), binary_cursor() as cursor:
        outbox._write_bars(cursor, [Sequenced(1, 1, 0, list(bars), list(held), GapChanges(), [])])


@pytest.mark.django_db(transaction=True)
def test_a_bar_of_more_than_28_digits_comes_back_exact() -> None:
    write(BAR)
    assert outbox.load_bars([BAR.key]) == [BAR]


@pytest.mark.django_db(transaction=True)
def test_the_newest_revision_is_loaded_and_older_ones_stay() -> None:
    write(BAR)
    revised = replace(BAR, revision=2, reason="late_trade", high=11)
    write(revised)
    assert outbox.load_bars([BAR.key]) == [revised]
    assert StoredBar.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_revision_that_exists_is_an_error_not_a_silence() -> None:
    write(BAR)
    with pytest.raises(FatalError, match="exist already"):
        write(replace(BAR, close=5))
    assert outbox.load_bars([BAR.key]) == [BAR]


@pytest.mark.django_db(transaction=True)
def test_a_bar_without_a_price_is_held_again_with_more_volume() -> None:
    held = replace(BAR, open=0, high=0, low=0, close=0, first_ts=0, last_ts=0, revision=0)
    write(held=(held,))
    more = replace(held, volume=held.volume + 1, trade_count=4)
    write(held=(more,))
    assert outbox.load_bars([BAR.key]) == [more]
    assert StoredBar.objects.count() == 1
