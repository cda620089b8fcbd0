"""Registers the app with Django."""

from django.apps import AppConfig


class QualityConfig(AppConfig):
    """Quality."""

    name = "quality"
    verbose_name = "Quality"
