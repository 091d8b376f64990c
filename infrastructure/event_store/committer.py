"""The one writer of a process: many appends, one transaction, one wait for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import psycopg
import structlog

from application.append import Append, AppendResult
from application.errors import ApplicationError, OutcomeUnknown, Unavailable
from infrastructure.database_errors import is_transient
from infrastructure.event_store.at_once import Believed, believe
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.exchange import Answer, Exchange, Question, Statement
from infrastructure.event_store.guard import refuse_database_functions
from infrastructure.event_store.placing import Encoded, Placed, encode
from infrastructure.event_store.recovery import begin_session, look_up
from infrastructure.event_store.waiting import Pending, Sent, WaitingRoom
from infrastructure.event_store.writing import insertions, place_group, results
from infrastructure.postgres.pool import Connection, connect, has_news

GROUP = 500  # events a transaction, unless a single append has more
WAITING = 20_000  # events that may wait
PATIENCE = 25.0  # seconds an append waits for a log that cannot be reached, or is silent
READ_ONLY_PATIENCE = 5.0  # seconds likewise, for a log that takes no writes
LONGEST_BACKOFF = 1.0  # seconds

# A process that is stopped while it holds the lock of the log must not stop the others.
_MANNERS = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'"

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

    def __init__(self, url: str, *, codec: Codec = CODEC, patience: float = PATIENCE) -> None:
        self._url = url
        self._codec = codec
        self._patience = patience
        self._room = WaitingRoom(WAITING)
        self._connection: Connection | None = None
        self._exchange: Exchange | None = None
        self._session = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Raises UnsafeWriter, and psycopg.OperationalError if the server cannot be reached."""
        try:
            await refuse_database_functions(await self._connected())
        except BaseException:
            await self._disconnect()
            raise
        self._task = asyncio.create_task(self._commit_for_ever(), name="committer")

    async def append(self, append: Append) -> AppendResult:
        """Records the append, durably, or not at all; see the port `EventLog` for the errors.

        Raises OutcomeUnknown when the server was lost during COMMIT and did not come back in
        time to be asked. A caller that is cancelled does not know either.
        """
        if self._closing or self._task is None:
            raise Unavailable("the log is closed")
        await self._codec.prepare(append)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        pending = Pending(encode(append, self._codec), loop.create_future(), deadline)
        try:
            await self._room.enter(pending)
        except TimeoutError:
            raise Unavailable("the log has no room for more, or was closed") from None
        try:
            async with asyncio.timeout_at(deadline):
                return await pending.outcome
        except TimeoutError:
            if pending.outcome.done() and not pending.outcome.cancelled():
                return pending.outcome.result()
            raise _given_up(pending) from None

    async def close(self) -> None:
        """Records what waits, then ends; new appends are refused meanwhile."""
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
                if group := self._room.take(GROUP):
                    await self._commit(group)
                    await asyncio.sleep(0)  # lets the callers come back with what follows
        finally:
            for pending in self._room.close():
                pending.resolve(Unavailable("the log is closed"))
            await self._disconnect()

    async def _commit(self, group: list[Pending]) -> None:
        """Every append of the group gets its result, however often the server goes away."""
        backoff = 0.02
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
                # A UniqueViolation is somebody who writes without the lock: judge again.
                again = isinstance(error, psycopg.errors.UniqueViolation | OSError)
                if not again and not is_transient(error):
                    await self._disconnect()
                    await self._isolate(group, error)
                    return
                _log.warning("log_unreachable", error=str(error), appends=len(group))
                await self._disconnect()
                group = self._give_up_late(group, self._spare(error))
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _settle(self, connection: Connection, group: list[Pending]) -> list[Pending]:
        """Looks up what may have been recorded before; returns what certainly was not."""
        sent = [(pending, pending.sent) for pending in group if pending.sent is not None]
        if sent:
            outcomes = await look_up(connection, [sending for _, sending in sent])
            for (pending, _), outcome in zip(sent, outcomes, strict=True):
                pending.sent = None
                if outcome is not None:
                    pending.resolve(outcome)
        return [pending for pending in group if not pending.outcome.done()]

    async def _record(self, group: list[Pending]) -> list[Pending]:
        """One transaction, or a second one if the writers were wrong; nothing is left to do."""
        if group:
            for pending in group:
                pending.recording = True
            encoded = [pending.encoded for pending in group]
            # To a server that has gone, as its last words may say, no rows are sent by mistake.
            sure = self._connection is not None and not has_news(self._connection.fileno())
            believed = believe(encoded) if sure else None
            told = await self._take_their_word(group, believed) if believed else None
            told = told or await self._judge(group, encoded)
            for pending, result in zip(group, told, strict=True):
                pending.resolve(result)
        return []

    async def _take_their_word(
        self, group: list[Pending], believed: Believed
    ) -> Sequence[AppendResult | ApplicationError] | None:
        """None where something that was believed is wrong, so that nothing was recorded."""
        assert self._exchange is not None
        questions = [Question(_BEGIN), *believed.questions()]
        await self._exchange.prepare([*questions, Question(_COMMIT)])
        self._send(group, believed.placed)
        _, _, inserted, *_ = await self._committed(questions)
        self._send(group, [None] * len(group))
        return results(believed.placed, [inserted]) if inserted.rows else None

    async def _judge(
        self, group: list[Pending], encoded: Sequence[Encoded]
    ) -> Sequence[AppendResult | ApplicationError]:
        """In two exchanges with the server: what the log holds, and then what it is to hold."""
        assert self._exchange is not None
        verdicts = await place_group(self._exchange.ask, encoded, before=[Question(_BEGIN)])
        self._send(group, [v if isinstance(v, Placed) else None for v in verdicts])
        inserted = await self._committed(insertions(verdicts))
        self._send(group, [None] * len(group))
        return results(verdicts, inserted)

    async def _committed(self, questions: Sequence[Question]) -> Sequence[Answer]:
        assert self._exchange is not None
        *answers, committed = await self._exchange.ask([*questions, Question(_COMMIT)])
        if committed.status != "COMMIT":
            raise psycopg.OperationalError(f"COMMIT was answered {committed.status}")
        return answers

    def _send(self, group: list[Pending], placed: Sequence[Placed | None]) -> None:
        """Notes what the server is about to hear, or that it has answered."""
        for pending, rows in zip(group, placed, strict=True):
            pending.sent = Sent(rows, self._session) if rows else None

    async def _isolate(self, group: list[Pending], error: Exception) -> None:
        """Something in the group cannot be recorded at all: the others must not suffer."""
        for pending in group:
            pending.sent = None
            if len(group) == 1:
                pending.resolve(error)
            else:
                await self._commit([pending])

    def _spare(self, error: Exception) -> float:
        """The seconds by which appends are given up before their deadline."""
        read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        return max(0.0, self._patience - READ_ONLY_PATIENCE) if read_only else 0.0

    def _give_up_late(self, group: list[Pending], spare: float) -> list[Pending]:
        now = asyncio.get_running_loop().time() + spare
        late = [pending for pending in group if pending.deadline <= now]
        for pending in (*late, *self._room.take_late(now)):
            pending.resolve(_given_up(pending))
        return [pending for pending in group if not pending.outcome.done()]

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(self._url, name="committer", patient=False)
            await self._connection.execute(_MANNERS)
            self._session = await begin_session(self._connection)
            self._exchange = Exchange(self._connection)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _given_up(pending: Pending) -> ApplicationError:
    """Return the error for an append that has exceeded its timeout."""
    if pending.recording:
        return OutcomeUnknown("the log was lost while it recorded")
    return Unavailable("the log cannot be reached")
