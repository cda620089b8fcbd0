"""Registers the app with Django."""

from django.apps import AppConfig


class DistributionConfig(AppConfig):
    """Distribution."""

    name = "distribution"
    verbose_name = "Distribution"
