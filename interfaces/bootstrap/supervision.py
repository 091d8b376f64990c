"""Keeps the parts of a server running: what dies is told and started again, or ends the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import structlog

from infrastructure.backoff import Backoff
from infrastructure.database_errors import is_transient

Work: TypeAlias = Callable[[], Awaitable[None]]

FIRST_PAUSE = 0.2  # seconds before the first new start
LONGEST_PAUSE = 10.0
LONGEST_OUTAGE_PAUSE = 5.0  # while the database is unusable: every part is back soon after it
STEADY = 30.0  # seconds of running after which earlier deaths are forgotten
RECOVERED = 1.0  # seconds of running after which an outage counts as over
AGAIN = 0.5  # seconds until a part that goes on is cancelled once more
HOPELESS = 8  # deaths, none of them after a steady run

_log = structlog.get_logger(__name__)


class PartFailed(Exception):
    """A part of the server dies however often it is started."""

    def __init__(self, name: str, error: BaseException | None) -> None:
        super().__init__(f"{name} keeps failing: {error!r}")
        self.hint = "the log holds every error; uptrail doctor checks what it stands on"


class NeverUp(PartFailed):
    """A part of the server did not come up the first time; it has told why by itself."""

    def __init__(self, name: str, error: BaseException | None) -> None:
        super().__init__(name, error)
        self.args = (f"{name} did not come up: {error}",)


async def supervise(name: str, work: Work, *, essential: bool = True) -> None:
    """Run `work` until cancelled, however often it ends: the one loop that restarts a part.

    If an `essential` part ends too often, raises PartFailed, which ends the server. Any other part
    is restarted without limit, every LONGEST_PAUSE seconds. An end because the database is unusable
    or because another process leads does not count: the part is restarted for as long as that
    takes.
    """
    loop = asyncio.get_running_loop()
    deaths, restarts = 0, Backoff(FIRST_PAUSE, LONGEST_PAUSE)
    outage = Backoff(FIRST_PAUSE, LONGEST_OUTAGE_PAUSE)
    while True:
        began, failure = loop.time(), None
        try:
            await work()
        except NeverUp:
            raise
        except Exception as error:
            failure = error
        lasted = loop.time() - began
        if lasted > STEADY:
            deaths = 0
            restarts.reset()
        if lasted > RECOVERED:
            outage.reset()
        if failure is not None and is_transient(failure):
            pause = outage.next_pause()
            _log.warning("part_waits", part=name, error=str(failure), restart_in=pause)
            await asyncio.sleep(pause)
            continue
        deaths += 1
        pause = restarts.next_pause()
        _log.error("part_died", part=name, deaths=deaths, restart_in=pause, exc_info=failure)
        if essential and deaths >= HOPELESS:
            raise PartFailed(name, failure)
        await asyncio.sleep(pause)


async def first_end(stopping: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Returns when told to stop; raises what a hopeless part raised."""
    waiting = asyncio.create_task(stopping.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        waiting.cancel()


async def cancel(*tasks: asyncio.Task[None], within: float, insist: bool = False) -> None:
    """Cancels tasks and waits for their ends, so long at most; a late one is told of.

    With `insist`, what goes on is cancelled again every so often: in Python 3.11 a pool that
    hands out a connection at that very moment drops the cancellation.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    while running and (left := deadline - loop.time()) > 0:
        _, running = await asyncio.wait(running, timeout=min(left, AGAIN) if insist else left)
        for task in running if insist else ():
            task.cancel()
    for task in running:
        _log.error("part_does_not_end", part=task.get_name(), waited=within)
