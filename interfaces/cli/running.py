"""Runs a command's coroutine against the server, with the screen and the client it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from infrastructure.allocator import share_one_arena
from infrastructure.tasks import ending
from interfaces.cli.client import Client
from interfaces.cli.options import Common

T = TypeVar("T")

PATIENCE = 60.0  # seconds of silence that a long job puts up with


def ask(common: Common, what: Callable[[Client], Awaitable[T]], *, patience: float = 0.0) -> T:
    """Runs `what` with a client of the server these options mean. Raises CommandError."""

    async def asking() -> T:
        server, timeout = common.server(), common.connect_timeout
        async with Client(server, patience=patience, connect_timeout=timeout) as client:
            return await what(client)

    return asyncio.run(ending(asking()))


def run_fast(main: Coroutine[Any, Any, T]) -> T:
    """Runs a server's coroutine on uvloop, where there is one, and with memory kept small."""
    share_one_arena()
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)
