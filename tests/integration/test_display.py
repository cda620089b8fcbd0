"""Ages, moments and rates as the admin writes them."""

from datetime import UTC, datetime, timedelta

import pytest

from integration.display import age_text, counted, moment_text, rate_text, since_text, topic_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (-3, "0.0 s"), (1.25, "1.2 s"), (59.4, "59 s"), (60, "1 min"), (3_599, "59 min"), (3_600, "1 h"), (11_400, "3 h 10 min"),
     (86_399, "23 h 59 min"), (86_400, "1 d"), (864_000, "10 d")],
)  # fmt: skip
def test_age(seconds: float | None, text: str) -> None:
    assert age_text(seconds) == text


def test_moments_keep_all_nine_digits() -> None:
    assert moment_text(1_767_623_400_000_000_001) == "2026-01-05 14:30:00.000000001 UTC"
    assert moment_text(0) == moment_text(None) == "–"
    assert moment_text(2**63 - 1) == "2262-04-11 23:47:16.854775807 UTC"
    assert moment_text(-(2**63)).startswith("1677-")


def test_the_rest() -> None:
    now = datetime(2026, 1, 5, tzinfo=UTC)
    assert since_text(now - timedelta(minutes=3), now) == "3 min"
    assert since_text(None, now) == "–"
    assert [rate_text(rate) for rate in (0, 0.44, 12.3, 12_345.6)] == ["0", "0.4", "12", "12,346"]
    assert topic_text("persistent://market-data/normalized/equities") == "normalized/equities"
    assert topic_text("persistent://market-data/normalized/fixed-income-partition-12") == "normalized/fixed-income #12"
    assert topic_text("elsewhere") == "elsewhere"


def test_counts_agree_with_their_words() -> None:
    assert counted(1, "gap", "gaps") == "1 gap"
    assert counted(2_000, "gap", "gaps") == "2,000 gaps"
