"""Errands in PostgreSQL: worker and API may be different processes on different machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID, uuid4

import msgspec

from application.ports.errands import Errand, Reached, Report, Tickets
from infrastructure.auth.tokens import hashed, is_token, new_token
from infrastructure.postgres.pool import Pool, borrowed

KEPT_DAYS = 7  # for which the errand of a worker that died is kept

_SWEEP = "DELETE FROM errands WHERE opened_at < now() - make_interval(days => %s) RETURNING id"
_OPEN = """INSERT INTO errands
    (id, upload, attempt, callback_hash, download_hash, download_until)
    VALUES (%s, %s, %s, %s, %s, now() + make_interval(secs => %s)) RETURNING id"""
_CLOSE = "DELETE FROM errands WHERE id = %s RETURNING id"
_BY_ID = "SELECT id, upload, attempt, done, total, answer FROM errands WHERE id = %s"
_BY_CALLBACK = """SELECT id, upload, attempt, done, total, answer FROM errands
    WHERE callback_hash = %s"""
_TAKE = """UPDATE errands SET downloaded_at = now()
    WHERE download_hash = %s AND downloaded_at IS NULL AND download_until > now()
    RETURNING id, upload, attempt, done, total, answer"""
_REACH = "UPDATE errands SET done = %s, total = %s WHERE id = %s AND answer IS NULL RETURNING id"
_ANSWER = "UPDATE errands SET answer = %s WHERE id = %s AND answer IS NULL RETURNING id"

_decode = msgspec.json.Decoder(Report).decode
_encode = msgspec.json.Encoder().encode


class PostgresErrands:
    """The port `Errands`. Only hashes of the tickets are kept."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self, upload: UUID, attempt: int, *, download_within: float) -> Tickets:
        tickets = Tickets(id=uuid4(), download=new_token(), callback=new_token())
        await self._rows(_SWEEP, KEPT_DAYS)
        await self._rows(
            _OPEN,
            tickets.id,
            upload,
            attempt,
            hashed(tickets.callback),
            hashed(tickets.download),
            download_within,
        )
        return tickets

    async def get(self, id: UUID) -> Errand | None:
        return _errand(await self._rows(_BY_ID, id))

    async def close(self, id: UUID) -> None:
        await self._rows(_CLOSE, id)

    async def take_download(self, ticket: str) -> Errand | None:
        return await self._by_ticket(_TAKE, ticket)

    async def by_callback(self, ticket: str) -> Errand | None:
        return await self._by_ticket(_BY_CALLBACK, ticket)

    async def say(self, id: UUID, report: Report) -> bool:
        if report.progress is not None:
            reached = report.progress
            return bool(await self._rows(_REACH, reached.done, reached.total, id))
        return bool(await self._rows(_ANSWER, _encode(report), id))

    async def _by_ticket(self, query: LiteralString, ticket: str) -> Errand | None:
        return _errand(await self._rows(query, hashed(ticket))) if is_token(ticket) else None

    async def _rows(self, query: LiteralString, *values: object) -> Sequence[tuple[Any, ...]]:
        async with borrowed(self._pool) as connection:
            return await (await connection.execute(query, values)).fetchall()


def _errand(rows: Sequence[tuple[Any, ...]]) -> Errand | None:
    if not rows:
        return None
    id, upload, attempt, done, total, answer = rows[0]
    return Errand(
        id=id,
        upload=upload,
        attempt=attempt,
        reached=None if done is None else Reached(done=done, total=total),
        answer=None if answer is None else _decode(answer),
    )
