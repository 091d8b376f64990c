"""One LISTEN connection a process: says when to read again, and passes notices on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import psycopg
import structlog
from psycopg.sql import SQL, Identifier

from infrastructure.postgres.database_url import BadDatabaseUrl
from infrastructure.postgres.pool import Connection, connect

LOG = "uptrail_log"  # payload: the last position of a commit
READ_MODEL = "uptrail_read_model"  # payload: the position the read model has reached
UPLOADS = "uptrail_uploads"  # payload: text, from one process to the others
CREDENTIALS = "uptrail_credentials"  # no payload: keys or sessions ended
CHANNELS = (LOG, READ_MODEL, UPLOADS, CREDENTIALS)

FALLBACK = 1.0  # seconds after which a reader looks by itself, whatever the listener heard
PROBE = 10.0  # seconds of silence after which the connection is tried
LONGEST_BACKOFF = 5.0  # seconds between attempts to reach the server again

Callback: TypeAlias = Callable[[str], None]

_log = structlog.get_logger(__name__)


class ChannelWakeups:
    """The port `Wakeups`, for one channel; `position` is the last one announced."""

    def __init__(self) -> None:
        self.position = 0
        self._changed = asyncio.Event()

    async def wait(self, after: int) -> None:
        """Returns once a position beyond `after` was announced, or after a second.

        `after` is how far the caller has read, whether or not anything there concerned it.
        """
        if self.position > after:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(FALLBACK):
                await self._changed.wait()

    def announce(self, position: int | None) -> None:
        """Wakes every waiter; None where the position is not known, as after a reconnect."""
        if position is not None:
            self.position = position
        self._changed.set()
        self._changed = asyncio.Event()


class Notices:
    """The last texts of a channel, for one consumer; bounded.

    A consumer that falls behind loses the oldest, and `missed` counts them.
    """

    def __init__(self, size: int) -> None:
        self._queue = asyncio.Queue[str](size)
        self.missed = 0

    async def next(self) -> str:
        return await self._queue.get()

    def put(self, text: str) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.missed += 1
        self._queue.put_nowait(text)


class Listener:
    """Listens on every channel, for ever: reconnects by itself, with backoff.

    After each connect all readers are woken, so that what was announced meanwhile is read.
    Use as an async context manager.
    """

    def __init__(self, url: str, channels: tuple[str, ...] = CHANNELS) -> None:
        self._url = url
        self._wakeups = {channel: ChannelWakeups() for channel in channels}
        self._callbacks: dict[str, list[Callback]] = {channel: [] for channel in channels}
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def __aenter__(self) -> Listener:
        self._task = asyncio.create_task(self._listen_for_ever(), name="listener")
        with suppress(TimeoutError):  # an unreachable server is tried for ever, meanwhile
            async with asyncio.timeout(FALLBACK):
                await self._listening.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops listening; waiters find out by their own fallback."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        # uvloop crashes when a connection is closed under a task that still waits for it.
        with suppress(asyncio.CancelledError):
            await task

    def wakeups(self, channel: str = LOG) -> ChannelWakeups:
        return self._wakeups[channel]

    def notices(self, channel: str, size: int = 1000) -> Notices:
        """A queue that from now on receives the payloads of the channel."""
        notices = Notices(size)
        self.subscribe(channel, notices.put)
        return notices

    def subscribe(self, channel: str, callback: Callback) -> Callable[[], None]:
        """Calls back with each payload, in the event loop; returns the way to stop that."""
        self._callbacks[channel].append(callback)
        return lambda: self._callbacks[channel].remove(callback)

    async def _listen_for_ever(self) -> None:
        backoff = 0.05
        while True:
            try:
                connection = await connect(self._url, name="listener", patient=False)
                try:
                    await self._listen(connection)
                finally:
                    await connection.close()
            except (psycopg.Error, OSError, BadDatabaseUrl) as error:
                if self._listening.is_set():
                    backoff = 0.05
                self._listening.clear()
                _log.warning("listener_disconnected", error=str(error), retry_in=backoff)
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _listen(self, connection: Connection) -> None:
        for channel in self._wakeups:
            await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
        # Only now: a reader that is woken here reads everything this connection did not hear.
        for wakeups in self._wakeups.values():
            wakeups.announce(None)
        self._listening.set()
        while True:
            async for notice in connection.notifies(timeout=PROBE):
                self._deliver(notice.channel, notice.payload)
            await connection.execute("SELECT 1")

    def _deliver(self, channel: str, payload: str) -> None:
        self._wakeups[channel].announce(int(payload) if payload.isdecimal() else None)
        for callback in tuple(self._callbacks[channel]):
            try:
                callback(payload)
            except Exception:
                _log.exception("listener_callback_failed", channel=channel)
