"""The harness that a test of orchestrator and workers receives."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.jobs.harness import PipelineHarness, open_harness, pipeline


@pytest.fixture
def harness(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[PipelineHarness]:
    """With a pipeline of one step named "step", unless `@pytest.mark.options` has others."""
    return open_harness(database_url, tmp_path, **{"pipelines": pipeline("step"), **marked_options})
