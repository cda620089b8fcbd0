"""The feed against the real broker: what it says it sent is what is there, and how it meets a broker that is away."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulsar
import pytest

from integration.demo import feeder as feeder_module
from integration.demo.catalogue import ASSET_CLASSES, INSTRUMENTS
from integration.demo.events import Options
from integration.demo.feeder import WINDOW, Feeder
from integration.demo.link import BrokerAwayError, Link, Outgoing
from integration.demo.stream import History, Stream
from integration.market.ticks import Message
from integration.market.units import NANOS
from tests.integration.demo.judge import judge, sums, totals
from tests.stack import PARTITIONS, PulsarNamespace

MANAGE = Path(__file__).resolve().parents[3] / "manage.py"


def partitions_of(namespace: PulsarNamespace) -> Iterator[tuple[str, list[pulsar.Message]]]:
    """Read everything that is in each partition now."""
    client = namespace.client()
    for asset_class in ASSET_CLASSES:
        for partition in range(PARTITIONS):
            reader = client.create_reader(
                namespace.topic(f"{asset_class}-partition-{partition}"), pulsar.MessageId.earliest
            )
            found = []
            while reader.has_message_available():
                found.append(reader.read_next(5_000))
            reader.close()
            yield asset_class, found


def compare(report: dict[str, Any], namespace: PulsarNamespace) -> None:
    """Hold the report against what the service makes of what the broker has."""
    received = list(partitions_of(namespace))
    assert sum(len(found) for _, found in received) == report["messages"]
    outcomes = judge(
        (asset_class, [Message(one.data(), one.publish_timestamp() * 1_000_000, 0) for one in found])
        for asset_class, found in received
    )
    assert totals(outcomes) == report["outcomes"]
    assert sums(outcomes) == report["instruments"]


def link_to(namespace: PulsarNamespace, *, url: str = "", token: str = "") -> Link:
    ends = namespace.endpoints
    topics = {asset_class: namespace.topic(asset_class) for asset_class in ASSET_CLASSES}
    return Link(url or ends.pulsar_url, token or ends.pulsar_feed_token, topics)


def feeder(link: Link, history: History, *, is_paced: bool = True, **limits: Any) -> Feeder:
    start = time.time_ns()
    stream = Stream(Options(7, start, faults=40.0), history, ceiling=None if is_paced else time.time_ns)
    return Feeder(stream, link, session=start // NANOS, is_paced=is_paced, **limits)


def test_what_it_says_it_sent_is_there(pulsar_namespace: PulsarNamespace, history: History) -> None:
    feed = feeder(link_to(pulsar_namespace), history, count=1_000)
    feed.run()
    report = feed.report()
    assert (report["unconfirmed"], report["refusals"]) == (0, {})
    assert report["events"] > report["messages"], "several ticks of an instrument go in one Arrow message"
    compare(report, pulsar_namespace)


def test_an_unpaced_feed_sends_as_many_as_asked_and_says_the_truth(
    pulsar_namespace: PulsarNamespace, history: History
) -> None:
    feed = feeder(link_to(pulsar_namespace), history, is_paced=False, count=WINDOW + 1_000)
    feed.run()
    report = feed.report()
    asked = WINDOW + 1_000
    assert asked <= report["events"] <= asked + len(INSTRUMENTS), (
        "halts that are open at the end are ended, one event each"
    )
    assert report["unconfirmed"] == 0
    compare(report, pulsar_namespace)


def test_it_ends_by_itself_after_the_seconds_given(pulsar_namespace: PulsarNamespace, history: History) -> None:
    feed = feeder(link_to(pulsar_namespace), history, seconds=0.5)
    begun = time.monotonic()
    feed.run()
    assert time.monotonic() - begun >= 0.5
    assert feed.report()["events"] > 0


def test_keys_and_properties(pulsar_namespace: PulsarNamespace, history: History) -> None:
    feed = feeder(link_to(pulsar_namespace), history, count=500)
    feed.run()
    for _, found in partitions_of(pulsar_namespace):
        for message in found:
            is_arrow = message.data().startswith(b"\xff\xff\xff\xff")
            assert message.properties() == ({"content-type": "application/vnd.apache.arrow.stream"} if is_arrow else {})
            if b'"instrument_id"' in message.data() and message.data().endswith(b"}"):
                assert message.partition_key() == json.loads(message.data())["market_data"]["instrument_id"]


def test_the_command_ends_on_sigterm_with_its_books(pulsar_namespace: PulsarNamespace) -> None:
    """As the supervisor runs it: an own process, stopped by a signal."""
    environment = {**os.environ, "MDI_NORMALIZED_NAMESPACE": pulsar_namespace.name}
    command = [sys.executable, str(MANAGE), "feed", "--faults", "40", "--seed", "3"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(len(found) for _, found in partitions_of(pulsar_namespace)) < 500:
        time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    report = json.loads(output.splitlines()[-1])
    assert (report["seed"], report["unconfirmed"]) == (3, 0)
    compare(report, pulsar_namespace)


def test_an_absent_broker_is_said_clearly_and_a_stop_is_answered(
    pulsar_namespace: PulsarNamespace, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nothing else can answer there
        url = f"pulsar://127.0.0.1:{taken.getsockname()[1]}"
        feed = feeder(link_to(pulsar_namespace, url=url), history)
        caplog.set_level(logging.WARNING, "integration.demo.feeder")
        running = threading.Thread(target=feed.run)
        running.start()
        while not caplog.records:
            time.sleep(0.05)
        feed.stop()
        running.join(30)
    assert not running.is_alive()
    assert f"broker unreachable or token refused at {url}" in caplog.text
    assert feed.report()["events"] == 0


def test_a_wrong_token_is_named_as_a_possible_reason(pulsar_namespace: PulsarNamespace) -> None:
    with pytest.raises(BrokerAwayError, match="broker unreachable or token refused at pulsar://127"):
        link_to(pulsar_namespace, token="e30.e30.e30").open()


class AwayLink(Link):
    """A link whose connection a test can cut."""

    is_cut = False

    @property
    def is_connected(self) -> bool:
        return not self.is_cut and super().is_connected


def test_while_the_broker_is_away_nothing_is_made_and_afterwards_times_are_now(
    pulsar_namespace: PulsarNamespace, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "integration.demo.feeder")
    ends = pulsar_namespace.endpoints
    topics = {asset_class: pulsar_namespace.topic(asset_class) for asset_class in ASSET_CLASSES}
    link = AwayLink(ends.pulsar_url, ends.pulsar_feed_token, topics)
    feed = feeder(link, history)
    running = threading.Thread(target=feed.run)
    running.start()
    while feed.tally.events < 100:
        time.sleep(0.01)
    link.is_cut = True
    while "broker away" not in caplog.text:
        time.sleep(0.01)
    before = feed.tally.events
    time.sleep(1.5)
    assert feed.tally.events == before
    link.is_cut = False
    while feed.tally.events < before + 100:
        time.sleep(0.01)
    feed.stop()
    running.join(30)
    assert "broker back" in caplog.text
    assert feed.stream.shift > NANOS
    assert feed.report()["unconfirmed"] == 0
    compare(feed.report(), pulsar_namespace)


def test_with_too_much_in_flight_it_waits_and_at_the_end_says_what_is_unconfirmed(
    pulsar_namespace: PulsarNamespace,
    history: History,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeder_module, "FLUSH_S", 0.1)
    link = link_to(pulsar_namespace)
    link.sent = WINDOW  # as if none of them had been answered
    feed = feeder(link, history, seconds=0.3)
    feed.run()
    assert feed.report()["events"] == 0
    assert feed.report()["unconfirmed"] == WINDOW
    assert f"feed ends with {WINDOW} messages unconfirmed" in caplog.text


def test_what_the_client_gives_up_is_sent_again(pulsar_namespace: PulsarNamespace) -> None:
    link = link_to(pulsar_namespace)
    link.open()
    message = Outgoing("equities", "A.SIMX", b"once more")
    link.sent += 1
    link._settle(message, pulsar.Result.Timeout, pulsar.MessageId.earliest)
    assert (link.in_flight, link.unconfirmed, dict(link.refusals)) == (0, 1, {"Timeout": 1})
    link.flush(deadline_s=10)
    assert link.unconfirmed == 0
    link.close()
    assert [one.data() for _, found in partitions_of(pulsar_namespace) for one in found] == [b"once more"]


def test_a_flush_gives_up_at_its_deadline(pulsar_namespace: PulsarNamespace) -> None:
    link = link_to(pulsar_namespace)
    link.sent += 1
    link.flush(deadline_s=0.05)
    assert link.unconfirmed == 1
