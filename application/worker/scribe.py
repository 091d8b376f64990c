"""Records what many attempts have to say in as few appends as they come in."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from application.append import Append, StreamAppend
from application.errors import OutcomeUnknown, Unavailable
from application.ports.event_log import EventLog

TOGETHER = 100  # writes of one append
LINGER = 0.005  # seconds in which writes gather: attempts of small files end close together


class _Waiting(NamedTuple):
    write: StreamAppend
    recorded: asyncio.Future[None]


class Scribe:
    """Takes single writes, and gives the log all that have gathered in a moment.

    Every write keeps its own expected version and gets its own answer: one that is refused
    does not take the others with it. As many wait as there are attempts under way.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._waiting: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None

    def record(self, write: StreamAppend) -> asyncio.Future[None]:
        """Done once the write is recorded, or fails with what `EventLog.append` raises.

        Nobody can call it back: who stops waiting for the answer does not stop the write.
        """
        waiting = _Waiting(write, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="scribe")
        return waiting.recorded

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(LINGER)
                most = min(TOGETHER, len(self._waiting))
                await self._write([self._waiting.popleft() for _ in range(most)])
        finally:
            self._writing = None

    async def _write(self, group: list[_Waiting]) -> None:
        try:
            await self._log.append(Append(tuple(waiting.write for waiting in group)))
        except Exception as error:
            if len(group) == 1 or isinstance(error, Unavailable | OutcomeUnknown):
                _answer(group, error)
            else:  # something in it is refused: which, and what else, each finds out by itself
                await asyncio.gather(*(self._write([waiting]) for waiting in group))
        else:
            _answer(group, None)


def _answer(group: list[_Waiting], error: Exception | None) -> None:
    for _, recorded in group:
        if error is None:
            recorded.set_result(None)
        else:
            recorded.set_exception(error)
