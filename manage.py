#!/usr/bin/env python
"""Django's command line, with the embedded servers that a command needs running while it runs."""

import os
import sys

from config.embedded import EmbeddedServerError, servers
from config.env import Environment, load

STORES = frozenset({"postgres", "valkey"})
ALL = STORES | {"pulsar"}
NOTHING: frozenset[str] = frozenset()
# What is not named here needs the stores. run_stack starts and stops the servers itself.
NEEDS = {
    **dict.fromkeys(
        ("help", "version", "check", "collectstatic", "findstatic", "diffsettings", "run_stack", "create_topics"),
        NOTHING,
    ),
    **dict.fromkeys(("makemigrations", "migrate", "showmigrations", "sqlmigrate", "dbshell"), frozenset({"postgres"})),
    **dict.fromkeys(("runserver", "consume_ticks", "sequence_ticks", "feed", "replay_ticks", "fill_gaps"), ALL),
}


def needed_servers(arguments: list[str], settings: Environment) -> frozenset[str]:
    """Return the embedded servers a command line needs: those of its command that no MDI_*_URL replaces."""
    words = [word for word in arguments if not word.startswith("-")]
    if not words or {"-h", "--help"} & set(arguments):
        return NOTHING
    replaced = {"postgres": settings.database_url, "valkey": settings.redis_url, "pulsar": settings.pulsar_url}
    return frozenset(name for name in NEEDS.get(words[0], STORES) if not replaced[name])


def main() -> None:
    """Run a command line; a setting or server that cannot be used is one line and an exit code."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    settings = load(os.environ)
    try:
        with servers(
            settings.var_dir, needed_servers(sys.argv[1:], settings), partitions=settings.partitions, say=tell
        ):
            from django.core.management import execute_from_command_line

            execute_from_command_line(sys.argv)
    except EmbeddedServerError as error:
        tell(str(error))
        sys.exit(1)


def tell(text: str) -> None:
    """Print progress where it does not mix with a command's output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
