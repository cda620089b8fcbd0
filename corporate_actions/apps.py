"""Registers the app with Django."""

from django.apps import AppConfig


class CorporateActionsConfig(AppConfig):
    """Corporate actions."""

    name = "corporate_actions"
    verbose_name = "Corporate actions"
