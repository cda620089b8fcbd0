"""docs/operations.md and docs/events.md say what the code does: no alert, check or reason without its line."""

import re
from pathlib import Path

from django.conf import settings

from integration import alerts, jobs
from integration.market.errors import REASON_CODES
from integration.reasons import REASONS, reason

OPERATIONS = Path(settings.BASE_DIR, "docs", "operations.md").read_text()
EVENTS = Path(settings.BASE_DIR, "docs", "events.md").read_text()


def test_each_alert_has_a_runbook() -> None:
    headings = set(re.findall(r"^### `([a-z_]+)`", OPERATIONS, re.MULTILINE))
    assert headings == set(alerts.SEVERITIES)


def test_each_job_kind_and_check_has_a_line() -> None:
    for kind in jobs.HANDLERS:
        assert f"| `{kind}` |" in OPERATIONS
    checks = Path(settings.BASE_DIR, "integration", "checks.py").read_text()
    for check in set(re.findall(r"integration\.E\d+", checks)):
        assert f"`{check}`" in OPERATIONS


def test_reasons_in_code_words_and_contract_are_the_same() -> None:
    assert set(REASONS) == REASON_CODES
    table = EVENTS.partition("## Reason codes\n")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert documented - {"halted"} == REASON_CODES  # halted is a flag on stored trades, nothing is turned away for it


def test_an_unknown_code_has_words_too() -> None:
    assert reason("from_the_future").words
