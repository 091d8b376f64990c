from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.infrastructure.processors.step_context import close_kept_processors


@pytest.fixture(scope="module", autouse=True)
def _kept_processors_end_with_the_module() -> Iterator[None]:
    yield
    close_kept_processors()
