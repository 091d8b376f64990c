"""Kills, stops or cancels work at a chosen await."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any


class AwaitKiller:
    """Counts the awaits of its tasks; at number `ends_at` the process is killed, or stopped.

    At an await everything the process wrote is on its way: the server may or may not come to do
    what it was asked, and the process does not learn it. Nothing counts before `begin`.
    """

    def __init__(self, ends_at: int | None, *, stands_still: bool) -> None:
        self.awaits = 0
        self._ends_at = ends_at
        self._signal = signal.SIGSTOP if stands_still else signal.SIGKILL
        self._begun = False

    def begin(self) -> None:
        self._begun = True

    def passed(self, awaited: Any) -> None:
        """Count one await, of this future or of the next iteration of the loop."""
        if self._begun:
            self.awaits += 1
            if self.awaits == self._ends_at:
                os.kill(os.getpid(), self._signal)

    def task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any
    ) -> asyncio.Task[Any]:
        """Task factory that counts the awaits of every task of the loop."""
        return asyncio.Task(_Counted(work, self.passed), loop=loop, **more)


def unmonitored(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task whose awaits are not counted."""
    return asyncio.Task(work, loop=asyncio.get_running_loop())


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that reports each suspension."""

    def __init__(self, inner: Coroutine[Any, Any, Any], passed: Callable[[Any], None]) -> None:
        self._inner = inner
        self._passed = passed

    def send(self, value: Any) -> Any:
        awaited = self._inner.send(value)
        self._passed(awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._inner.throw(*error)
        self._passed(awaited)
        return awaited

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()


class Interrupted:
    """Work that is cancelled at its await number `at`; `late`: in the moment its answer comes."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, *, late: bool) -> None:
        self._left = at
        self._late = late
        self._task = unmonitored(_Counted(work, self._passed))

    async def ended(self) -> bool:
        """Return whether the work ended before; raise its exception."""
        await asyncio.wait((self._task,))
        if self._task.cancelled():
            return False
        self._task.result()
        return self._left > 0

    def _passed(self, awaited: Any) -> None:
        self._left -= 1
        if self._left:
            return
        if self._late and asyncio.isfuture(awaited):
            awaited.add_done_callback(lambda _: self._task.cancel())
        else:
            self._task.cancel()
