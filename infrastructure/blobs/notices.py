"""The port `Elsewhere` over NOTIFY: one process asks the others to let go of an upload."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

from psycopg.sql import SQL

from infrastructure.postgres.listener import UPLOADS, Listener
from infrastructure.postgres.pool import Pool, borrowed

# Nothing is recorded: whoever asks need not wait until the disk has it.
_STOP = SQL("SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, %s)")


class NotifiedElsewhere:
    """A notice is `<process> <upload>`: every process hears all of them, its own included."""

    def __init__(self, pool: Pool, listener: Listener) -> None:
        self._pool = pool
        self._listener = listener
        self._process = uuid4().hex

    async def stop(self, upload: UUID) -> None:
        async with borrowed(self._pool) as connection:
            await connection.execute(_STOP, (UPLOADS, f"{self._process} {upload}"))

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        def heard(payload: str) -> None:
            process, _, upload = payload.partition(" ")
            if process != self._process:
                callback(UUID(upload))

        self._listener.subscribe(UPLOADS, heard)
