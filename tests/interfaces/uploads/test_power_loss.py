"""Every byte that the log counts is on the disk, whenever the power fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from application.append import Append, AppendResult
from application.errors import Unavailable
from application.transfers.creation import StandaloneTarget, UploadCreator
from application.transfers.errors import ClientDisconnected
from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor, AppendRequest, TransferLimits, Transfers
from domain.file import FileDeclaration
from domain.upload.events import FileProgressed, FileReceived, TransferInterrupted
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.pool import make_pool
from interfaces.uploads.setup import TRANSFERS
from tests.contracts.blob_store import content
from tests.fakes import NoRemotePreemption, unlimited_quotas
from tests.harness import open_test_container, serve_http
from tests.power_loss import RecordingDisk

ACTOR = Actor("key:test")
CONTENT = bytes((7 * n + n // 255) % 255 + 1 for n in range(9_000))  # without zeros


class ObservedLog(PostgresEventLog):
    """Notes which bytes an append counts, and how far the disk was when it was asked for."""

    disk: RecordingDisk

    def observe(self, disk: RecordingDisk) -> None:
        self.disk = disk
        self.counted: list[tuple[int, str, int]] = []
        self.progressed = asyncio.Event()

    async def append(self, append: Append) -> AppendResult:
        for write in append.writes:
            for event in write.events:
                self._count(write.stream, event)
        done = await PostgresEventLog.append(self, append)
        self.progressed.set()
        return done

    def _count(self, stream: UUID, event: Any) -> None:
        match event:
            case FileProgressed():
                counted, blob = event.done, upload_blob_name(stream)
            case TransferInterrupted():
                counted, blob = event.received, upload_blob_name(stream)
            case FileReceived():
                counted, blob = event.size, str(event.blob)
            case _:
                return
        self.counted.append((self.disk.position, blob, counted))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    (tmp_path / "disk").mkdir()
    return RecordingDisk(tmp_path / "disk").install(monkeypatch)


@asynccontextmanager
async def _opened(url: str, disk: RecordingDisk, interval: float = 60) -> AsyncIterator[Transfers]:
    async with (
        make_pool(url, name="test") as pool,
        GroupCommitter(url) as committer,
        ObservedLog(pool, committer) as log,
    ):
        log.observe(disk)
        blobs = LocalBlobStore(disk.root / "data" / "blobs")
        limits = TransferLimits(max_file_size=10_000, min_free_bytes=0, progress_interval=interval)
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


async def _registered(transfers: Transfers, size: int | None = len(CONTENT)) -> UUID:
    place = StandaloneTarget(batch=uuid4(), owner="a")
    file = FileDeclaration(path="a", size=size)
    return (await UploadCreator(transfers, uuid4).register(place, file, ACTOR)).upload.id


async def _body(*pieces: bytes, end: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if end is not None:
        raise end


async def _check_every_state(transfers: Transfers, tmp_path: Path, least: int) -> None:
    log = transfers.log
    assert isinstance(log, ObservedLog)
    disk = log.disk
    assert disk.written().listing() == disk.actual()
    assert log.counted
    states = [state for at in range(disk.position + 1) for state in disk.states(at)]
    assert len(states) >= least
    disk.lose_power()
    for state in states:
        place = tmp_path / "after"
        state.tree.materialise(place)
        store = LocalBlobStore(place / "data" / "blobs", use_kernel_sync=False)
        try:
            for position, blob, counted in log.counted:
                if position <= state.at and counted:
                    when = f"{state.at}, {state.what}: {counted} of {blob}"
                    assert await store.size(blob) >= counted, when
                    assert await content(store, blob, 0, counted) == CONTENT[:counted], when
        finally:
            store.close()


async def test_progress_is_recorded_once_its_bytes_are_durable(
    database_url: str, disk: RecordingDisk, tmp_path: Path
) -> None:
    async with _opened(database_url, disk, interval=0) as transfers:
        log = transfers.log
        assert isinstance(log, ObservedLog)
        upload = await _registered(transfers)

        async def body() -> AsyncIterator[bytes]:
            for start in range(0, 6_000, 1_500):
                log.progressed.clear()
                yield CONTENT[start : start + 1_500]
                await log.progressed.wait()  # a checkpoint while the body goes on

        await transfers.receive(AppendRequest(upload=upload, offset=0), body(), ACTOR)
        await transfers.receive(
            AppendRequest(upload=upload, offset=6_000), _body(CONTENT[6_000:]), ACTOR
        )
        await _check_every_state(transfers, tmp_path, 50)


async def test_bytes_before_a_disconnect_are_counted_once_they_are_durable(
    database_url: str, disk: RecordingDisk, tmp_path: Path
) -> None:
    async with _opened(database_url, disk) as transfers:
        upload = await _registered(transfers)
        broken = _body(CONTENT[:2_000], CONTENT[2_000:5_000], end=ClientDisconnected("gone"))
        with pytest.raises(ClientDisconnected):
            await transfers.receive(AppendRequest(upload=upload, offset=0), broken, ACTOR)
        rest = _body(CONTENT[5_000:])
        await transfers.receive(AppendRequest(upload=upload, offset=5_000), rest, ACTOR)
        await _check_every_state(transfers, tmp_path, 40)


@pytest.mark.parametrize("call", ["sync_data", "sync_folder"])
async def test_bytes_whose_sync_failed_are_sent_again(
    database_url: str, disk: RecordingDisk, tmp_path: Path, call: str
) -> None:
    async with _opened(database_url, disk) as transfers:
        upload = await _registered(transfers)
        part = AppendRequest(upload=upload, offset=0, length=4_000)
        await transfers.blobs.put("uploads/0-other", b"the folders are there")
        disk.fail_next(call)
        with pytest.raises(Unavailable):
            await transfers.receive(part, _body(CONTENT[:4_000]), ACTOR)
        offset = (await transfers.current_upload(upload, ACTOR)).received
        rest = _body(CONTENT[offset:])
        await transfers.receive(AppendRequest(upload=upload, offset=offset), rest, ACTOR)
        await _check_every_state(transfers, tmp_path, 40)


async def test_a_whole_file_is_received_once_it_is_durable(
    database_url: str, disk: RecordingDisk, tmp_path: Path
) -> None:
    async def read() -> bytes:
        return CONTENT

    async with _opened(database_url, disk) as transfers:
        creator = UploadCreator(transfers, uuid4)
        for name in ("a", "b"):
            place = StandaloneTarget(batch=uuid4(), owner="a")
            file = FileDeclaration(path=name, size=len(CONTENT))
            await creator.create_with_content(place, file, read, ACTOR)
        await _check_every_state(transfers, tmp_path, 25)


@asynccontextmanager
async def _served(url: str, folder: Path) -> AsyncIterator[Transfers]:
    async with open_test_container(url, folder) as container, serve_http(container) as server:
        yield server.app[TRANSFERS]


async def test_a_server_starts_after_a_power_loss_with_every_counted_byte(
    database_url: str, disk: RecordingDisk
) -> None:
    """The whole server on what the disk holds after the last acknowledgement, in every state."""
    folder = disk.root / "data"
    async with _served(database_url, folder) as transfers:
        whole, partial = await _registered(transfers), await _registered(transfers)
        request = AppendRequest(upload=whole, offset=0)
        await transfers.receive(request, _body(CONTENT), ACTOR)
        broken = _body(CONTENT[:5_000], end=ClientDisconnected("gone"))
        with pytest.raises(ClientDisconnected):
            await transfers.receive(AppendRequest(upload=partial, offset=0), broken, ACTOR)
        writer = await transfers.blobs.append(upload_blob_name(partial), 5_000)
        await writer.write(b"!" * 3_000)  # the next request, of which nothing is counted yet
        await writer.close()
    states = list(disk.states(disk.position))
    assert len(states) >= 5
    disk.lose_power()
    for state in states:
        state.tree.materialise(disk.root)
        async with _served(database_url, folder) as transfers:
            assert (await transfers.current_upload(partial, ACTOR)).received == 5_000
            stored = await content(transfers.blobs, upload_blob_name(partial), 0, 5_000)
            assert stored == CONTENT[:5_000], state.what
            assert await content(transfers.blobs, upload_blob_name(whole)) == CONTENT, state.what
            new = AppendRequest(upload=await _registered(transfers), offset=0)
            received = await transfers.receive(new, _body(CONTENT), ACTOR)
            assert received.aggregate.received == len(CONTENT)
