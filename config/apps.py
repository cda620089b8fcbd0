"""The app `config`: management commands and the system checks of our settings."""

import os
from typing import Any

from django.apps import AppConfig
from django.core import checks

from config import env


class ConfigConfig(AppConfig):
    """Registers the checks config.E001 (unknown), E002 (malformed) and W001 (debug mode)."""

    name = "config"
    verbose_name = "Configuration"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_environment)


def check_environment(**_: Any) -> list[checks.CheckMessage]:
    """Report variables of ours that are unknown or malformed, and a debug mode that others could reach."""
    try:
        settings = env.read(os.environ)
    except env.SettingsError as error:
        return [checks.Error(f"{problem.variable} {problem.text}", id=problem.id) for problem in error.problems]
    if settings.debug and set(settings.allowed_hosts) - {"127.0.0.1", "localhost", "[::1]"}:
        return [checks.Warning("MDI_DEBUG is on while MDI_ALLOWED_HOSTS names other hosts", id="config.W001")]
    return []
