"""The read model that a test receives."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest

from tests.infrastructure.read_model.support import ReadModel, open_read_model


@pytest.fixture
def model(database_url: str) -> AbstractAsyncContextManager[ReadModel]:
    return open_read_model(database_url)
