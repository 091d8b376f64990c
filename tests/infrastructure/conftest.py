"""The event log, the read model and the connections that tests of adapters receive."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest

from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool, make_pool
from tests.harness import open_log
from tests.infrastructure.event_store.log_support import connected
from tests.infrastructure.read_model.support import ReadModel, open_read_model


@pytest.fixture
def log(database_url: str) -> AbstractAsyncContextManager[PostgresEventLog]:
    """An event log on the database of the test."""
    return open_log(database_url)


@pytest.fixture
def pool(database_url: str) -> AbstractAsyncContextManager[Pool]:
    """A pool of connections to the database of the test."""
    return make_pool(database_url, name="test")


@pytest.fixture
def connection(database_url: str) -> AbstractAsyncContextManager[Connection]:
    """A connection to the database of the test."""
    return connected(database_url)


@pytest.fixture
def model(database_url: str) -> AbstractAsyncContextManager[ReadModel]:
    """An event log with its read model."""
    return open_read_model(database_url)
