"""Registers the app with Django."""

from django.apps import AppConfig


class IntegrationConfig(AppConfig):
    """Integration."""

    name = "integration"
    verbose_name = "Integration"
