"""One transfer at a time for each upload, and the newest request wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from application.transfer.errors import Ended, Overtaken


class Turn:
    """The right of one task to work on one upload, until somebody newer wants it."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ending: Exception | None = None
        self._waiting: asyncio.Task[object] | None = None

    @property
    def ended(self) -> bool:
        """Whether somebody newer wants the upload, or another reason to let it go came up."""
        return self._ending is not None

    def end(self, reason: Exception) -> None:
        """Makes the holder's wait for its sender raise this, now or when it next waits."""
        if self._ending is not None:
            return
        self._ending = reason
        if self._waiting is not None:
            self._waiting.cancel()

    def go_on(self) -> None:
        """Raises what the turn was ended with, if it was."""
        if self._ending is not None:
            raise self._ending

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The sender's next chunk, None at the end; raises what the turn was ended with.

        The holder is only ever interrupted in here: never while it writes, syncs or records.
        """
        self.go_on()
        task = asyncio.current_task()
        self._waiting = task
        try:
            return await anext(chunks, None)
        except asyncio.CancelledError:
            if self._ending is None or task is None or task.uncancel() > 0:
                raise
            raise self._ending from None
        finally:
            self._waiting = None


class Turns:
    """Hands out turns; an upload's turn is taken from its holder by whoever asks next."""

    def __init__(self) -> None:
        self._newest: dict[UUID, Turn] = {}
        self._closed: Ended | None = None

    def __len__(self) -> int:
        return len(self._newest)

    @asynccontextmanager
    async def take(self, upload: UUID, *, late: bool = False) -> AsyncIterator[Turn]:
        """Ends the turn before, waits until its bytes are committed, and holds the upload.

        Raises Overtaken where somebody newer asked while this one waited; with `late` the turn is
        held all the same, for as long as the holder needs to put down what it has.
        """
        if self._closed is not None:
            raise self._closed
        mine, before = Turn(), self._newest.get(upload)
        self._newest[upload] = mine
        try:
            if before is not None:
                before.end(Overtaken())
                await asyncio.shield(before.over)
            if not late:
                mine.go_on()
            yield mine
        finally:
            self._leave(upload, mine, before)

    def stop(self, upload: UUID) -> None:
        """Ends the transfer of this upload, if there is one here."""
        if turn := self._newest.get(upload):
            turn.end(Overtaken())

    def refuse(self, reason: Ended) -> None:
        """Ends every transfer that is yet to begin."""
        self._closed = reason

    def close(self, reason: Ended) -> None:
        """Ends every transfer, those that are yet to begin included."""
        self.refuse(reason)
        for turn in self._newest.values():
            turn.end(reason)

    def _leave(self, upload: UUID, mine: Turn, before: Turn | None) -> None:
        if self._newest.get(upload) is mine and (before is None or before.over.done()):
            del self._newest[upload]
        if before is None or before.over.done():
            mine.over.set_result(None)
        else:  # cancelled while waiting: whoever comes next still has to wait for the one before
            before.over.add_done_callback(lambda _: self._leave(upload, mine, None))
