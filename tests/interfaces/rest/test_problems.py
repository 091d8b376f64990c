"""Mapping of errors that no request can provoke to problems."""

from __future__ import annotations

from uuid import UUID

import pytest

from application.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    StorageFull,
    TooManyConflicts,
    Unavailable,
)
from domain.errors import FieldError, InvalidState, OutOfRange, StaleAttempt, ValidationFailed
from interfaces.common.problems import problem_of

EXPECTED: list[tuple[Exception, int, str]] = [
    (NotFound("x"), 404, "not_found"),
    (InvalidState("x"), 409, "invalid_state"),
    (OutOfRange("x"), 409, "out_of_range"),
    (StaleAttempt("x"), 409, "superseded"),
    (TooManyConflicts("x"), 409, "busy"),
    (Conflict(UUID(int=1), 1, 2), 409, "conflict"),
    (StorageFull("x"), 507, "storage_full"),
    (Unavailable("x"), 503, "unavailable"),
    (OutcomeUnknown("x"), 503, "undetermined"),
    (ValidationFailed(FieldError("files/3/size", "is odd")), 422, "invalid"),
    (KeyError("x"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), EXPECTED)
def test_every_error_has_its_problem(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)

    assert (problem.status, problem.code) == (status, code)


def test_a_document_names_the_first_hundred_faults_and_counts_the_rest() -> None:
    faults = [FieldError(f"files/{index}/path", "is bad") for index in range(250)]

    problem = problem_of(ValidationFailed(*faults))

    assert len(problem.errors) == 100
    assert problem.detail == "/files/0/path: is bad (and 249 more)"


def test_a_transient_problem_has_a_retry_after() -> None:
    for error in (TooManyConflicts("x"), Unavailable("x"), OutcomeUnknown("x")):
        assert problem_of(error).headers["Retry-After"] == "1"
