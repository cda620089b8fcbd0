"""`manage.py create_topics`: make the namespaces, topics and permissions that are missing at the broker of MDI_PULSAR_ADMIN_URL."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config.embedded import EmbeddedServerError
from config.external import make_topics


class Command(BaseCommand):
    """Make missing topics; what is there stays, partitions only grow."""

    help = "Make the namespaces, topics and permissions that are missing; MDI_PULSAR_TOKEN must be an administrator's."

    def handle(self, *_: Any, **__: Any) -> None:
        """Make them."""
        if not settings.MDI.pulsar_admin_url:
            raise CommandError("MDI_PULSAR_ADMIN_URL: not set; the embedded broker makes its topics by itself")
        try:
            make_topics(settings.MDI)
        except EmbeddedServerError as problem:
            raise CommandError(str(problem)) from problem
        self.stdout.write(f"topics exist, {settings.MDI.partitions} partitions each")
