"""Errors of steps are described for the history, whatever their classes do."""

from __future__ import annotations

import pytest

from application.pipeline import PermanentError, Quarantine
from application.worker.step_result import describe_error
from infrastructure.processors.archive import ArchiveResourceLimit, ArchiveRuleViolation
from infrastructure.processors.http import ServicePermanentError
from infrastructure.processors.simple import SimulatedFailure


class OfAPackage(PermanentError):
    """An error class of an installed processor."""


class BadDeclaration(Exception):
    error_type = 7


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (PermanentError("x"), "Permanent"),
        (Quarantine("x"), "Quarantine"),
        (ArchiveRuleViolation("x"), "ArchiveRefused"),
        (ArchiveResourceLimit("x"), "ArchiveBeyondLimits"),
        (ServicePermanentError("x"), "ServiceRefused"),
        (SimulatedFailure("x"), "Rehearsed"),
        (OfAPackage("x"), "OfAPackage"),
        (ValueError("x"), "ValueError"),
        (BadDeclaration("x"), "Exception"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_recorded_error_type_keeps_its_name(error: Exception, recorded: str) -> None:
    assert describe_error(error).error_type == recorded
