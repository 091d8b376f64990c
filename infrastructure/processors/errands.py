"""The port `RemoteSteps` on PostgreSQL, shared by workers and API processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID, uuid4

import msgspec

from application.ports.jobs import CallbackReport, CallbackTokens, ProgressReport, RemoteStep
from infrastructure.auth.tokens import hashed, is_token, new_token
from infrastructure.postgres.pool import Pool, borrowed

KEPT_DAYS = 7  # for which the step of a dead worker is kept

_SWEEP = "DELETE FROM errands WHERE opened_at < now() - make_interval(days => %s) RETURNING id"
_OPEN = """INSERT INTO errands
    (id, upload, attempt, callback_hash, download_hash, download_until)
    VALUES (%s, %s, %s, %s, %s, now() + make_interval(secs => %s)) RETURNING id"""
_CLOSE = "DELETE FROM errands WHERE id = %s RETURNING id"
_BY_ID = "SELECT id, upload, attempt, done, total, answer FROM errands WHERE id = %s"
_BY_CALLBACK = """SELECT id, upload, attempt, done, total, answer FROM errands
    WHERE callback_hash = %s"""
_REDEEM = """UPDATE errands SET downloaded_at = now()
    WHERE download_hash = %s AND downloaded_at IS NULL AND download_until > now()
    RETURNING id, upload, attempt, done, total, answer"""
_SET_PROGRESS = (
    "UPDATE errands SET done = %s, total = %s WHERE id = %s AND answer IS NULL RETURNING id"
)
_SET_ANSWER = "UPDATE errands SET answer = %s WHERE id = %s AND answer IS NULL RETURNING id"

_decode = msgspec.json.Decoder(CallbackReport).decode
_encode = msgspec.json.Encoder().encode


class PostgresRemoteSteps:
    """Stores only hashes of the tokens."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self, upload: UUID, attempt: int, *, download_within: float) -> CallbackTokens:
        tokens = CallbackTokens(id=uuid4(), download=new_token(), callback=new_token())
        await self._rows(_SWEEP, KEPT_DAYS)
        await self._rows(
            _OPEN,
            tokens.id,
            upload,
            attempt,
            hashed(tokens.callback),
            hashed(tokens.download),
            download_within,
        )
        return tokens

    async def get(self, id: UUID) -> RemoteStep | None:
        return _step(await self._rows(_BY_ID, id))

    async def close(self, id: UUID) -> None:
        await self._rows(_CLOSE, id)

    async def redeem_download_token(self, token: str) -> RemoteStep | None:
        return await self._by_token(_REDEEM, token)

    async def by_callback(self, token: str) -> RemoteStep | None:
        return await self._by_token(_BY_CALLBACK, token)

    async def record_report(self, id: UUID, report: CallbackReport) -> bool:
        if report.progress is not None:
            progress = report.progress
            return bool(await self._rows(_SET_PROGRESS, progress.done, progress.total, id))
        return bool(await self._rows(_SET_ANSWER, _encode(report), id))

    async def _by_token(self, query: LiteralString, token: str) -> RemoteStep | None:
        return _step(await self._rows(query, hashed(token))) if is_token(token) else None

    async def _rows(self, query: LiteralString, *values: object) -> Sequence[tuple[Any, ...]]:
        async with borrowed(self._pool) as connection:
            return await (await connection.execute(query, values)).fetchall()


def _step(rows: Sequence[tuple[Any, ...]]) -> RemoteStep | None:
    if not rows:
        return None
    id, upload, attempt, done, total, answer = rows[0]
    return RemoteStep(
        id=id,
        upload=upload,
        attempt=attempt,
        progress=None if done is None else ProgressReport(done=done, total=total),
        answer=None if answer is None else _decode(answer),
    )
