"""Our settings from the environment: one line each, all with the prefix MDI_; unknown names and malformed values stop the start.

The table below is the only place that knows them; docs/configuration.md is checked against it. Print it with `python -m config.env`.
"""

import dataclasses
import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import environs
from environs import validate

from config.embedded.runtime import EmbeddedServerError, VarFolder

PREFIX = "MDI_"
REPOSITORY = Path(__file__).resolve().parent.parent

Check = Callable[[Any], Any]


class Detail(NamedTuple):
    """What the table says of a setting besides its name, type and default."""

    help: str
    checks: tuple[Check, ...] = ()
    is_secret: bool = False
    is_internal: bool = False
    shown_default: str = ""


def setting(
    default: Any, text: str, *checks: Check, secret: bool = False, internal: bool = False, shown: str = ""
) -> Any:
    """Declare a setting: default, one sentence of help, checks; secrets are never echoed, internal ones are set by run_stack."""
    detail = Detail(text, checks, secret, internal, shown)
    return dataclasses.field(default=default, repr=not secret, metadata={"detail": detail})


def url(*schemes: str) -> Check:
    """Return a check for an address with one of the schemes and a host, or the folder of a local socket."""

    def check(value: str) -> None:
        parts = urlsplit(value)
        if parts.scheme not in schemes or not (parts.hostname or "host=/" in parts.query):
            raise environs.ValidationError(f"must be {' or '.join(f'{scheme}://…' for scheme in schemes)}")
        _ = parts.port  # raises ValueError outside 0..65535

    return check


def between(low: float, high: float) -> Check:
    """Return a check for a number within bounds, both included."""
    return validate.Range(low, high, error=f"must be between {low} and {high}")


def one_of(*choices: str) -> Check:
    """Return a check for one of a few words."""
    return validate.OneOf(choices, error=f"must be one of {', '.join(choices)}")


WORD = validate.Regexp(r"^[a-z0-9][a-z0-9\-]{0,62}\Z", error="must be lower-case letters, digits and hyphens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The settings, read. A URL that is empty means the embedded server of the data folder."""

    # fmt: off
    database_url: str = setting("", "PostgreSQL to use instead of the embedded one: postgresql://user:password@host:port/name, libpq's parameters (?sslmode=…) included.", url("postgresql", "postgres"), secret=True)
    redis_url: str = setting("", "Valkey or Redis to use instead of the embedded one.", url("redis", "rediss"), secret=True)
    pulsar_url: str = setting("", "Pulsar broker to use instead of the embedded one.", url("pulsar", "pulsar+ssl"))
    pulsar_token: str = setting("", "Token for that broker; its role needs consume and produce on our namespaces.", secret=True)
    pulsar_ca_file: str = setting("", "PEM file of the authority that signed that broker's certificate.", shown="the system's authorities")
    pulsar_admin_url: str = setting("", "Admin address of that broker; where set, missing namespaces and topics are made at the start (with MDI_PULSAR_TOKEN).", url("http", "https"))
    pulsar_tenant: str = setting("market-data", "Tenant of our namespaces.", WORD)
    normalized_namespace: str = setting("normalized", "Namespace the normalized market data is consumed from.", WORD)
    integrated_namespace: str = setting("integrated", "Namespace the integrated ticks, bars and events are published to.", WORD)
    partitions: int = setting(2, "Partitions of each input topic; an existing topic only grows.", between(1, 64))
    var_dir: Path = setting(REPOSITORY / "var", "Folder of data, logs and generated secrets.", shown="`var` in the repository")
    port: int = setting(8000, "Port of the web server on 127.0.0.1.", between(1, 65535))
    demo: bool = setting(True, "Demo reference data and the demo feed.", shown="1")
    debug: bool = setting(False, "Django's debug mode: never where others can reach it.", shown="0")
    allowed_hosts: tuple[str, ...] = setting(("127.0.0.1", "localhost", "[::1]"), "Host names the web server answers to, separated by commas.", shown="127.0.0.1,localhost,[::1]")
    secret_key: str = setting("", "Django's signing key.", validate.Length(min=32, error="must have at least 32 characters"), secret=True, shown="generated in `var/secrets`")
    log_format: str = setting("console", "Log lines for people (console) or for machines (json).", one_of("console", "json"))
    log_level: str = setting("info", "Lowest level that is logged.", one_of("debug", "info", "warning", "error"))
    metrics_token: str = setting("", "Bearer token for /metrics and the details of /readyz from other machines; without it loopback only.", secret=True)
    statement_timeout_ms: int = setting(30_000, "PostgreSQL ends a statement after this many milliseconds; 0 never.", between(0, 3_600_000))
    database_pool: bool = setting(True, "Keep a pool of database connections per process.", shown="1")
    slice_rows: int = setting(250_000, "Rows that a slice of the tick tables should hold; smaller slices are read faster.", between(1_000, 10_000_000))
    batch_messages: int = setting(
        20_000, "Most messages that one transaction stores.", between(1, 100_000))
    bar_grace_ms: int = setting(2_000, "How long after its end a bar still waits for late trades.", between(0, 600_000))
    canary_interval_ms: int = setting(2_000, "Milliseconds between two canary events through the whole path; 0 sends none.", between(0, 3_600_000))
    standby_after_ms: int = setting(3_000, "A sequencer that has not renewed its lease for so many milliseconds is replaced.", between(500, 60_000))
    hot_days: int = setting(3, "Days of ticks (by UTC day of ts_event) that stay in PostgreSQL; older days move to the lake every night; 0 moves none.", between(0, 36_500))
    lake_url: str = setting("", "Where the lake of closed days is: a folder's absolute path, or an object store's address (s3://bucket/prefix; its credentials from the store's own variables).", shown="`lake` in the data folder")
    retention_lake_days: int = setting(0, "Keep days in the lake this many days; 0 for ever.", between(0, 36_500))
    disk_free_mb: int = setting(1_024, "Consumption pauses while the disk of var/ or of PostgreSQL's data has fewer free megabytes; 0 never.", between(0, 100_000_000))
    record_dir: str = setting("", "Folder for a log of every message with what decided its batch, for `replay_hash`; it grows without end; empty records nothing.")
    retention_batch_days: int = setting(7, "Keep the payloads of numbered and published batches this many days; 0 for ever.", between(0, 36_500))
    retention_outgoing_days: int = setting(3, "Keep sent messages this many days; 0 for ever.", between(0, 36_500))
    retention_quarantine_days: int = setting(365, "Keep released and confirmed-bad events this many days; waiting ones are always kept; 0 for ever.", between(0, 36_500))
    retention_job_days: int = setting(7, "Keep finished jobs and closed alerts this many days; 0 for ever.", between(0, 36_500))
    access_token: str = setting("", "Token of this run's link.", secret=True, internal=True)
    operator_password: str = setting("", "Password that the user operator is given at the start.", secret=True, internal=True)
    # fmt: on


class Setting(NamedTuple):
    """One line of the table."""

    variable: str
    field: str
    kind: str
    default: str
    detail: Detail


KINDS = {int: "integer", float: "number", bool: "0 or 1", str: "text", Path: "path", tuple[str, ...]: "list"}


def table() -> list[Setting]:
    """Return all settings in the order of their declaration."""
    hints = get_type_hints(Environment)
    lines = []
    for field in dataclasses.fields(Environment):
        detail: Detail = field.metadata["detail"]
        default = detail.shown_default or (str(field.default) if field.default != "" else "")
        lines.append(Setting(PREFIX + field.name.upper(), field.name, KINDS[hints[field.name]], default, detail))
    return lines


class Problem(NamedTuple):
    """What is wrong with one variable; `id` is that of the system check."""

    id: str
    variable: str
    text: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.text} ({self.id})"


