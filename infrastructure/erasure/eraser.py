"""Execution of erasures in idempotent steps, which a crash may interrupt anywhere.

Batches are cancelled and end; bytes are deleted, which every upload and batch records; the owner's
keys are destroyed with the master key that encrypted them, so that encrypted fields become
unreadable; then copies in other tables are deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import structlog

from application.commands import BatchCommand, UploadCommand
from application.handlers.execute import CommandContext, execute
from application.ports.audit import Erasure
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog
from application.transfers.locks import upload_blob_name
from domain.batch.aggregate import Batch
from domain.errors import InvalidState
from domain.upload.aggregate import Upload
from infrastructure.erasure.keyring import KEY_CACHE_SECONDS, mark_done, pending_erasures
from infrastructure.erasure.master_keys import MasterKeys, OwnerKeyCopies
from infrastructure.erasure.wrapped_keys import destroy_masters_of
from infrastructure.event_store.committer import APPEND_TIMEOUT
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import ERASER_LOCK, run_as_leader
from infrastructure.postgres.tracked_positions import READ_MODEL_POSITION
from infrastructure.read_model.rebuild import rebuild

# Whoever did not hear yet that the owner is being erased may still begin something new, and wait to
# have it recorded: so long nothing is collected.
SETTLE_SECONDS = KEY_CACHE_SECONDS + APPEND_TIMEOUT + 5.0  # seconds

READ_MODEL_POLL_INTERVAL = 0.05  # seconds between two looks at how far the read model is
ROWS_PER_STEP = 500  # uploads, or batches, that one step takes on
STEP_PAUSE = 0.25  # seconds between two steps of erasures
POLL_INTERVAL = 2.0  # seconds between two queries for erasures that were requested
MAX_CONCURRENT_ERASURES = 100
REASON = "the data of its owner is erased"

_RUNNING = """SELECT batch, state FROM orchestration.batches
WHERE owner = %s AND state <> 'completed' LIMIT %s"""
_UPLOADS = """SELECT u.id, u.received, u.blob, u.artifacts FROM read_model.batches b
JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %s AND u.state <> 'erased' LIMIT %s"""
_BATCHES = "SELECT id FROM read_model.batches WHERE owner = %s AND id > %s ORDER BY id LIMIT %s"
_COUNTS = """SELECT (SELECT count(*) FROM read_model.batches WHERE owner = %(owner)s),
(SELECT count(*) FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
 WHERE b.owner = %(owner)s)"""

_STREAMS = """SELECT b.id FROM read_model.batches b WHERE b.owner = %(owner)s
UNION ALL SELECT u.id FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %(owner)s"""
_DELETE_ANSWERS = "DELETE FROM command_answers WHERE owner = %(owner)s"
_SCRUB = (
    f"DELETE FROM stored_snapshots WHERE originator_id IN ({_STREAMS})",  # noqa: S608
    # tus partial uploads (UUIDv5) are not in the read model.
    """DELETE FROM stored_snapshots WHERE CASE WHEN substr(originator_id::text, 15, 1) = '5'
    THEN convert_from(state, 'UTF8')::jsonb ->> 'owner' = %(owner)s ELSE false END""",
    # Hashes of what was asked for, such as the reason of a cancellation, could be guessed.
    _DELETE_ANSWERS,
    f"""DELETE FROM command_answers WHERE CASE WHEN owner IS NULL  -- of an earlier version
    THEN (convert_from(body, 'UTF8')::jsonb ->> 'id')::uuid END IN ({_STREAMS})""",  # noqa: S608
    f"DELETE FROM errands WHERE upload IN ({_STREAMS})",  # noqa: S608
    "UPDATE orchestration.batches SET reason = '' WHERE owner = %(owner)s AND reason <> ''",
    """DELETE FROM webhooks.deliveries d USING webhooks.endpoints e
    WHERE e.id = d.webhook AND e.owner = %(owner)s AND d.state <> 'pending'""",
    # A receiver may have repeated in its response what it was sent.
    """UPDATE webhooks.deliveries d SET last = NULL FROM webhooks.endpoints e
    WHERE e.id = d.webhook AND e.owner = %(owner)s AND d.last IS NOT NULL""",
    """UPDATE audit.owner_keys SET wrapped = NULL, unwrapped = NULL, destroyed_at = now()
    WHERE owner = %(owner)s AND destroyed_at IS NULL""",
)

_FIRST = UUID(int=0)

_log = structlog.get_logger(__name__)


class Eraser:
    """Executes the next step of erasures, a bounded amount at a time."""

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
        self._settle = timedelta(seconds=SETTLE_SECONDS if settle is None else settle)

    async def step(self, connection: Connection, *erasures: Erasure) -> bool:
        """Execute the next steps; return whether all erasures are finished.

        Tables are rewritten once for all erasures that have reached that step.

        Raises TooManyConflicts, Unavailable, NoMasterKey, psycopg.Error.
        """
        ready = [erasure for erasure in erasures if await self._prepare(connection, erasure)]
        if ready and self._rewrite is not None:
            await self._rewrite(connection)
        finished = [erasure for erasure in ready if await self._finish(connection, erasure)]
        return len(finished) == len(erasures)

    async def _prepare(self, connection: Connection, erasure: Erasure) -> bool:
        """Execute the steps of one erasure; return whether no readable data is left."""
        if self._now() < erasure.requested_at + self._settle:
            return False
        ended = not await self._call_off(connection, erasure)
        if not ended or await self._erase_uploads(connection, erasure):
            return False
        if not await self._erase_batches(connection, erasure):
            return False
        await self._scrub(connection, erasure)
        # Until then others may still have the keys at hand, and write down what they know.
        await asyncio.sleep(KEY_CACHE_SECONDS)
        await self._scrub(connection, erasure)
        return await self._reflected(connection) and not await self._left(connection, erasure)

    async def _finish(self, connection: Connection, erasure: Erasure) -> bool:
        """Return whether the erasure is finished: not if data arrived during the table rewrite."""
        if await self._left(connection, erasure):
            return False
        # What is left of the keys, in free space, in the WAL, in copies: nothing opens it any more.
        await destroy_masters_of(connection, self._masters, erasure.owner, self._copies)
        cursor = await connection.execute(_COUNTS, {"owner": erasure.owner})
        batches, uploads = await cursor.fetchone() or (0, 0)
        # Those of commands that were under way when the rest was deleted.
        await connection.execute(_DELETE_ANSWERS, {"owner": erasure.owner})
        await mark_done(connection, erasure, self._now(), batches, uploads)
        _log.info("owner_erased", erasure=str(erasure.id), batches=batches, uploads=uploads)
        return True

    async def _call_off(self, connection: Connection, erasure: Erasure) -> bool:
        """Cancel running batches, which the orchestrator completes; return whether some run."""
        cursor = await connection.execute(_RUNNING, (erasure.owner, ROWS_PER_STEP))
        running = await cursor.fetchall()
        for id, state in running:
            if state != "cancelling":
                with suppress(InvalidState):  # it ended meanwhile
                    command = BatchCommand(id, partial(Batch.cancel, reason=REASON))
                    await execute(self._log, command, self._context(erasure))
        return bool(running)

    async def _erase_uploads(self, connection: Connection, erasure: Erasure) -> bool:
        """Erase uploads, blobs first; return whether there were any."""
        cursor = await connection.execute(_UPLOADS, (erasure.owner, ROWS_PER_STEP))
        found = await cursor.fetchall()

        async def erase(
            id: UUID, received: int, blob: str | None, artifacts: dict[str, str]
        ) -> None:
            names = set(artifacts.values())
            if blob is not None:
                names.add(blob)
            elif received:  # of a transfer that was cancelled
                names.add(upload_blob_name(id))
            for name in names:
                await self._blobs.delete(name)
            context = self._context(erasure)
            with suppress(InvalidState):  # it is on record already
                await execute(self._log, UploadCommand(id, Upload.erase), context)

        await _all(erase(*row) for row in found)
        return bool(found)

    async def _erase_batches(self, connection: Connection, erasure: Erasure) -> bool:
        """Erase batches; return whether all of them are erased."""
        after, context, all_ended = _FIRST, self._context(erasure), True

        async def erase(id: UUID) -> None:
            nonlocal all_ended
            try:
                await execute(self._log, BatchCommand(id, Batch.erase), context)
            except InvalidState:
                all_ended = False

        while True:
            cursor = await connection.execute(_BATCHES, (erasure.owner, after, ROWS_PER_STEP))
            found = [row[0] for row in await cursor.fetchall()]
            if not found:
                return all_ended
            await _all(erase(id) for id in found)
            after = found[-1]

    async def _scrub(self, connection: Connection, erasure: Erasure) -> None:
        """Delete copies of personal data, and the keys last."""
        for statement in _SCRUB:
            await connection.execute(statement, {"owner": erasure.owner})

    async def _left(self, connection: Connection, erasure: Erasure) -> bool:
        """Return whether data arrived during the erasure."""
        for query in (_RUNNING, _UPLOADS):
            cursor = await connection.execute(query, (erasure.owner, 1))
            if await cursor.fetchone() is not None:
                return True
        return False

    async def _reflected(self, connection: Connection) -> bool:
        """Return whether the read model reflects the whole log."""
        loop = asyncio.get_running_loop()
        head, deadline = await self._log.head(), loop.time() + APPEND_TIMEOUT
        while loop.time() < deadline:
            if await READ_MODEL_POSITION.load(connection) >= head:
                return True
            await asyncio.sleep(READ_MODEL_POLL_INTERVAL)
        return False

    def _context(self, erasure: Erasure) -> CommandContext:
        """Return a command context in the name of the requester."""
        return CommandContext(erasure.requested_by, self._now())


async def _all(works: Any) -> None:
    """Run the works concurrently, so that events share groups; then raise the first error."""
    tasks: list[Coroutine[Any, Any, None]] = list(works)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


# Rewrite tables and indexes that held personal fields in the clear, after an erasure.
#
# PostgreSQL leaves old rows in the free space of their pages, entries in indexes, samples of
# values in its statistics, and all of it in the WAL. Tables and indexes that are written anew,
# with new statistics, hold nothing old; the files they replace are removed. Every part may be
# done again.

# Small tables, rewritten under an exclusive lock that is held only briefly.
TABLES: tuple[LiteralString, ...] = (
    "stored_snapshots",
    "errands",
    "command_answers",
    "orchestration.batches",
    "webhooks.deliveries",
    "audit.owner_keys",
)
READ_MODEL: tuple[LiteralString, ...] = (
    "read_model.batches",
    "read_model.uploads",
    "read_model.attempts",
)
MAX_REWRITTEN = 256 * 1024 * 1024  # bytes: a larger table is vacuumed in place
LOCK_TIMEOUT = "500ms"  # for which readers may have to queue behind a rewrite
MAX_REWRITE_TRIES = 20
MAX_SEGMENTS = 256  # of the WAL that are overwritten: 4 GiB

_SIZE = "SELECT pg_total_relation_size(%s::regclass)"
_COLUMNS_WITH_STATISTICS = """SELECT quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a JOIN pg_stats s ON s.attname = a.attname
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
AND format('%%I.%%I', s.schemaname, s.tablename)::regclass = %s::regclass"""
_SET_TIMEOUT = "SELECT set_config('lock_timeout', %s, false)"
_MAY_REWRITE_STATISTICS = """SELECT rolsuper OR EXISTS (
    SELECT FROM pg_roles m WHERE m.rolname = 'pg_maintain' AND pg_has_role(m.oid, 'USAGE'))
