"""How a run of a pipeline can end."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from application.worker.step_error import Kind, describe
from domain.upload.aggregate import Failure


class Passed(msgspec.Struct, frozen=True):
    """Every step passed: results by step, artifacts as name to blob name."""

    results: dict[str, dict[str, Any]]
    artifacts: dict[str, str]


class Failed(msgspec.Struct, frozen=True):
    """A step met an error; the upload's policy says what follows."""

    failure: Failure


class Held(msgspec.Struct, frozen=True):
    """A step found the file dangerous."""

    failure: Failure


Verdict: TypeAlias = Passed | Failed | Held


def verdict_of(step: str, error: BaseException) -> Failed | Held:
    """The verdict that follows from the error which ended a step, whatever its class is."""
    described = describe(error)
    failure = Failure(
        step=step,
        error_type=described.error_type,
        message=described.message,
        permanent=described.kind is not Kind.RETRYABLE,
    )
    return Held(failure) if described.kind is Kind.QUARANTINE else Failed(failure)