class SettingsError(Exception):
    """The environment holds settings of ours that cannot be used."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class MappedEnv(environs.Env):
    """environs on a given mapping; an empty value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(prefix=PREFIX)
        self.mapping = environ

    def _get_value(self, env_key: str, default: Any) -> Any:
        return self.mapping.get(env_key) or default


def read(environ: Mapping[str, str]) -> Environment:
    """Return the settings in a mapping of variables; starts and makes nothing.

    Raises SettingsError with every problem: config.E001 unknown name, config.E002 malformed value.
    """
    known = {line.variable: line for line in table()}
    problems = [
        Problem("config.E001", name, unknown(name, known))
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known
    ]
    source, values = MappedEnv(environ), {}
    for line in known.values():
        if environ.get(line.variable):
            try:
                values[line.field] = parse(source, line)
            except (environs.EnvError, ValueError) as error:
                problems.append(Problem("config.E002", line.variable, malformed(error, line, environ[line.variable])))
    if problems:
        raise SettingsError(problems)
    return Environment(**values)


def parse(source: MappedEnv, line: Setting) -> Any:
    """Return the value of one variable by its kind, checked."""
    name, checks = line.field.upper(), list(line.detail.checks)
    if line.kind == "integer":
        return source.int(name, validate=checks)
    if line.kind == "number":
        return source.float(name, validate=checks)
    if line.kind == "0 or 1":
        return source.bool(name, validate=checks)
    if line.kind == "path":
        return source.path(name, validate=checks).expanduser().absolute()
    if line.kind == "list":
        return tuple(str(part).strip() for part in source.list(name, subcast=str, validate=checks))
    return source.str(name, validate=checks)


def unknown(name: str, known: Mapping[str, Setting]) -> str:
    """Return the sentence for a name that is none of ours, with the nearest that is."""
    near = difflib.get_close_matches(name, known, n=1)
    return "is no setting of this service" + (f", did you mean {near[0]}?" if near else "")


def malformed(error: Exception, line: Setting, value: str) -> str:
    """Return the sentence for a value that cannot be used; a secret is not echoed."""
    messages = getattr(error, "error_messages", None) or [str(error)]
    reason = str(messages[0] if isinstance(messages, list) else messages).rstrip(".")
    return reason[0].lower() + reason[1:] + ("" if line.detail.is_secret else f", was {value[:100]!r}")


def load(environ: Mapping[str, str]) -> Environment:
    """Return the settings for a start, with the signing key made where none is set; print one line a problem and exit 2 on error."""
    try:
        settings = read(environ)
        if not settings.secret_key:
            settings = dataclasses.replace(
                settings, secret_key=VarFolder(settings.var_dir.resolve()).secret("django-secret-key")
            )
    except SettingsError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    except EmbeddedServerError as error:
        print(f"MDI_VAR_DIR: {error} (config.E003)", file=sys.stderr)
        raise SystemExit(2) from None
    return settings


def markdown() -> str:
    """Return the table as docs/configuration.md holds it."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{line.variable}` | {line.kind} | {line.default or 'empty'} | {line.detail.help} |"
        for line in table()
        if not line.detail.is_internal
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
