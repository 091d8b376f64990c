"""The event log and the pool of connections that tests of adapters receive."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest

from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.pool import Pool, make_pool
from tests.harness import open_log


@pytest.fixture
def log(database_url: str) -> AbstractAsyncContextManager[PostgresEventLog]:
    """An event log on the database of the test."""
    return open_log(database_url)


@pytest.fixture
def pool(database_url: str) -> AbstractAsyncContextManager[Pool]:
    """A pool of connections to the database of the test."""
    return make_pool(database_url, name="test")
