"""Asks the broker's admin interface how many messages wait and whether it is healthy; for pages and probes, never for the flow.

Answers are kept for five seconds, failures too, so that a page with ten topics does not wait ten times for a broker that is away.
"""

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings

_KEPT_S: Final = 5.0
_TIMEOUT_S: Final = 3.0

_lock = threading.Lock()
_answers: dict[str, tuple[float, Any]] = {}


class BrokerUnknownError(Exception):
    """The admin interface is not set, away, or (`is_refusal`) answers this one question with an error."""

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


def backlog(topic: str, subscription: str) -> dict[str, int] | None:
    """Count the messages that wait for a subscription, by partition; None where the broker cannot be asked."""
    try:
        partitions = _partition_stats(topic)
    except BrokerUnknownError:
        return None
    return {
        partition: int(facts.get("subscriptions", {}).get(subscription, {}).get("msgBacklog", 0))
        for partition, facts in partitions.items()
    }


def _partition_stats(topic: str) -> dict[str, Any]:
    address = f"/admin/v2/persistent/{topic.removeprefix('persistent://')}"
    try:
        partitions: dict[str, Any] = _ask(f"{address}/partitioned-stats?perPartition=true")["partitions"]
    except BrokerUnknownError as problem:
        if not problem.is_refusal:
            raise
        return {topic: _ask(f"{address}/stats")}  # a topic without partitions has no such page
    return partitions or {topic: _ask(f"{address}/stats")}


def health() -> str:
    """Say what is wrong with the broker; empty when it answers. Without an admin address its port is tried."""
    if not settings.PULSAR_ADMIN_URL:
        return _port_problem()
    try:
        _ask("/admin/v2/brokers/ready")
    except BrokerUnknownError as problem:
        return str(problem)
    return ""


def _port_problem() -> str:
    import socket

    address = urlsplit(settings.PULSAR_URL)
    try:
        socket.create_connection((address.hostname or "", address.port or 6650), _TIMEOUT_S).close()
    except OSError as problem:
        return f"no connection to {address.hostname}:{address.port}: {problem}"
    return ""


def _ask(path: str) -> Any:
    now = time.monotonic()
    with _lock:
        asked_at, answer = _answers.get(path, (-_KEPT_S, None))
        away_since, away = _answers.get("", (-_KEPT_S, None))
    if now - asked_at < _KEPT_S:
        return _given(answer)
    if now - away_since < _KEPT_S:
        return _given(away)
    answer = _fetch(path)
    with _lock:
        # A broker that does not answer at all is away for every path; a refusal is about this one.
        is_away = isinstance(answer, BrokerUnknownError) and not answer.is_refusal
        _answers["" if is_away else path] = (time.monotonic(), answer)
    return _given(answer)


def _given(answer: Any) -> Any:
    if isinstance(answer, BrokerUnknownError):
        raise answer
    return answer


def _fetch(path: str) -> Any:
    if not settings.PULSAR_ADMIN_URL:
        return BrokerUnknownError("no admin address is set")
    headers = {"Authorization": f"Bearer {settings.PULSAR_TOKEN}"} if settings.PULSAR_TOKEN else {}
    request = urllib.request.Request(settings.PULSAR_ADMIN_URL.rstrip("/") + path, headers=headers)  # noqa: S310 - http(s), checked in config.env
    try:
        context = ssl.create_default_context(cafile=settings.MDI.pulsar_ca_file or None)  # counts where it is https
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as response:  # noqa: S310
            body = response.read()
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return BrokerUnknownError(
            f"the broker's admin interface answers {refusal.code} {refusal.reason}", is_refusal=True
        )
    except (OSError, ValueError) as problem:
        return BrokerUnknownError(f"the broker's admin interface does not answer: {problem}")
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
