"""Acknowledged bytes survive a crash at any step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from application.append import Append, AppendResult
from application.transfers.creation import StandaloneTarget, UploadCreator
from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor, AppendRequest, TransferLimits, Transfers
from domain.file import FileDeclaration
from infrastructure.blobs.local.store import LocalBlobStore, LocalBlobWriter
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.pool import make_pool
from tests.contracts.blob_store import content
from tests.fakes import NoRemotePreemption, unlimited_quotas

CONTENT = b"0123456789" * 3
PIECE = 10
ACTOR = Actor("key:test")
NO_END = 1_000


class Killed(BaseException):
    """The process ends here: nothing after this is written, synced or recorded."""


class Life:
    """Ends after so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    async def through(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Performs a step that may be the last one, or may not be reached."""
        if self._left <= 0:
            raise Killed
        self._left -= 1
        return await step()


class MortalLog(PostgresEventLog):
    life = Life(NO_END)

    async def append(self, append: Append) -> AppendResult:
        done: AppendResult = await self.life.through(lambda: PostgresEventLog.append(self, append))
        return done


class MortalStore(LocalBlobStore):
    life = Life(NO_END)

    async def append(self, name: str, offset: int) -> LocalBlobWriter:
        writer = await LocalBlobStore.append(self, name, offset)
        for step in ("write", "sync"):
            method = getattr(writer, step)
            setattr(writer, step, lambda *args, m=method: self.life.through(lambda: m(*args)))
        return writer

    async def finish(self, name: str, size: int) -> None:
        await self.life.through(lambda: LocalBlobStore.finish(self, name, size))


@asynccontextmanager
async def _process(url: str, folder: Path, life: Life) -> AsyncIterator[Transfers]:
    async with (
        make_pool(url, name="test") as pool,
        GroupCommitter(url) as committer,
        MortalLog(pool, committer) as log,
    ):
        blobs = MortalStore(folder)
        log.life = blobs.life = life
        limits = TransferLimits(max_file_size=1_000, min_free_bytes=0, progress_interval=60)
        yield Transfers(
            log,
            blobs,
            NoRemotePreemption(),
            quotas=unlimited_quotas(lambda: 0),
            limits=limits,
            now=lambda: datetime.now(UTC),
            clock=lambda: 0,
        )
        blobs.close()


async def _sent(start: int, end: int) -> AsyncIterator[bytes]:
    yield CONTENT[start : (start + end) // 2]
    yield CONTENT[(start + end) // 2 : end]


async def _dies_after(steps: int, url: str, folder: Path) -> bool:
    """Return whether the process died before its end; check the state for the next one."""
    batch, acknowledged = uuid4(), 0
    file = FileDeclaration(path="a", size=len(CONTENT))
    async with _process(url, folder, Life(NO_END)) as transfers:
        place = StandaloneTarget(batch=batch, owner="a")
        upload = (await UploadCreator(transfers, uuid4).register(place, file, ACTOR)).upload.id
    died = False
    async with _process(url, folder, Life(steps)) as transfers:
        try:
            for start in range(0, len(CONTENT), PIECE):
                incoming = AppendRequest(upload=upload, offset=start, length=PIECE)
                chunks = _sent(start, start + PIECE)
                decided = await transfers.receive(incoming, chunks, ACTOR)
                acknowledged = decided.aggregate.received
        except Killed:
            died = True
    async with _process(url, folder, Life(NO_END)) as transfers:
        offset = (await transfers.current_upload(upload, ACTOR)).received
        assert offset >= acknowledged
        found = await content(transfers.blobs, upload_blob_name(upload)) if offset else b""
        assert found[:offset] == CONTENT[:offset]
        if offset < len(CONTENT):
            incoming = AppendRequest(upload=upload, offset=offset)
            await transfers.receive(incoming, _sent(offset, len(CONTENT)), ACTOR)
        assert await content(transfers.blobs, upload_blob_name(upload)) == CONTENT
    return died


async def test_acknowledged_bytes_survive_a_death_after_any_step(
    database_url: str, tmp_path: Path
) -> None:
    deaths = 0
    while await _dies_after(deaths, database_url, tmp_path):
        deaths += 1
    assert deaths == 3 * 4  # three pieces: write, write, sync or finish, append
