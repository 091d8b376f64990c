"""How many attempts one worker runs at once, in all and in limited steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from application.pipeline import Step


class Slots:
    """Semaphore of a worker's attempts, first come, first served; an exclusive one runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self._entrance = asyncio.Lock()  # whoever holds it is the next to get a slot

    @asynccontextmanager
    async def slot(self, *, exclusive: bool) -> AsyncIterator[None]:
        """Hold one slot; with `exclusive` all of them, so that nothing else runs meanwhile."""
        taken = 0
        try:
            async with self._entrance:
                for _ in range(self._limit if exclusive else 1):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()


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
