"""Tasks that end for certain, and work whose results nobody loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from application.errors import Unavailable

T = TypeVar("T")

TURN = 10.0  # seconds to wait for others that use the same connection
AGAIN = 0.2  # seconds until a task that goes on is cancelled once more


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks until each has ended; how they ended is theirs to tell.

    Once may not do: in Python 3.11 `asyncio.wait_for`, on which pools wait for a connection,
    drops a cancellation that arrives together with its result.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN)


async def ending(work: Coroutine[Any, Any, T]) -> T:
    """Awaits the work, and ends it for certain when cancelled."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await end(task)
        raise


async def delivered(work: asyncio.Future[T], unwanted: Callable[[T], object]) -> T:
    """What comes of the work; where the caller is cancelled meanwhile, it goes to `unwanted`.

    The work goes on either way: to stop it half way would lose what it was about to hand over.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(partial(_pass_on, unwanted))
        raise


def _pass_on(unwanted: Callable[[T], object], work: asyncio.Future[T]) -> None:
    if not work.cancelled() and work.exception() is None:
        unwanted(work.result())


@asynccontextmanager
async def in_turn(lock: asyncio.Lock) -> AsyncIterator[None]:
    """Holds the lock, for which a request does not wait longer than TURN. Raises Unavailable."""
    try:
        async with asyncio.timeout(TURN):
            await lock.acquire()
    except TimeoutError:
        raise Unavailable("too many requests wait for the same connection") from None
    try:
        yield
    finally:
        lock.release()
