"""Fake processors: they pass, fail, wait or quarantine as a test wants."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from application.pipeline import PermanentError, Quarantine, StepContext, StepInput


async def pass_file(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    return {"attempt": subject.attempt}


async def fail_bad_file(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Fail permanently if the path contains `bad`."""
    if "bad" in subject.path:
        raise PermanentError(f"{subject.path} is bad")
    return {}


async def quarantine_eicar(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Quarantine a file whose path contains `eicar`."""
    if "eicar" in subject.path:
        raise Quarantine("EICAR")
    return {}


class Gate:
    """Holds every attempt until it is opened; records those that wait and those cancelled."""

    def __init__(self, *, opened: bool = False) -> None:
        self.inside: list[UUID] = []
        self.most: dict[UUID, int] = {}
        self.cancelled: list[UUID] = []
        self._open = asyncio.Event()
        if opened:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    async def __call__(
        self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        id = subject.upload
        self.inside.append(id)
        self.most[id] = max(self.most.get(id, 0), self.inside.count(id))
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(id)
            raise
        finally:
            self.inside.remove(id)
        return {}


class Fails:
    """Raises the same retryable error in each of the first attempts of every upload."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts

    async def __call__(
        self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        if subject.attempt <= self._attempts:
            raise ConnectionResetError("the scanner hung up")
        return {}


class Raises:
    """Raises one error of any kind in every attempt, unless the path contains `good`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def __call__(
        self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        if "good" in subject.path:
            return {}
        raise self._error


class FailsAsAllowed:
    """Fails as many attempts in all as it is allowed to, permanently; the others wait."""

    def __init__(self) -> None:
        self.failed = 0
        self._allowed = 0
        self._changed = asyncio.Condition()

    async def allow(self, failures: int) -> None:
        async with self._changed:
            self._allowed = failures
            self._changed.notify_all()

    async def __call__(
        self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        async with self._changed:
            await self._changed.wait_for(lambda: self.failed < self._allowed)
            self.failed += 1
        raise PermanentError(f"{subject.path} is bad")
