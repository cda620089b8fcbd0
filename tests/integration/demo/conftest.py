"""The demo's real data, read once a session: it is only read, never changed."""

import pytest

from integration.demo.stream import History

SEED = 7


@pytest.fixture(scope="session")
def history() -> History:
    return History.load(SEED)
