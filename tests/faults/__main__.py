"""`python -m tests.faults`: a hundred kills over 200,000 events on servers of its own; the last line is JSON."""

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import django


def main() -> int:
    """Start servers, run one trial, print what it found; 0 when nothing is amiss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("MDI_")]:
        del os.environ[name]
    # Short, because PostgreSQL's socket lives below it.
    with tempfile.TemporaryDirectory(prefix="mdi-faults-") as folder:
        os.environ |= {"MDI_VAR_DIR": folder, "MDI_DATABASE_POOL": "0", "MDI_LOG_LEVEL": "warning"}
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
        from config.embedded import servers

        with servers(Path(folder), {"postgres", "valkey", "pulsar"}, say=print):
            return trial(Path(folder), options)


def trial(folder: Path, options: argparse.Namespace) -> int:
    """Run the trial on the servers of a folder."""
    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from integration.sources import pulsar_client
    from tests.e2e.world import build_world
    from tests.faults.trial import Trial

    call_command("migrate", verbosity=0)
    client = pulsar_client(settings.PULSAR_URL, settings.PULSAR_TOKEN)
    world = build_world(settings.NORMALIZED_TOPICS["equities"])
    names = (settings.MDI.normalized_namespace, settings.MDI.integrated_namespace)
    kills, account = Trial(world, client, *names, folder / "processes.log", options.seed).run(
        options.kills, options.events
    )
    client.close()
    for line in account.wrong[:20]:
        print(line)
    for line in Path(folder / "processes.log").read_text().splitlines():
        if re.match(r"[\w.]+(Error|Exception)\b", line):
            print(f"said by a process: {line[:300]}")
    found = {name: value for name, value in asdict(account).items() if name != "wrong"}
    print(json.dumps({"kills": kills, **found, "wrong": len(account.wrong)}))
    return 0 if account.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
