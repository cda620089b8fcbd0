"""Fixtures of more than one folder."""

from collections.abc import Iterator

import pytest
from django.db import connection

from tests.e2e.world import World, build_world


@pytest.fixture
def world(transactional_db: None) -> Iterator[World]:
    """Yield reference data in an empty database; workers made from it are closed afterwards."""
    made = build_world()
    yield made
    for worker in made.workers:
        worker.stop.set()
        worker.close()
    connection.close()
