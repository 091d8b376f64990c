"""Carries an erasure out, step by step: each may be done again, and a crash anywhere harms nothing.

Batches are called off and end; bytes go, and every upload and batch says so on record; the keys are
destroyed, with the master key that encrypted them, so encrypted fields become unreadable; then
copies that others kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from application.commands import CancelBatch, EraseBatch, EraseUpload
from application.handlers.execute import CommandContext, execute
from application.ports.blobs import BlobStore
from application.ports.erasures import Erasure
from application.ports.event_log import EventLog
from domain.errors import InvalidState
from infrastructure.erasure.erasures import finish
from infrastructure.erasure.key_copies import OwnerKeyCopies
from infrastructure.erasure.keyring import FRESH
from infrastructure.erasure.master_keys import MasterKeys
from infrastructure.erasure.wrapping import destroy_masters_of
from infrastructure.event_store.committer import PATIENCE
from infrastructure.postgres.pool import Connection

# Whoever did not hear yet that the owner is being erased may still begin something new, and wait to
# have it recorded: so long nothing is collected.
SETTLE = FRESH + PATIENCE + 5.0  # seconds

LOOK = 0.05  # seconds between two looks at how far the read model is
CHUNK = 500  # uploads, or batches, that one step takes on
REASON = "the data of its owner is erased"

_RUNNING = """SELECT batch, state FROM orchestration.batches
WHERE owner = %s AND state <> 'completed' LIMIT %s"""
_UPLOADS = """SELECT u.id, u.state, u.blob, u.artifacts FROM read_model.batches b
JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %s AND u.state <> 'erased' LIMIT %s"""
_BATCHES = "SELECT id FROM read_model.batches WHERE owner = %s AND id > %s ORDER BY id LIMIT %s"
_COUNTS = """SELECT (SELECT count(*) FROM read_model.batches WHERE owner = %(owner)s),
(SELECT count(*) FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
 WHERE b.owner = %(owner)s)"""
_REFLECTED = """SELECT notification_id FROM notification_tracking
WHERE application_name = 'read_model'"""

_STREAMS = """SELECT b.id FROM read_model.batches b WHERE b.owner = %(owner)s
UNION ALL SELECT u.id FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %(owner)s"""
_DELETE_ANSWERS = "DELETE FROM command_answers WHERE owner = %(owner)s"
_SCRUB = (
    f"DELETE FROM stored_snapshots WHERE originator_id IN ({_STREAMS})",  # noqa: S608
    # Hashes of what was asked for, such as the reason of a cancellation, could be guessed.
    _DELETE_ANSWERS,
    f"""DELETE FROM command_answers WHERE CASE WHEN owner IS NULL  -- of an earlier version
    THEN (convert_from(body, 'UTF8')::jsonb ->> 'id')::uuid END IN ({_STREAMS})""",  # noqa: S608
    f"DELETE FROM errands WHERE upload IN ({_STREAMS})",  # noqa: S608
    "UPDATE orchestration.batches SET reason = '' WHERE owner = %(owner)s AND reason <> ''",
    """DELETE FROM webhooks.deliveries d USING webhooks.endpoints e
    WHERE e.id = d.webhook AND e.owner = %(owner)s AND d.state <> 'pending'""",
    """UPDATE audit.owner_keys SET wrapped = NULL, unwrapped = NULL, destroyed_at = now()
    WHERE owner = %(owner)s AND destroyed_at IS NULL""",
)

_FIRST = UUID(int=0)

_log = structlog.get_logger(__name__)


class Eraser:
    """What is to be done next for an erasure, a bounded amount at a time."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        masters: MasterKeys,
        now: Callable[[], datetime],
        *,
        settle: float | None = None,
        rewrite: Callable[[Connection], Awaitable[None]] | None = None,
        copies: OwnerKeyCopies | None = None,
    ) -> None:
        self._log = log
        self._copies = copies
        self._rewrite = rewrite
        self._blobs = blobs
        self._masters = masters
        self._now = now
        self._settle = timedelta(seconds=SETTLE if settle is None else settle)

    async def step(self, connection: Connection, *erasures: Erasure) -> bool:
        """Whether all of them are finished. Tables are rewritten once for all that are that far.

        Raises TooManyConflicts, Unavailable, NoMasterKey, psycopg.Error.
        """
        ready = [erasure for erasure in erasures if await self._prepare(connection, erasure)]
        if ready and self._rewrite is not None:
            await self._rewrite(connection)
        finished = [erasure for erasure in ready if await self._finish(connection, erasure)]
        return len(finished) == len(erasures)

    async def _prepare(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether nothing of the owner's is left that can be read."""
        if self._now() < erasure.requested_at + self._settle:
            return False
        ended = not await self._call_off(connection, erasure)
        if not ended or await self._erase_uploads(connection, erasure):
            return False
        if not await self._erase_batches(connection, erasure):
            return False
        await self._scrub(connection, erasure)
        # Until then others may still have the keys at hand, and write down what they know.
        await asyncio.sleep(FRESH)
        await self._scrub(connection, erasure)
        return await self._reflected(connection) and not await self._left(connection, erasure)

    async def _finish(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether it is finished: not where something came while tables were rewritten."""
        if await self._left(connection, erasure):
            return False
        # What is left of the keys, in free space, in the WAL, in copies: nothing opens it any more.
        await destroy_masters_of(connection, self._masters, erasure.owner, self._copies)
        cursor = await connection.execute(_COUNTS, {"owner": erasure.owner})
        batches, uploads = await cursor.fetchone() or (0, 0)
        # Those of commands that were under way when the rest was deleted.
        await connection.execute(_DELETE_ANSWERS, {"owner": erasure.owner})
        await finish(connection, erasure, self._now(), batches, uploads)
        _log.info("owner_erased", erasure=str(erasure.id), batches=batches, uploads=uploads)
        return True

    async def _call_off(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether batches are still running; the orchestrator sees to their end."""
        cursor = await connection.execute(_RUNNING, (erasure.owner, CHUNK))
        running = await cursor.fetchall()
        for id, state in running:
            if state != "cancelling":
                with suppress(InvalidState):  # it ended meanwhile
                    command = CancelBatch(batch=id, reason=REASON)
                    await execute(self._log, command, self._context(erasure))
        return bool(running)

    async def _erase_uploads(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether there were any. The bytes go first: afterwards nobody knows their names."""
        cursor = await connection.execute(_UPLOADS, (erasure.owner, CHUNK))
        found = await cursor.fetchall()

        async def erase(id: UUID, blob: str | None, artifacts: dict[str, str]) -> None:
            for name in {blob, *artifacts.values()} - {None}:
                await self._blobs.delete(str(name))
            context = self._context(erasure)
            with suppress(InvalidState):  # it is on record already
                await execute(self._log, EraseUpload(upload=id), context)

        await _all(erase(id, blob, artifacts) for id, _, blob, artifacts in found)
        return bool(found)

    async def _erase_batches(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether all of them are erased now."""
        after, context, all_ended = _FIRST, self._context(erasure), True

        async def erase(id: UUID) -> None:
            nonlocal all_ended
            try:
                await execute(self._log, EraseBatch(batch=id), context)
            except InvalidState:
                all_ended = False

        while True:
            cursor = await connection.execute(_BATCHES, (erasure.owner, after, CHUNK))
            found = [row[0] for row in await cursor.fetchall()]
            if not found:
                return all_ended
            await _all(erase(id) for id in found)
            after = found[-1]

    async def _scrub(self, connection: Connection, erasure: Erasure) -> None:
        """The keys last: then nothing is left that they would open."""
        for statement in _SCRUB:
            await connection.execute(statement, {"owner": erasure.owner})

    async def _left(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether something came after all while the rest was erased."""
        for query in (_RUNNING, _UPLOADS):
            cursor = await connection.execute(query, (erasure.owner, 1))
            if await cursor.fetchone() is not None:
                return True
        return False

    async def _reflected(self, connection: Connection) -> bool:
        """Whether the rows that say what there is to erase know everything up to now."""
        loop = asyncio.get_running_loop()
        head, deadline = await self._log.head(), loop.time() + PATIENCE
        while loop.time() < deadline:
            row = await (await connection.execute(_REFLECTED)).fetchone()
            if row is not None and row[0] >= head:
                return True
            await asyncio.sleep(LOOK)
        return False

    def _context(self, erasure: Erasure) -> CommandContext:
        """Whoever asked for it did it."""
        return CommandContext(erasure.requested_by, self._now())


async def _all(works: Any) -> None:
    """At once, so that they are recorded in groups; the first error once all have ended."""
    tasks: list[Coroutine[Any, Any, None]] = list(works)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
