"""`python -m tests.faults`: every schedule of small cases, mistakes that must be found, then kills under load on servers of its own.

The last line is JSON. docs/proof.md says what each number means.
"""

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
    """Explore, then start servers and run one trial; 0 when nothing is amiss and every mistake was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("MDI_")]:
        del os.environ[name]
    # Short, because PostgreSQL's socket lives below it.
    with tempfile.TemporaryDirectory(prefix="mdi-faults-") as folder:
        os.environ |= {"MDI_VAR_DIR": folder, "MDI_DATABASE_POOL": "0", "MDI_LOG_LEVEL": "warning"}
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
        from config.embedded import servers

        django.setup()
        model = explore_all()
        with servers(Path(folder), {"postgres", "valkey", "pulsar"}, say=print):
            found = trial(Path(folder), options)
    report = {**found, **model, "wrong": found["wrong"] + model["wrong"]}
    print(json.dumps(report))
    is_clean = not any(report[name] for name in ("lost", "repeated", "holes", "wrong"))
    return 0 if is_clean and report["mutants"] == report["mutants_caught"] else 1


def explore_all() -> dict[str, int]:
    """Explore every case, and every mistake until it is found."""
    from tests.model.cases import ALL, MISTAKES, with_mistake
    from tests.model.explore import explore

    states = wrong = caught = 0
    for case in ALL:
        result = explore(case)
        states += result.states
        is_good = result.is_whole and result.complete and not result.violation
        wrong += not is_good
        words = "holds" if is_good else f"BROKEN: {result.violation or 'not whole'} {result.schedule}"
        print(
            f"model: {case.name}: {words}; {result.states} states, {result.edges} transitions, {result.seconds:.1f} s"
        )
    for name in MISTAKES:
        result = explore(with_mistake(name))
        caught += bool(result.violation)
        print(
            f"mistake {name}: {result.violation or 'NOT FOUND'}; after {result.states} states, {len(result.schedule)} steps"
        )
    return {"states": states, "mutants": len(MISTAKES), "mutants_caught": caught, "wrong": wrong}


def trial(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Run the trial on the servers of a folder and give its numbers."""
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
    return {"kills": kills, **found, "wrong": len(account.wrong)}


if __name__ == "__main__":
    sys.exit(main())
