"""Progress of one transfer, made durable and recorded while more of it arrives, or nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from application.transfer.turns import Turn


class Checkpoints:
    """One checkpoint at a time, and none without new bytes.

    `record` makes durable and records what it can, and says whether bytes are left of which that
    is not true yet. `pace` gives the seconds that bytes wait for it. A checkpoint that fails, such
    as for a cancelled upload, ends the turn.
    """

    def __init__(
        self, turn: Turn, pace: Callable[[], float], record: Callable[[], Awaitable[bool]]
    ) -> None:
        self._turn = turn
        self._pace = pace
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[bool] | None = None
        self._over = False

    def due(self) -> None:
        """Bytes were written: they are on record soon, whether or not others follow them."""
        if self._timer is None and not self._over:
            self._timer = self._loop.call_later(self._pace(), self._begin)

    async def settled(self, *, quietly: bool = False) -> None:
        """Begins no more, waits for the one that is under way, and raises what it met."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not quietly:
                self._task.result()

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None:  # the disk is slow, and the last one is still under way
            self.due()
            return
        self._task = self._loop.create_task(self._run(), name="checkpoint")
        self._task.add_done_callback(self._ended)

    async def _run(self) -> bool:
        return await self._record()

    def _ended(self, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            if isinstance(error, Exception):
                self._turn.end(error)
            return
        if not self._over:
            self._task = None
        if task.result():
            self.due()
