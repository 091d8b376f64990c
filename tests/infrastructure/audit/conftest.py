"""The sealed log that a test of the audit receives."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.infrastructure.audit.harness import AuditHarness, open_audit_harness


@pytest.fixture
def audit(database_url: str, tmp_path: Path) -> AbstractAsyncContextManager[AuditHarness]:
    return open_audit_harness(database_url, tmp_path)
