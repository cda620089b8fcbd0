"""Registers the app with Django."""

from django.apps import AppConfig


class IntegrationConfig(AppConfig):
    """Integration."""

    name = "integration"
    verbose_name = "Integration"

    def ready(self) -> None:
        """Register the system checks."""
        from integration import checks  # noqa: F401
