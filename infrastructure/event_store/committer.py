"""The one writer of a process: many appends, one transaction, one wait for the disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from secrets import randbits
from typing import Self

import msgspec
import psycopg
import structlog

from application.append import Append, AppendResult
from application.errors import ApplicationError, OutcomeUnknown, Unavailable
from infrastructure.backoff import Backoff
from infrastructure.database_errors import is_transient
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.libpq import (
    LibpqPipeline,
    QueryResult,
    SqlQuery,
    Statement,
    bigints,
    uuids,
)
from infrastructure.event_store.writer import (
    AcceptedAppend,
    EncodedAppend,
    OptimisticGroup,
    append_results,
    check_group,
    encode,
    insert_queries,
    plan_optimistic,
)
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.locks import COMMITTER_SESSIONS, LOG_LOCK
from infrastructure.postgres.pool import has_pending_input

# Refuses a database in which events could be recorded out of order.


class UnsafeWriter(Exception):
    """The library's `enable_db_functions` writer is installed.

    It records without taking any lock, so that a reader can pass a gap and lose events.
    """


async def check_no_db_functions(connection: Connection) -> None:
    """Raise UnsafeWriter if a function es_insert_events_* exists."""
    cursor = await connection.execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'es\\_insert\\_events\\_%'"
    )
    if row := await cursor.fetchone():
        raise UnsafeWriter(
            f"the database holds the function {row[0]}, with which the eventsourcing library "
            "records events out of order (enable_db_functions). Make sure that nobody uses it, "
            f"then: DROP FUNCTION {row[0]}. Tools that only read leave it out with CREATE_TABLE=no."
        )


# Where appends wait for the committer: first come, first served, and only so many at a time.


class InFlight(msgspec.Struct, frozen=True):
    """Rows sent to the server, and the session that sent them."""

    placed: AcceptedAppend
    session: int


class PendingAppend(msgspec.Struct):
    """An append on its way. `deadline` is in seconds of the event loop's clock.

    `sent` is what was sent to the server when the connection was lost: whether it was recorded
    is unknown until it is looked up. `recording` is true from the moment at which it may
    be sent until it is certain that nothing was.
    """

    encoded: EncodedAppend
    outcome: asyncio.Future[AppendResult]
    deadline: float
    sent: InFlight | None = None
    recording: bool = False

    def resolve(self, result: AppendResult | BaseException) -> None:
        """Resolve the future of the caller, unless it was cancelled."""
        if self.outcome.done():
            return
        if isinstance(result, BaseException):
            self.outcome.set_exception(result)
        else:
            self.outcome.set_result(result)


class AppendQueue:
    """Bounded queue of pending appends, measured in events. Producers wait while it is full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: deque[PendingAppend] = deque()
        self._events = 0
        self._closed = False
        self._filled = asyncio.Event()
        self._left = asyncio.Event()
        self._door = asyncio.Lock()  # serves in the order of arrival

    def __len__(self) -> int:
        return len(self._inside)

    async def enter(self, pending: PendingAppend) -> None:
        """Queue an append. Raises TimeoutError if there is no room before its deadline."""
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

    def get_group(self, max_events: int) -> list[PendingAppend]:
        """Return the next appends, of at most `max_events` in all; a larger one comes alone."""
        taken: list[PendingAppend] = []
        size = 0
        while self._inside:
            following = self._inside[0].encoded.size
            if taken and size + following > max_events:
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

    def pop_expired(self, now: float) -> list[PendingAppend]:
        """Return the appends whose deadline has passed."""
        late = [pending for pending in self._inside if pending.deadline <= now]
        for pending in late:
            self._inside.remove(pending)
            self._events -= pending.encoded.size
        self._left.set()
        return late

    def close(self) -> list[PendingAppend]:
        """Reject new appends, wake blocked producers, and return the appends still queued."""
        self._closed = True
        self._left.set()
        return list(self._inside)

    async def filled(self) -> None:
        """Return once an append is queued."""
        await self._filled.wait()

    def wake(self) -> None:
        """Make `filled` return without an append."""
        self._filled.set()

    def _room_for(self, pending: PendingAppend) -> bool:
        return (
            self._closed or not self._events or self._events + pending.encoded.size <= self._limit
        )


