"""Array parameters in PostgreSQL's binary format, joined at once instead of item by item.

Format: `array_send` in PostgreSQL's src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from struct import Struct
from typing import Any, ClassVar, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
from psycopg import AsyncRawCursor, OperationalError
from psycopg.adapt import Dumper
from psycopg.errors import ConnectionTimeout, error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

from infrastructure.postgres.connection import Connection

_HEADER = Struct("!iiIii").pack  # dimensions, has nulls, type of items, length, lower bound
_LENGTH = Struct("!i").pack
_pack_bigint = Struct("!iq").pack


class Array(bytes):
    """Array in binary format; `oid` is its type."""

    oid: ClassVar[int]


class Uuids(Array):
    """A `uuid[]`."""

    oid = 2951


class Bigints(Array):
    """A `bigint[]`."""

    oid = 1016


class Texts(Array):
    """A `text[]`."""

    oid = 1009


class Byteas(Array):
    """A `bytea[]`."""

    oid = 1001


def uuids(items: Iterable[UUID]) -> Uuids:
    return Uuids(_array(2950, [b"\0\0\0\x10" + item.bytes for item in items]))


def bigints(items: Iterable[int]) -> Bigints:
    return Bigints(_array(20, [_pack_bigint(8, item) for item in items]))


def texts(items: Iterable[str]) -> Texts:
    return Texts(_array(25, [_sized(item.encode()) for item in items]))


def byteas(items: Iterable[bytes]) -> Byteas:
    return Byteas(_array(17, [_sized(item) for item in items]))


def _sized(item: bytes) -> bytes:
    return _LENGTH(len(item)) + item


def _array(item_type: int, items: list[bytes]) -> bytes:
    if not items:
        return _LENGTH(0) + _LENGTH(0) + _LENGTH(item_type)
    return _HEADER(1, 0, item_type, len(items), 1) + b"".join(items)


class _RawDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


for _array_type in (Uuids, Bigints, Texts, Byteas):
    _dumper = type(f"{_array_type.__name__}Dumper", (_RawDumper,), {"oid": _array_type.oid})
    psycopg.adapters.register_dumper(_array_type, _dumper)

# Many statements in one exchange with the server: they leave together, and so do the answers.
#
# psycopg sends each statement of a pipeline by itself, and takes it and its answer through a
# cursor. On the way of a small file that costs more than everything else its events need, so that
# the committer speaks to libpq itself, over the connection that psycopg made.

# Longer than lock_timeout of a committer, shorter than what a request may take.
EXCHANGE_TIMEOUT = 12.0  # seconds

_FAILED = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED})
_unpack_bigint = Struct("!q").unpack
_READERS: dict[int, Callable[[bytes], Any]] = {  # by the oid of the type, see pg_type.dat
    17: bytes,  # bytea
    20: lambda value: _unpack_bigint(value)[0],  # bigint
    25: bytes.decode,  # text
    2278: bytes,  # void
    2950: lambda value: UUID(bytes=value),  # uuid
}


class Statement(NamedTuple):
    """A statement with $1, $2 ... for its parameters, and the name it is prepared under."""

    name: str
    text: str


class SqlQuery(NamedTuple):
    """Statement with its array parameters."""

    statement: Statement
    parameters: tuple[Array, ...] = ()


class QueryResult(NamedTuple):
    """Rows of a result, and the server's command tag, such as `COMMIT`."""

    rows: Sequence[tuple[Any, ...]]
    status: str


Execute: TypeAlias = Callable[[Sequence[SqlQuery]], Awaitable[list[QueryResult]]]
"""Asks all questions in order; what follows the first that fails is not done."""


async def execute_with_psycopg(
    connection: Connection, questions: Sequence[SqlQuery]
) -> list[QueryResult]:
    """Execute queries on a connection that psycopg uses as well. Raises psycopg.Error."""
    async with connection.pipeline():
        cursors = [AsyncRawCursor(connection) for _ in questions]
        for cursor, (statement, parameters) in zip(cursors, questions, strict=True):
            await cursor.execute(statement.text, parameters, prepare=True)
    return [
        QueryResult(
            await cursor.fetchall() if cursor.description else (), cursor.statusmessage or ""
        )
        for cursor in cursors
    ]


class LibpqPipeline:
    """Pipeline mode of one connection, for exclusive use."""

    def __init__(self, connection: Connection) -> None:
        self._server: PGconn = connection.pgconn
        self._prepared: set[Statement] = set()

    async def execute(self, questions: Sequence[SqlQuery]) -> list[QueryResult]:
        """Execute all queries in one round trip.

        After an error or a cancellation the connection can only be closed. Raises psycopg.Error.
        """
        await self.prepare(questions)
        results = await self._converse([partial(self._send, question) for question in questions])
        return [_answer(result) for result in results]

    async def prepare(self, questions: Sequence[SqlQuery]) -> None:
        """Prepare the statements that the server does not know yet, without executing them.

        Raises psycopg.Error.
        """
        if unknown := {question.statement for question in questions} - self._prepared:
            await self._converse([partial(self._prepare, statement) for statement in unknown])
            self._prepared |= unknown

    def _prepare(self, statement: Statement) -> None:
        self._server.send_prepare(statement.name.encode(), statement.text.encode())

    def _send(self, question: SqlQuery) -> None:
        """Send a query; the headers of its parameters state their types."""
        parameters = question.parameters
        self._server.send_query_prepared(
            question.statement.name.encode(),
            parameters,
            param_formats=[Format.BINARY] * len(parameters),
            result_format=Format.BINARY,
        )

    async def _converse(self, commands: Sequence[Callable[[], None]]) -> list[PGresult]:
        """Return the result of each command. Raises ConnectionTimeout if the server is silent."""
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT):
                return await self._results(commands)
        except TimeoutError:
            raise ConnectionTimeout(f"the server was silent for {EXCHANGE_TIMEOUT:g} s") from None

    async def _results(self, commands: Sequence[Callable[[], None]]) -> list[PGresult]:
        self._server.enter_pipeline_mode()
        for command in commands:
            command()
        self._server.pipeline_sync()
        while self._server.flush():
            await self._ready(writing=True)
            self._server.consume_input()
        results = []
        for _ in commands:
            results.append(_sound(await self._next()))
            await self._next()  # nothing: a statement has one result
        _sound(await self._next())  # of the sync
        self._server.exit_pipeline_mode()
        return results

    async def _next(self) -> PGresult | None:
        while self._server.is_busy():
            await self._ready()
            self._server.consume_input()
        return self._server.get_result()

    async def _ready(self, *, writing: bool = False) -> None:
        """Wait until the socket is readable or, if `writing`, writable."""
        loop = asyncio.get_running_loop()
        ready, socket = asyncio.Event(), self._server.socket
        loop.add_reader(socket, ready.set)
        if writing:
            loop.add_writer(socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(socket)
            if writing:
                loop.remove_writer(socket)


def _sound(result: PGresult | None) -> PGresult:
    if result is None:
        raise OperationalError("the server did not answer")
    if result.status in _FAILED:
        raise error_from_result(result)
    return result


def _answer(result: PGresult) -> QueryResult:
    columns = []
    for column in range(result.nfields):
        read = _READERS[result.ftype(column)]
        values = [result.get_value(row, column) for row in range(result.ntuples)]
        columns.append([None if value is None else read(value) for value in values])
    rows = list(zip(*columns, strict=True))
    return QueryResult(rows, (result.command_status or b"").decode())
