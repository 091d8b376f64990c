"""Cancellation of asyncio tasks without lost results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

CANCEL_INTERVAL = 0.2  # seconds until a task that goes on is cancelled once more


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until each has ended; their results and errors are left in them.

    Once may not do: in Python 3.11 `asyncio.wait_for`, on which pools wait for a connection,
    drops a cancellation that arrives together with its result.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_INTERVAL)


async def run_until_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` in a task of its own, which has ended when a cancellation is passed on."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await cancel_and_wait(task)
        raise


async def shield_result(work: asyncio.Future[T], on_discard: Callable[[T], object]) -> T:
    """Await `work`, shielded from cancellation.

    If the caller is cancelled, `work` goes on and its result is passed to `on_discard`: stopping it
    half way would lose what it was about to return.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(partial(_discard, on_discard))
        raise


def _discard(on_discard: Callable[[T], object], work: asyncio.Future[T]) -> None:
    if not work.cancelled() and work.exception() is None:
        on_discard(work.result())
