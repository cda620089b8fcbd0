"""`manage.py sequence_ticks`: numbers committed batches, builds bars, publishes. One is active; more wait as standbys."""

import gc
import os
import signal
import socket
import threading
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils.module_loading import import_string


class Command(BaseCommand):
    """Run the sequencer until SIGTERM or SIGINT."""

    help = "Number committed batches, build bars and publish them. Start a second one as a standby: it takes over by itself."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--name", default=f"{socket.gethostname()}-{os.getpid()}", help="Name shown as the lease's holder."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        loop = import_string(settings.TICK_SEQUENCER)(holder=options["name"], should_stop=stop.is_set, sleep=stop.wait)
        gc.freeze()
        loop.run()
