"""The pytest plugin that gives the whole session its own embedded servers (`-p tests.stack`).

It strips every MDI_ variable first, so that no test can reach a server of the surroundings. Under xdist the controller holds the
servers and the workers share them; each worker has its own test database (pytest-django) and each test its own Pulsar namespace.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from config.embedded import Endpoints, endpoints, servers, topology

if TYPE_CHECKING:
    import pulsar

PARTITIONS = 2
HOLDING = pytest.StashKey[ExitStack]()
# A worker of xdist inherits this variable from its controller; the prefix is not ours, so that the strip leaves it.
FOLDER_VARIABLE = "MARKET_DATA_TEST_FOLDER"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Point the settings at this session's folder before pytest-django reads them."""
    for name in [name for name in os.environ if name.startswith("MDI_")]:
        del os.environ[name]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Short, because PostgreSQL's socket lives below it.
        os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="mdi-test-")
        atexit.register(shutil.rmtree, os.environ[FOLDER_VARIABLE], ignore_errors=True)
    os.environ["MDI_VAR_DIR"] = os.environ[FOLDER_VARIABLE]
    os.environ["MDI_PARTITIONS"] = str(PARTITIONS)
    os.environ["MDI_LOG_LEVEL"] = "warning"
    os.environ["MDI_SECRET_KEY"] = "only-for-tests-" + "0" * 32
    # The test runner closes and drops databases: pooled connections would stay behind.
    os.environ["MDI_DATABASE_POOL"] = "0"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Hold the servers for the session, except in a worker and where tests are only listed."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    stack = ExitStack()
    config.stash[HOLDING] = stack
    stack.enter_context(servers(session_folder(), {"postgres", "valkey", "pulsar"}, partitions=PARTITIONS, say=tell))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers; their data go with the process."""
    if stack := config.stash.get(HOLDING, None):
        stack.close()


def session_folder() -> Path:
    """Return the data folder of this session."""
    return Path(os.environ[FOLDER_VARIABLE])


def tell(text: str) -> None:
    """Print progress past pytest's capture."""
    print(text, file=sys.__stderr__, flush=True)


@dataclass
class PulsarNamespace:
    """A namespace of one test's own: no message of another test can reach it."""

    endpoints: Endpoints
    tenant: str
    name: str
    clients: "list[pulsar.Client]" = field(default_factory=list)

    @property
    def admin(self) -> topology.BrokerAdmin:
        """Return the admin interface with the administrator's token."""
        return topology.BrokerAdmin(self.endpoints.pulsar_admin_url, self.endpoints.pulsar_admin_token)

    def topic(self, name: str) -> str:
        """Return the full name of a topic in it."""
        return f"persistent://{self.tenant}/{self.name}/{name}"

    def add_topic(self, name: str, partitions: int = 0) -> str:
        """Make a topic (0: without partitions) and return its full name."""
        topology.ensure_topic(self.admin, f"persistent/{self.tenant}/{self.name}/{name}", partitions)
        return self.topic(name)

    def client(self, token: str | None = None) -> "pulsar.Client":
        """Return a client, by default with the service's token, closed after the test."""
        import pulsar

        client = pulsar.Client(
            self.endpoints.pulsar_url,
            authentication=pulsar.AuthenticationToken(token or self.endpoints.pulsar_token),
            operation_timeout_seconds=10,
            logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
        )
        self.clients.append(client)
        return client


@pytest.fixture
def pulsar_namespace() -> Iterator[PulsarNamespace]:
    """Yield a fresh namespace with the input topics (partitioned) and the output topics, and delete it afterwards."""
    made = PulsarNamespace(endpoints(session_folder()), topology.TENANT, f"test-{uuid4().hex[:12]}")
    topics = dict.fromkeys(topology.NORMALIZED_TOPICS, PARTITIONS) | dict.fromkeys(topology.INTEGRATED_TOPICS, 0)
    permissions = {topology.SERVICE_ROLE: topology.BOTH, topology.FEED_ROLE: ("produce",)}
    topology.ensure_namespace(
        made.admin, topology.Namespace(made.tenant, made.name, topics, permissions, is_deduplicated=True)
    )
    yield made
    for client in made.clients:
        client.close()
    topology.delete_namespace(made.admin, made.name)


@pytest.fixture
def embedded() -> Endpoints:
    """Return the addresses and credentials of the session's servers."""
    return endpoints(session_folder())
