"""Places in steps that only so many uploads of one worker may be in at once."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

from application.pipeline import Step


class Places:
    """The places of every limited step, by pipeline and step; kept for the worker's life."""

    def __init__(self) -> None:
        self._limited: dict[tuple[str, str], asyncio.Semaphore] = {}

    def in_step(self, pipeline: str, step: Step) -> AbstractAsyncContextManager[None]:
        """A place in the step, waited for in turn; given back at the end of the context."""
        if step.concurrency is None:
            return nullcontext()
        key = (pipeline, step.label)
        if key not in self._limited:
            self._limited[key] = asyncio.Semaphore(step.concurrency)
        return self._limited[key]
