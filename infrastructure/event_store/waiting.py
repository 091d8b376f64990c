"""Where appends wait for the committer: first come, first served, and only so many at a time."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from application.append import AppendResult
from infrastructure.event_store.placing import Encoded, Placed


class Sent(msgspec.Struct, frozen=True):
    """Rows on their way to the server, and in which session; see `recovery.begin_session`."""

    placed: Placed
    session: int


class Pending(msgspec.Struct):
    """An append on its way. `deadline` is in seconds of the event loop's clock.

    `sent` is what was sent to the server when the connection was lost: whether it was recorded
    is unknown until it is looked up. `recording` is true from the moment at which it may
    be sent until it is certain that nothing was.
    """

    encoded: Encoded
    outcome: asyncio.Future[AppendResult]
    deadline: float
    sent: Sent | None = None
    recording: bool = False

    def resolve(self, result: AppendResult | BaseException) -> None:
        """Tells the caller, unless it has gone away."""
        if self.outcome.done():
            return
        if isinstance(result, BaseException):
            self.outcome.set_exception(result)
        else:
            self.outcome.set_result(result)


class WaitingRoom:
    """A bounded queue, measured in events: whoever finds it full waits outside."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: deque[Pending] = deque()
        self._events = 0
        self._closed = False
        self._filled = asyncio.Event()
        self._left = asyncio.Event()
        self._door = asyncio.Lock()  # serves in the order of arrival

    def __len__(self) -> int:
        return len(self._inside)

    async def enter(self, pending: Pending) -> None:
        """Raises TimeoutError if there is no room before the append's deadline, or ever."""
        if self._door.locked() or not self._room_for(pending):
            async with asyncio.timeout_at(pending.deadline), self._door:
                while not self._room_for(pending):
                    self._left.clear()
                    await self._left.wait()
        if self._closed:
            raise TimeoutError
        self._inside.append(pending)
        self._events += pending.encoded.size
        self._filled.set()

    def take(self, most: int) -> list[Pending]:
        """The next appends, together at most `most` events; a larger one comes by itself."""
        taken: list[Pending] = []
        size = 0
        while self._inside:
            following = self._inside[0].encoded.size
            if taken and size + following > most:
                break
            pending = self._inside.popleft()
            self._events -= following
            if not pending.outcome.done():  # its caller may have gone away
                taken.append(pending)
                size += following
        if not self._inside:
            self._filled.clear()
        self._left.set()
        return taken

    def take_late(self, now: float) -> list[Pending]:
        """Those whose deadline has passed."""
        late = [pending for pending in self._inside if pending.deadline <= now]
        for pending in late:
            self._inside.remove(pending)
            self._events -= pending.encoded.size
        self._left.set()
        return late

    def close(self) -> list[Pending]:
        """Lets nobody in any more, tells those outside, and returns those still inside."""
        self._closed = True
        self._left.set()
        return list(self._inside)

    async def filled(self) -> None:
        """Returns when somebody waits."""
        await self._filled.wait()

    def wake(self) -> None:
        """Lets `filled` return although nobody waits."""
        self._filled.set()

    def _room_for(self, pending: Pending) -> bool:
        return (
            self._closed or not self._events or self._events + pending.encoded.size <= self._limit
        )
