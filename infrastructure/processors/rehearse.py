"""`rehearse`: fails on purpose, for demos and drills; it runs only where a pipeline names it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from application.pipeline import Subject, Workbench
from infrastructure.processors.options import Options, read


class RehearseOptions(Options, frozen=True, kw_only=True):
    """Patterns of the paths that are to fail once."""

    fail_first_attempt_of: tuple[str, ...] = ()


class Rehearsed(Exception):
    """An error that was asked for; another attempt will not meet it."""


async def rehearse(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Fails the first attempt of every path that fits a pattern of `fail_first_attempt_of`.

    Patterns are those of a shell, such as `*.jpg`, held against the whole path. Raises Rehearsed.
    """
    patterns = read(RehearseOptions, options).fail_first_attempt_of
    if subject.attempt == 1 and any(fnmatchcase(subject.path, pattern) for pattern in patterns):
        raise Rehearsed("a rehearsed failure: the pipeline asks for it on the first attempt")
    return {}
