"""Servers named by settings: used only after they were named, and refused in one line."""

import dataclasses

import pytest

from config.embedded import Endpoints
from config.env import Environment
from config.external import ExternalServerError, masked, use_external
from tests.stack import PulsarNamespace


def test_password_is_hidden() -> None:
    assert masked("postgresql://u:pass@h:1/d?x=1") == "postgresql://u:***@h:1/d?x=1"
    assert masked("redis://:pass@h/0") == "redis://:***@h/0"
    assert masked("pulsar://h:6650") == "pulsar://h:6650"


def test_good_servers_are_named_and_accepted(embedded: Endpoints, pulsar_namespace: PulsarNamespace) -> None:
    settings = Environment(
        database_url=embedded.database_url,
        redis_url=embedded.redis_url,
        pulsar_url=embedded.pulsar_url,
        pulsar_token=embedded.pulsar_admin_token,
        pulsar_admin_url=embedded.pulsar_admin_url,
        normalized_namespace=f"{pulsar_namespace.name}-in",
        integrated_namespace=f"{pulsar_namespace.name}-out",
    )
    said: list[str] = []
    use_external(settings, said.append)
    assert [line.rpartition(" ")[2] for line in said] == ["(MDI_DATABASE_URL)", "(MDI_REDIS_URL)", "(MDI_PULSAR_URL)"]
    assert not any("mdi:***" not in line for line in said[:1])
    # With an admin address the missing namespaces and topics were made; without one, a topic that is there suffices.
    use_external(dataclasses.replace(settings, pulsar_admin_url="", pulsar_token=embedded.pulsar_token), said.append)


def test_absent_servers_are_named(embedded: Endpoints) -> None:
    for variable, settings in (
        ("MDI_DATABASE_URL", Environment(database_url="postgresql://u:hidden@127.0.0.1:1/d")),
        ("MDI_REDIS_URL", Environment(redis_url="redis://:hidden@127.0.0.1:1/0")),
        ("MDI_PULSAR_URL", Environment(pulsar_url="pulsar://127.0.0.1:1")),
        ("MDI_PULSAR_URL", Environment(pulsar_url=embedded.pulsar_url, pulsar_token="hidden.hidden.hidden")),
        ("MDI_PULSAR_URL", Environment(pulsar_url="pulsar://127.0.0.1:1", pulsar_admin_url="http://127.0.0.1:1")),
    ):
        with pytest.raises(ExternalServerError, match=rf"^{variable}: cannot use .*127\.0\.0\.1") as caught:
            use_external(settings, lambda _: None)
        assert "hidden" not in str(caught.value)
        assert "\n" not in str(caught.value)