FROM pg_roles WHERE rolname = current_user"""
_MAY_SWITCH = """SELECT has_function_privilege('pg_switch_wal()', 'EXECUTE')
AND has_function_privilege('pg_ls_waldir()', 'EXECUTE')
AND (SELECT rolsuper OR EXISTS (SELECT FROM pg_roles c
        WHERE c.rolname = 'pg_checkpoint' AND pg_has_role(c.oid, 'USAGE'))
    FROM pg_roles WHERE rolname = current_user)"""
_SEGMENTS = "SELECT count(*) FROM pg_ls_waldir()"


async def rewrite(connection: Connection, url: str, log: EventLog) -> None:
    """Rewrite the tables, then their statistics, then the WAL, as far as the role may.

    Raises psycopg.Error, Unavailable.
    """
    await _rewrite_read_model(connection, url, log)
    for table in TABLES:
        await _rewrite_table(connection, table)
    if await _may(connection, _MAY_REWRITE_STATISTICS):
        await _patiently(connection, "VACUUM FULL pg_catalog.pg_statistic")
    else:
        _log.info("statistics_not_rewritten", advice="VACUUM FULL pg_statistic as a superuser")
    if await _may(connection, _MAY_SWITCH):
        await _overwrite_wal(connection)
    else:
        _log.info("wal_not_overwritten", advice="it holds personal fields until it is recycled")


async def _rewrite_read_model(connection: Connection, url: str, log: EventLog) -> None:
    """Rebuild the read model beside the live one, which stays in use until the swap."""
    try:
        await rebuild(url, log)
    except psycopg.errors.InsufficientPrivilege:
        _log.warning("read_model_not_rewritten", advice="uptrail projection rebuild as the owner")
        for table in READ_MODEL:
            await connection.execute(f"VACUUM (ANALYZE) {table}".encode())


async def _rewrite_table(connection: Connection, table: LiteralString) -> None:
    row = await (await connection.execute(_SIZE, (table,))).fetchone()
    small = row is not None and row[0] <= MAX_REWRITTEN
    if small and await _patiently(connection, f"VACUUM (FULL, ANALYZE) {table}"):
        await _clear_statistics(connection, table)
        return
    await connection.execute(f"VACUUM (ANALYZE) {table}".encode())
    _log.info("table_vacuumed_only", table=table)


async def _clear_statistics(connection: Connection, table: LiteralString) -> None:
    """Drop the statistics of an emptied table: ANALYZE keeps those of a table without rows.

    ALTER COLUMN drops the statistics of the column, also if its type stays the same.
    """
    cursor = await connection.execute(f"SELECT FROM {table} LIMIT 1".encode())
    if await cursor.fetchone() is not None:
        return
    cursor = await connection.execute(_COLUMNS_WITH_STATISTICS, (table, table))
    columns = ", ".join(f"ALTER {name} TYPE {type}" for name, type in await cursor.fetchall())
    if not columns:
        return
    try:
        await _patiently(connection, f"ALTER TABLE {table} {columns}".encode())
    except psycopg.errors.InsufficientPrivilege:
        _log.info("statistics_not_cleared", table=table, advice="ALTER COLUMN as its owner")


async def _patiently(connection: Connection, statement: LiteralString | bytes) -> bool:
    """Retry with a short lock timeout; return whether it succeeded."""
    for _ in range(MAX_REWRITE_TRIES):
        try:
            async with _lock_timeout(connection):
                await connection.execute(statement)
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(0.2)
        else:
            return True
    return False


@asynccontextmanager
async def _lock_timeout(connection: Connection) -> AsyncIterator[None]:
    row = await (await connection.execute("SHOW lock_timeout")).fetchone()
    before = row[0] if row else "0"
    await connection.execute(_SET_TIMEOUT, (LOCK_TIMEOUT,))
    try:
        yield
    finally:
        if not connection.closed:
            await connection.execute(_SET_TIMEOUT, (before,))


async def _overwrite_wal(connection: Connection) -> None:
    """Switch WAL segments until every existing one, used or recycled, is overwritten.

    The rest of a segment that is left is filled with zeros. Segments that hold old rows now become
    ones that are kept for later at the next checkpoint: a second round overwrites those.
    """
    for _ in range(2):
        await connection.execute("CHECKPOINT")
        row = await (await connection.execute(_SEGMENTS)).fetchone()
        for _ in range(min(row[0] if row else 0, MAX_SEGMENTS) + 1):
            await connection.execute("SELECT pg_logical_emit_message(false, 'uptrail', '')")
            await connection.execute("SELECT pg_switch_wal()")
    await connection.execute("CHECKPOINT")


async def _may(connection: Connection, query: LiteralString) -> bool:
    row = await (await connection.execute(query)).fetchone()
    return bool(row and row[0])


async def erase_continuously(url: str, eraser: Eraser) -> None:
    """Lead, and execute erasures step by step; an interrupted step is repeated.

    Raises psycopg.Error, Unavailable, OSError.
    """

    async def lead(connection: Connection) -> None:
        while True:
            erasures = await pending_erasures(connection, MAX_CONCURRENT_ERASURES)
            idle = await eraser.step(connection, *erasures)
            await asyncio.sleep(POLL_INTERVAL if idle else STEP_PAUSE)

    await run_as_leader(url, ERASER_LOCK, lead, name="eraser")
