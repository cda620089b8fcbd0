"""Servers of others, set by MDI_*_URL: say which before touching them, and tell in one line when one cannot be used."""

import logging
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit, urlunsplit

from config.embedded import EmbeddedServerError, topology
from config.env import Environment
from integration.sources import pulsar_client

TIMEOUT_SECONDS = 5

# The client prints connection errors whatever its level, unless it has a logger.
SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - not part of the tree of loggers

Say = Callable[[str], None]


class ExternalServerError(RuntimeError):
    """A server that a setting names cannot be used; the text is one line that names setting and server."""


def masked(url: str) -> str:
    """Return an address with its password hidden."""
    parts: SplitResult = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def use_external(settings: Environment, say: Say) -> None:
    """Name the external servers of the settings and try each. Raises ExternalServerError."""
    chosen = (
        ("MDI_DATABASE_URL", settings.database_url, try_database),
        ("MDI_REDIS_URL", settings.redis_url, try_redis),
        ("MDI_PULSAR_URL", settings.pulsar_url, lambda url: try_pulsar(url, settings)),
    )
    for variable, url, _ in chosen:
        if url:
            say(f"using {masked(url)} ({variable})")
    for variable, url, attempt in chosen:
        if url:
            try:
                attempt(url)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ExternalServerError(f"{variable}: cannot use {masked(url)}: {reason[:200]}") from error


def try_database(url: str) -> None:
    """Connect to PostgreSQL."""
    import psycopg

    psycopg.connect(url, connect_timeout=TIMEOUT_SECONDS).close()


def try_redis(url: str) -> None:
    """Ask Redis or Valkey for an answer."""
    import redis

    with redis.Redis.from_url(url, socket_connect_timeout=TIMEOUT_SECONDS, socket_timeout=TIMEOUT_SECONDS) as client:
        client.ping()


def make_topics(settings: Environment) -> None:
    """Make the namespaces and topics that are missing at the admin address, with the token of the settings."""
    admin = topology.BrokerAdmin(settings.pulsar_admin_url.rstrip("/"), settings.pulsar_token, settings.pulsar_ca_file)
    names = (settings.pulsar_tenant, settings.normalized_namespace, settings.integrated_namespace)
    topology.ensure_topology(admin, topology.service_namespaces(settings.partitions, *names))


def try_pulsar(url: str, settings: Environment) -> None:
    """Look one of our topics up; with an admin address make what is missing first."""
    import pulsar

    if settings.pulsar_admin_url:
        make_topics(settings)
    client = pulsar_client(url, settings.pulsar_token, ca_file=settings.pulsar_ca_file, logger=SILENT)
    topic = f"persistent://{settings.pulsar_tenant}/{settings.normalized_namespace}/equities"
    try:
        client.get_topic_partitions(topic)
    except pulsar.Timeout as error:
        # The client reports a refused token as a time-out too.
        raise EmbeddedServerError("broker unreachable or token refused") from error
    finally:
        client.close()
