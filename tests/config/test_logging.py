"""Log lines: JSON that parses, context that is carried, secrets and payloads that never get out, chatty libraries held down."""

import io
import json
import logging
import logging.config
from collections.abc import Iterator

import pytest
import structlog

from config.logging import Seldom, configure


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    stream = io.StringIO()
    setting = configure("json", "info")
    setting["handlers"]["stderr"]["stream"] = stream
    logging.config.dictConfig(setting)
    yield stream
    root.handlers[:] = kept
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def parsed(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_kinds_of_loggers_give_one_json_object_a_line(lines: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(batch_id=7)
    structlog.get_logger("test.a").info("stored", ticks=3)
    logging.getLogger("test.b").warning("lost %s", "it", extra={"partition": "p-0"})
    first, second = parsed(lines)
    assert (first["event"], first["ticks"], first["batch_id"], first["level"]) == ("stored", 3, 7, "info")
    assert (second["event"], second["partition"], second["batch_id"]) == ("lost it", "p-0", 7)
    assert str(first["timestamp"]).endswith("Z")


def test_secrets_and_payloads_are_masked(lines: io.StringIO) -> None:
    structlog.get_logger("test").info(
        "x",
        password="p1",
        pulsar_token="p2",
        raw=b"p3",
        payload={"price": "p4"},
        head=memoryview(b"p5"),
        long="y" * 5_000,
    )
    logging.getLogger("test").info("y", extra={"Authorization": "p6"})
    text = lines.getvalue()
    assert not [secret for secret in ("p1", "p2", "p3", "p4", "p5", "p6") if secret in text]
    assert "<2 bytes>" in text
    assert len(text) < 4_000


def test_an_exception_is_one_line(lines: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("test").exception("failed")
    (line,) = parsed(lines)
    assert "broken" in json.dumps(line["exception"])


def test_a_repeated_line_of_a_chatty_library_passes_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("config.logging.time.monotonic", lambda: now[0])
    seldom = Seldom()

    def passes(text: str) -> bool:
        return seldom.filter(logging.LogRecord("pulsar", logging.ERROR, "", 0, text, None, None))

    assert [passes("refused"), passes("refused"), passes("other")] == [True, False, True]
    now[0] += 61
    assert passes("refused")


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    setting = configure("console", "warning")
    assert setting["root"]["level"] == "WARNING"
    assert "json" not in str(setting["formatters"]).lower()
