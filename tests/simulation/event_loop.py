"""Event loop with virtual time and a seeded order of ready callbacks.

Nothing waits: when no callback is ready, the clock jumps to the next timer. Which of the ready
callbacks runs next is drawn from the seed. A callback belongs to the process in whose context it
was scheduled; those of a process that was killed never run again, at whatever await it was.
"""

from __future__ import annotations

import asyncio
import heapq
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class Process:
    """One process of the simulation: its tasks run until it is killed."""

    def __init__(self, name: str, loop: SimulatedLoop) -> None:
        self.name = name
        self.is_alive = True
        self.died: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._on_death: list[Callable[[], None]] = []

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run `work` as a task of this process."""
        return self._loop.create_task(work, name=name, context=self.context())

    def context(self) -> Context:
        """Return a context whose callbacks belong to this process."""
        context = copy_context()
        context.run(PROCESS.set, self)
        return context

    def on_death(self, callback: Callable[[], None]) -> None:
        """Register what the other side notices: sessions and connections that end."""
        self._on_death.append(callback)

    def kill(self) -> None:
        """End at once, like kill -9: no task of this process runs any more, not even `finally`."""
        if not self.is_alive:
            return
        self.is_alive = False
        for callback in self._on_death:
            callback()
        self.died.set_result(None)


class NothingLeft(Exception):
    """No callback is ready and no timer is set: everything waits for ever."""


class NumberedTask(asyncio.Task[T]):
    """Task whose hash is its number in the loop, not its address.

    Sets of tasks, of the standard library's too, are then iterated in the same order each time.
    """

    def __init__(self, number: int, work: Coroutine[Any, Any, T], **more: Any) -> None:
        self._number = number  # first: the task is registered in a set while it is made
        super().__init__(work, **more)

    def __hash__(self) -> int:
        return self._number


class NumberedTimer(asyncio.TimerHandle):
    """Timer that comes after those that were set before it for the same moment.

    The order that a heap gives to equal items depends on when cancelled ones were dropped from it.
    """

    def __init__(self, number: int, *more: Any) -> None:
        super().__init__(*more)
        self._number = number

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, NumberedTimer)
        return (self.when(), self._number) < (other.when(), other._number)


class SimulatedLoop(asyncio.BaseEventLoop):
    """Event loop without input or output."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)
        self._now = 0.0
        self.steps = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self._tasks_made = self._timers_made = 0
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._timers_made += 1
        timer = NumberedTimer(self._timers_made, when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], **more: Any
    ) -> asyncio.Task[T]:
        self._tasks_made += 1
        task = NumberedTask(self._tasks_made, work, loop=loop, **more)
        self.tasks.append(task)
        if len(self.tasks) > 5000:
            self.tasks = [task for task in self.tasks if not task.done()]
        return task

    def _run_once(self) -> None:
        """Run one callback. (Overrides the method that `run_forever` repeats.)"""
        ready: Any = self._ready  # type: ignore[attr-defined]
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and (
            scheduled[0]._cancelled or scheduled[0]._when <= self._now or not ready  # type: ignore[attr-defined]
        ):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer._cancelled or not _is_alive(timer):  # type: ignore[attr-defined]
                continue
            self._now = max(self._now, timer._when)  # type: ignore[attr-defined]
            ready.append(timer)
        if not ready:
            raise NothingLeft
        chosen = self._random.randrange(len(ready))
        if chosen:  # takes the chosen one out of the deque, and keeps the order of the others
            ready.rotate(-chosen)
            handle = ready.popleft()
            ready.rotate(chosen)
        else:
            handle = ready.popleft()
        if handle._cancelled or not _is_alive(handle):
            return
        self.steps += 1
        handle._run()

    def _write_to_self(self) -> None:
        """Nothing waits that would have to be woken. (Called by `call_soon_threadsafe`.)"""

    def run_in_executor(self, *_: Any) -> Any:
        raise RuntimeError("the simulation has no threads")

    def abandon_tasks(self) -> None:
        """End the coroutines that are left, without running what they would do afterwards."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in self.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with suppress(BaseException):
                        task.get_coro().close()  # type: ignore[union-attr]
            self.tasks.clear()
            self._ready.clear()  # type: ignore[attr-defined]


def _is_alive(handle: asyncio.Handle) -> bool:
    context: Context = handle._context  # type: ignore[attr-defined]
    process = context.get(PROCESS)
    return process is None or process.is_alive
