"""One LISTEN connection per process, which wakes readers and passes payloads to subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg.sql import SQL, Identifier

from infrastructure.backoff import Backoff
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.database_url import BadDatabaseUrl
from infrastructure.postgres.pool import Pool

LOG = "uptrail_log"  # payload: the last position of a commit
READ_MODEL = "uptrail_read_model"  # payload: the position the read model has reached
UPLOADS = "uptrail_uploads"  # payload: text, from one process to the others
CREDENTIALS = "uptrail_credentials"  # no payload: keys were revoked or sessions ended
CHANNELS = (LOG, READ_MODEL, UPLOADS, CREDENTIALS)

POLL_INTERVAL = 1.0  # seconds after which a waiting reader reads although nothing was announced
PROBE_INTERVAL = 10.0  # seconds without a notification after which the connection is checked
MIN_BACKOFF = 0.05  # seconds between two attempts to connect
MAX_BACKOFF = 5.0

Callback: TypeAlias = Callable[[str], None]

_log = structlog.get_logger(__name__)


class ChannelWakeups:
    """The port `Wakeups`, for one channel; `position` is the last one announced."""

    def __init__(self) -> None:
        self.position = 0
        self._changed = asyncio.Event()

    async def wait(self, after: int) -> None:
        """Wait until a position beyond `after` was announced, POLL_INTERVAL at most.

        `after` is the position up to which the caller has read.
        """
        if self.position > after:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL):
                await self._changed.wait()

    def announce(self, position: int | None) -> None:
        """Wake every waiter; `position` is None where it is not known, as after a reconnect."""
        if position is not None:
            self.position = position
        self._changed.set()
        self._changed = asyncio.Event()


class Listener:
    """A session that listens on every channel, and connects again with backoff when it is lost.

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
        with suppress(TimeoutError):  # attempts to connect go on in the task
            async with asyncio.timeout(POLL_INTERVAL):
                await self._listening.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening; waiting readers return after POLL_INTERVAL."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        # uvloop crashes when a connection is closed under a task that still waits for it.
        with suppress(asyncio.CancelledError):
            await task

    def wakeups(self, channel: str = LOG) -> ChannelWakeups:
        return self._wakeups[channel]

    def subscribe(self, channel: str, callback: Callback) -> Callable[[], None]:
        """Call back with each payload, in the event loop; return the function that ends this."""
        self._callbacks[channel].append(callback)
        return lambda: self._callbacks[channel].remove(callback)

    async def _listen_for_ever(self) -> None:
        backoff = Backoff(MIN_BACKOFF, MAX_BACKOFF)
        while True:
            try:
                connection = await connect(self._url, name="listener", patient=False)
                try:
                    await self._listen(connection)
                finally:
                    await connection.close()
            except (psycopg.Error, OSError, BadDatabaseUrl) as error:
                if self._listening.is_set():
                    backoff.reset()
                self._listening.clear()
                pause = backoff.next_pause()
                _log.warning("listener_disconnected", error=str(error), retry_in=pause)
                await asyncio.sleep(pause)

    async def _listen(self, connection: Connection) -> None:
        for channel in self._wakeups:
            await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
        # Only now: readers woken here read what was committed before this session listened.
        for wakeups in self._wakeups.values():
            wakeups.announce(None)
        self._listening.set()
        while True:
            async for notice in connection.notifies(timeout=PROBE_INTERVAL):
                self._deliver(notice.channel, notice.payload)
            await connection.execute("SELECT 1")

    def _deliver(self, channel: str, payload: str) -> None:
        self._wakeups[channel].announce(int(payload) if payload.isdecimal() else None)
        for callback in tuple(self._callbacks[channel]):
            try:
                callback(payload)
            except Exception:
                _log.exception("listener_callback_failed", channel=channel)


# Nothing is recorded, so the commit need not wait for the disk.
_STOP = SQL("SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, %s)")


class NotifyPreemption:
    """The port `RemotePreemption`: one process asks the others to release an upload.

    A notice is `<process> <upload>`; every process receives all of them, its own included.
    """

    def __init__(self, pool: Pool, listener: Listener) -> None:
        self._pool = pool
        self._listener = listener
        self._process = uuid4().hex

    async def stop(self, upload: UUID) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(_STOP, (UPLOADS, f"{self._process} {upload}"))

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        def receive(payload: str) -> None:
            process, _, upload = payload.partition(" ")
            if process != self._process:
                callback(UUID(upload))

        self._listener.subscribe(UPLOADS, receive)
