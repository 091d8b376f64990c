"""How many attempts one worker runs at once, in all and in limited steps."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

from application.pipeline import Step


class Slots:
    """Semaphore of a worker's attempts, first come, first served; an exclusive one runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self._entrance = asyncio.Lock()  # its holder is the next to get a slot

    def slot(self, *, exclusive: bool) -> _Slot:
        """Hold one slot; with `exclusive` all of them, so that nothing else runs meanwhile."""
        return _Slot(self, self._limit if exclusive else 1)

    async def take(self) -> None:
        await self._free.acquire()

    def give_back(self, count: int) -> None:
        for _ in range(count):
            self._free.release()

    @property
    def entrance(self) -> asyncio.Lock:
        return self._entrance


class _Slot:
    """An async context manager; no generator, since every file passes through one."""

    def __init__(self, slots: Slots, wanted: int) -> None:
        self._slots = slots
        self._wanted = wanted
        self._taken = 0

    async def __aenter__(self) -> None:
        try:
            async with self._slots.entrance:
                while self._taken < self._wanted:
                    await self._slots.take()
                    self._taken += 1
        except BaseException:
            self._slots.give_back(self._taken)
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._slots.give_back(self._taken)


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
