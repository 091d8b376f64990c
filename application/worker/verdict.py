"""How a run of a pipeline can end."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from domain.upload.failure import Failure


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


def failure_of(step: str, error: BaseException, *, permanent: bool = False) -> Failure:
    """The error as it was, in characters that can be stored."""
    text = str(error) or repr(error)
    return Failure(
        step=step,
        error_type=type(error).__name__,
        message=text.encode("utf-8", "replace").decode(),
        permanent=permanent,
    )
