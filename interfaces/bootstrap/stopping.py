"""How a server is told to stop: by signals, the second of which does not ask."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from interfaces.bootstrap.exit import leave_at_once

SAME = 0.3  # seconds within which two signals are one


@contextmanager
def signals(
    stopping: asyncio.Event, at_once: Callable[[], object] = leave_at_once
) -> Iterator[None]:
    """SIGTERM and SIGINT set `stopping`; the second one calls `at_once`.

    What follows at once is the same signal again, sent to the process and to its group.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    loop = asyncio.get_running_loop()
    first = 0.0

    def asked() -> None:
        nonlocal first
        if not first:
            first = loop.time()
            stopping.set()
        elif loop.time() - first > SAME:
            at_once()

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        for kind in kinds:
            loop.add_signal_handler(kind, asked)
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)