# After a connection was lost during COMMIT: finds out what was recorded.

# Not one that waits for a synchronous standby: that would only end the waiting, and show to others
# what the standby does not have.
_END_SESSION = """
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity a USING (pid)
WHERE locktype = 'advisory' AND objsubid = 2 AND classid = %s AND objid = %s
AND a.wait_event IS DISTINCT FROM 'SyncRep' AND pg_locks.database
    = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_AWAIT_END = "SELECT pg_advisory_xact_lock(%s, %s)"

_FOUND = """
SELECT e.notification_id, e.topic, e.state
FROM unnest(%s, %s) WITH ORDINALITY AS sent (stream, version, place)
LEFT JOIN LATERAL (
    SELECT * FROM stored_events
    WHERE originator_id = sent.stream AND originator_version = sent.version OFFSET 0) AS e ON true
ORDER BY place"""

# A commit that has something to write waits for the synchronous standby, and for all before it.
_WRITE_SOMETHING = "SELECT pg_logical_emit_message(true, 'uptrail', '')"

_ANSWERED = "SELECT position FROM command_answers WHERE command_id = %s AND fingerprint = %s"


async def acquire_session_lock(connection: Connection) -> int:
    """Return the number of a lock that this session holds until it ends, however it ends."""
    session = randbits(31)
    await connection.execute("SELECT pg_advisory_lock(%s, %s)", (COMMITTER_SESSIONS, session))
    return session


async def resolve_ambiguous(
    connection: Connection, sent: Sequence[InFlight]
) -> list[AppendResult | None]:
    """Return the outcome of each append after an ambiguous COMMIT; None: certainly not recorded.

    The server may not have read everything that the lost connection sent. So the session is
    terminated first; its advisory lock proves its end. Raises psycopg.Error.
    """
    async with connection.transaction():
        for session in {sending.session for sending in sent}:
            await connection.execute(_END_SESSION, (COMMITTER_SESSIONS, session))
            await connection.execute(_AWAIT_END, (COMMITTER_SESSIONS, session))
        await LOG_LOCK.acquire_in_transaction(connection)
        outcomes = [await _outcome(connection, sending.placed) for sending in sent]
        if any(outcomes):
            # What is visible may have been recovered from the disk of a server that crashed while
            # it waited for its standby: it is acknowledged only when the standby has it, too.
            await connection.execute(_WRITE_SOMETHING)
    return outcomes


async def _outcome(connection: Connection, placed: AcceptedAppend) -> AppendResult | None:
    if not placed.rows:
        return await _answered(connection, placed)
    streams = uuids(row.stream for row in placed.rows)
    versions = bigints(row.version for row in placed.rows)
    cursor = await connection.execute(_FOUND, (streams, versions))
    found = await cursor.fetchall()
    same = [
        (topic, state) == (row.topic, row.state)
        for (_, topic, state), row in zip(found, placed.rows, strict=True)
    ]
    return AppendResult(found[-1][0], placed.versions) if all(same) else None


async def _answered(connection: Connection, placed: AcceptedAppend) -> AppendResult | None:
    """Look up an append without events by its record; one without a record changed nothing."""
    answer = placed.encoded.append.idempotency
    if answer is None:
        return AppendResult(0, placed.versions)
    known = (answer.command_id, answer.fingerprint)
    row = await (await connection.execute(_ANSWERED, known)).fetchone()
    return None if row is None else AppendResult(row[0], placed.versions)


MAX_GROUP_EVENTS = 500  # events a transaction, unless a single append has more
MAX_QUEUED_EVENTS = 20_000  # events that may wait
APPEND_TIMEOUT = 25.0  # seconds an append waits for a log that cannot be reached, or is silent
READ_ONLY_TIMEOUT = 5.0  # seconds likewise, for a log that takes no writes
MAX_BACKOFF = 1.0  # seconds

# A process that is stopped while it holds the lock of the log must not stop the others.
_SESSION_SETTINGS = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'"

_BEGIN = Statement("BEGIN", "BEGIN ISOLATION LEVEL READ COMMITTED")
_COMMIT = Statement("COMMIT", "COMMIT")

# Errors that a server reports of a statement, and then ends the transaction without a commit.
_ROLLED_BACK = (
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DiskFull,
    psycopg.errors.OutOfMemory,
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
)

_log = structlog.get_logger(__name__)


class GroupCommitter:
    """Records appends in groups on a connection of its own. Use as an async context manager."""

    def __init__(self, url: str, *, codec: Codec = CODEC, patience: float = APPEND_TIMEOUT) -> None:
        self._url = url
        self._codec = codec
        self._patience = patience
        self._room = AppendQueue(MAX_QUEUED_EVENTS)
        self._connection: Connection | None = None
        self._exchange: LibpqPipeline | None = None
        self._session = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises UnsafeWriter, psycopg.OperationalError if the server is unreachable."""
        try:
            await check_no_db_functions(await self._connected())
        except BaseException:
            await self._disconnect()
            raise
        self._task = asyncio.create_task(self._commit_for_ever(), name="committer")

    async def append(self, append: Append) -> AppendResult:
        """Record the append durably, or not at all; for the errors see the port `EventLog`.

        Raises OutcomeUnknown if the connection was lost during COMMIT and the server was not back
        in time to be queried. The outcome is unknown to a cancelled caller, too.
        """
        if self._closing or self._task is None:
            raise Unavailable("the log is closed")
        await self._codec.prepare(append)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        pending = PendingAppend(encode(append, self._codec), loop.create_future(), deadline)
        try:
            await self._room.enter(pending)
        except TimeoutError:
            raise Unavailable("the log has no room for more, or was closed") from None
        timer = loop.call_at(deadline, _give_up, pending)
        try:
            return await pending.outcome
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Record the queued appends, then end; new appends are rejected meanwhile."""
        self._closing = True
        self._room.wake()
        if self._task is not None:
            # uvloop crashes when a connection is closed under a task that still waits for it.
            await asyncio.wait((self._task,))
            self._task = None

    async def _commit_for_ever(self) -> None:
        try:
            while not self._closing or len(self._room):
                await self._room.filled()
                if group := self._room.get_group(MAX_GROUP_EVENTS):
                    await self._commit(group)
                    await asyncio.sleep(0)  # lets the callers come back with what follows
        finally:
            for pending in self._room.close():
                pending.resolve(Unavailable("the log is closed"))
            await self._disconnect()

    async def _commit(self, group: list[PendingAppend]) -> None:
        """Give every append of the group its result, across any number of lost connections."""
        backoff = Backoff(0.02, MAX_BACKOFF)
        while group:
            try:
                connection = await self._connected()
                group = await self._settle(connection, group)
                group = await self._record(group)
            except Exception as error:
                for pending in group:
                    if isinstance(error, _ROLLED_BACK):
                        pending.sent = None
                    pending.recording = pending.sent is not None
                # A UniqueViolation is from a writer without the lock: check versions again.
                again = isinstance(error, psycopg.errors.UniqueViolation | OSError)
                if not again and not is_transient(error):
                    await self._disconnect()
                    await self._isolate(group, error)
                    return
                _log.warning("log_unreachable", error=str(error), appends=len(group))
                await self._disconnect()
                group = self._expire_late(group, self._spare(error))
                await asyncio.sleep(backoff.next_pause())

    async def _settle(
        self, connection: Connection, group: list[PendingAppend]
    ) -> list[PendingAppend]:
        """Look up appends that may be recorded; return those that certainly were not."""
        sent = [(pending, pending.sent) for pending in group if pending.sent is not None]
        if sent:
            outcomes = await resolve_ambiguous(connection, [sending for _, sending in sent])
            for (pending, _), outcome in zip(sent, outcomes, strict=True):
                pending.sent = None
                if outcome is not None:
                    pending.resolve(outcome)
        return [pending for pending in group if not pending.outcome.done()]

    async def _record(self, group: list[PendingAppend]) -> list[PendingAppend]:
        """Record the group in one transaction, or in a second one if an expectation was wrong."""
        if group:
            for pending in group:
                pending.recording = True
            encoded = [pending.encoded for pending in group]
            # To a server that has gone, as its last words may say, no rows are sent by mistake.
            sure = self._connection is not None and not has_pending_input(self._connection.fileno())
            believed = plan_optimistic(encoded) if sure else None
            results = await self._commit_optimistically(group, believed) if believed else None
            results = results or await self._commit_checked(group, encoded)
            for pending, result in zip(group, results, strict=True):
                pending.resolve(result)
        return []

    async def _commit_optimistically(
        self, group: list[PendingAppend], believed: OptimisticGroup
    ) -> Sequence[AppendResult | ApplicationError] | None:
        """Record the group; return None, with nothing recorded, if an expectation is wrong."""
        assert self._exchange is not None
        questions = [SqlQuery(_BEGIN), *believed.questions()]
        await self._exchange.prepare([*questions, SqlQuery(_COMMIT)])
        self._send(group, believed.placed)
        _, _, inserted, *_ = await self._committed(questions)
        self._send(group, [None] * len(group))
        return append_results(believed.placed, [inserted]) if inserted.rows else None

    async def _commit_checked(
        self, group: list[PendingAppend], encoded: Sequence[EncodedAppend]
    ) -> Sequence[AppendResult | ApplicationError]:
        """Record the group in two round trips: read the versions, then insert."""
        assert self._exchange is not None
        verdicts = await check_group(self._exchange.execute, encoded, before=[SqlQuery(_BEGIN)])
        self._send(group, [v if isinstance(v, AcceptedAppend) else None for v in verdicts])
        inserted = await self._committed(insert_queries(verdicts))
        self._send(group, [None] * len(group))
        return append_results(verdicts, inserted)

    async def _committed(self, questions: Sequence[SqlQuery]) -> Sequence[QueryResult]:
        assert self._exchange is not None
        *answers, committed = await self._exchange.execute([*questions, SqlQuery(_COMMIT)])
        if committed.status != "COMMIT":
            raise psycopg.OperationalError(f"COMMIT was answered {committed.status}")
        return answers

    def _send(self, group: list[PendingAppend], placed: Sequence[AcceptedAppend | None]) -> None:
        """Note which rows are being sent, or that the server has responded."""
        for pending, rows in zip(group, placed, strict=True):
            pending.sent = InFlight(rows, self._session) if rows else None

    async def _isolate(self, group: list[PendingAppend], error: Exception) -> None:
        """Record the appends one by one: one of them cannot be recorded and must fail alone."""
        for pending in group:
            pending.sent = None
            if len(group) == 1:
                pending.resolve(error)
            else:
                await self._commit([pending])

    def _spare(self, error: Exception) -> float:
        """Return by how many seconds appends fail before their deadline."""
        read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        return max(0.0, self._patience - READ_ONLY_TIMEOUT) if read_only else 0.0

    def _expire_late(self, group: list[PendingAppend], spare: float) -> list[PendingAppend]:
        now = asyncio.get_running_loop().time() + spare
        late = [pending for pending in group if pending.deadline <= now]
        for pending in (*late, *self._room.pop_expired(now)):
            _give_up(pending)
        return [pending for pending in group if not pending.outcome.done()]

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(self._url, name="committer", patient=False)
            await self._connection.execute(_SESSION_SETTINGS)
            self._session = await acquire_session_lock(self._connection)
            self._exchange = LibpqPipeline(self._connection)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _give_up(pending: PendingAppend) -> None:
    """Resolve an append that has exceeded its timeout with an error."""
    if pending.recording:
        pending.resolve(OutcomeUnknown("the log was lost while it recorded"))
    else:
        pending.resolve(Unavailable("the log cannot be reached"))
