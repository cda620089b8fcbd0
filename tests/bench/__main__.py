"""`python -m tests.bench SUITE`: measures on servers of its own and prints figures; the last line is JSON.

Ratios are taken inside one run, since a machine's speed drifts; the machine and the commit are printed with them.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from config.embedded import servers

WAL_FILES = 48
SUITES = ("ingest", "storing", "socket", "soak", "read")


def main(suite: str) -> int:
    """Run a suite and give the exit code."""
    if suite not in SUITES:
        print(f"no such suite, was {suite!r}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    for name in [name for name in os.environ if name.startswith("MDI_")]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="mdi-bench-"))
    os.environ |= {
        "MDI_VAR_DIR": str(folder), "MDI_LOG_LEVEL": "error", "MDI_PARTITIONS": "1", "MDI_CANARY_INTERVAL_MS": "0",
        "MDI_STATEMENT_TIMEOUT_MS": "600000", "MDI_ACCESS_TOKEN": "bench", "DJANGO_SETTINGS_MODULE": "config.settings",
    }  # fmt: skip
    print(machine(), file=sys.stderr)
    try:
        with servers(
            folder, {"postgres", "valkey", "pulsar"}, partitions=1, say=lambda text: print(text, file=sys.stderr)
        ):
            import django

            django.setup()
            from tests.bench import ingest, read, soak

            age_log(folder)

            whole = {"soak": soak.run, "read": read.run}
            figures = whole[suite]() if suite in whole else ingest.run(suite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0


def age_log(folder: Path) -> None:
    """Give PostgreSQL the WAL files that a server in use recycles: making one takes 15 ms, which a fresh server pays again and again."""
    import psycopg
    from django.db import connection as ours

    place = ours.settings_dict
    password = (folder / "secrets" / "postgres-superuser").read_text()
    with psycopg.connect(
        host=place["HOST"],
        port=place["PORT"],
        user="postgres",
        password=password,
        dbname=place["NAME"],
        autocommit=True,
    ) as connection:
        for _ in range(WAL_FILES):
            connection.execute("SELECT pg_logical_emit_message(false, 'bench', repeat('x', 16 * 1024 * 1024))")
        connection.execute("CHECKPOINT")


def machine() -> str:
    """Describe where this runs: processors, their load, Python and the commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"commit {commit} · {os.cpu_count()} processors, load {load} · Python {platform.python_version()} · {platform.platform()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "ingest"))
