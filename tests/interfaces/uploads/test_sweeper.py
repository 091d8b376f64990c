from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
from msgspec.structs import replace

from application.commands import UploadCommand
from application.handlers.execute import CommandContext, execute
from application.ports.read_model import IdleUpload
from application.sweeper import Sweeper
from application.transfers.locks import single_request_blob_name, upload_blob_name
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.postgres.pool import make_pool
from infrastructure.read_model.projector import catch_up
from infrastructure.read_model.queries import PostgresUploadStatusLookup
from infrastructure.settings import Settings
from tests.fakes import NoRemotePreemption
from tests.interfaces.conftest import LiveServer
from tests.interfaces.conftest import serving as whole_server
from tests.interfaces.uploads.server import (
    BYTES,
    TUS,
    Server,
    filename,
    serving,
    stored_files,
    upload_in,
)
from tests.support import eventually

HOUR = 3600.0


@asynccontextmanager
async def _sweeper(
    server: Server, url: str, preemption: NoRemotePreemption | None = None
) -> AsyncIterator[Sweeper]:
    services = server.services
    assert isinstance(services.blobs, LocalBlobStore)
    await catch_up(url, services.log)
    async with make_pool(url, name="sweeper", max_size=2) as pool:
        yield Sweeper(
            services.log,
            services.blobs,
            services.blobs,
            PostgresUploadStatusLookup(pool),
            preemption or NoRemotePreemption(),
            expiry=HOUR,
            orphan_age=HOUR,
            now=services.now,
        )


async def _clear_all(sweeper: Sweeper) -> tuple[list[str], list[str]]:
    cleared = [await sweeper.clear(part) for part in range(sweeper.parts)]
    return (
        [name for one in cleared for name in one.ended],
        [name for one in cleared for name in one.orphans],
    )


def _age(folder: Path, seconds: float = 2 * HOUR) -> None:
    then = time.time() - seconds
    for file in stored_files(folder):
        os.utime(file, (then, then))


async def _cancelled_behind_our_back(server: Server, location: str) -> None:
    """Record the cancellation as the orchestrator does; the bytes stay."""
    command = UploadCommand(upload_in(location), Upload.cancel)
    await execute(server.services.log, command, CommandContext("test", server.services.now()))


async def test_bytes_of_uploads_that_ended_are_freed(database_url: str, server: Server) -> None:
    ended, kept = await server.create(10), await server.create(10)
    for location in (ended, kept):
        assert await server.patch(location, 0, b"01234") == 204
    await _cancelled_behind_our_back(server, ended)
    async with _sweeper(server, database_url) as sweeper:
        position = await sweeper.free_ended(0)

        assert position == await server.services.log.head()
        assert await sweeper.free_ended(position) == position
        assert await sweeper.free_ended(0) == position
    assert await server.services.blobs.size(upload_blob_name(upload_in(ended))) == 0
    assert await server.patch(kept, 5, b"56789") == 204
    assert await server.content(kept) == b"0123456789"


async def test_the_sweeper_removes_only_unreferenced_blobs(
    database_url: str, tmp_path: Path, server: Server
) -> None:
    headers = {**BYTES, "Upload-Length": "5"}
    answer = await server.ask("POST", "/v1/uploads", headers=headers, data=b"small")
    small = answer.headers["Location"]
    whole, partly = await server.create(10), await server.create(10)
    cancelled = await server.create(10)
    assert await server.patch(whole, 0, b"0123456789") == 204
    for location in (partly, cancelled):
        assert await server.patch(location, 0, b"01234") == 204
    await _cancelled_behind_our_back(server, cancelled)
    blobs = server.services.blobs
    unknown = single_request_blob_name(uuid4(), uuid4())
    superseded = single_request_blob_name(upload_in(whole), UUID(int=1))
    for name in (unknown, superseded, "artifacts/of-somebody"):
        await blobs.put(name, b"left over")
    _age(tmp_path)
    young = single_request_blob_name(uuid4(), uuid4())
    await blobs.put(young, b"about to be recorded")
    async with _sweeper(server, database_url) as sweeper:
        ended, orphans = await _clear_all(sweeper)

        assert ended == [upload_blob_name(upload_in(cancelled))]
        assert sorted(orphans) == sorted([unknown, superseded])
        assert await _clear_all(sweeper) == ([], [])
    assert await server.content(small) == b"small"
    assert await server.content(whole) == b"0123456789"
    assert await server.offset(partly) == 5
    assert await blobs.size(young) > 0
    assert await blobs.size("artifacts/of-somebody") > 0


async def test_a_read_model_that_is_behind_deletes_nothing(
    database_url: str, tmp_path: Path, server: Server
) -> None:
    location = await server.create(10)
    async with _sweeper(server, database_url) as sweeper:  # projected up to here only
        assert await server.patch(location, 0, b"0123456789") == 204
        headers = {**BYTES, "Upload-Length": "5"}
        new = await server.ask("POST", "/v1/uploads", headers=headers, data=b"small")
        small = new.headers["Location"]
        _age(tmp_path)

        assert await _clear_all(sweeper) == ([], [])
    assert await server.content(small) == b"small"
    assert await server.content(location) == b"0123456789"


async def test_the_sweeper_removes_blobs_that_a_replacement_left(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    await store.put("uploads/a", b"kept")
    file = stored_files(tmp_path)[0]
    aside = file.with_name(f"{file.name}~0123")
    aside.write_bytes(b"half")
    _age(tmp_path)
    part = int(file.parent.name, 16)
    assert await store.stale(part, HOUR) == ["uploads/a"]
    assert not aside.exists()
    assert await store.stale(part, 3 * HOUR) == []
    store.close()


@pytest.fixture
def impatient(settings: Settings) -> Iterator[LiveServer]:
    with whole_server(replace(settings, upload_expiry=1.0)) as live:
        yield live


@pytest.mark.options(upload_expiry=24 * HOUR)
async def test_each_byte_puts_the_expiry_off_and_a_question_does_not(
    database_url: str, server: Server
) -> None:
    async def said(server: Server, method: str, location: str, **more: Any) -> datetime:
        headers = {**BYTES, "Upload-Offset": "0"} if method == "PATCH" else TUS
        async with server.client.request(method, location, headers=headers, **more) as answer:
            return parsedate_to_datetime(answer.headers["Upload-Expires"])

    now, location = server.services.now(), await server.create(10)
    await catch_up(database_url, server.services.log)
    with psycopg.connect(database_url) as past:
        past.execute("UPDATE read_model.uploads SET updated_at = updated_at - interval '9 hours'")
    left = await said(server, "HEAD", location) - now
    assert timedelta(hours=14) < left < timedelta(hours=16)
    left = await said(server, "PATCH", location, data=b"01234") - now
    assert timedelta(hours=23) < left < timedelta(hours=25)


async def test_an_abandoned_upload_expires(impatient: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {impatient.key}"}

    async with aiohttp.ClientSession(impatient.url, headers=headers) as client:
        said = {**TUS, "Upload-Length": "10"}
        async with client.post("/v1/uploads", headers=said) as answer:
            location = answer.headers["Location"]
            assert "GMT" in answer.headers["Upload-Expires"]
        said = {**BYTES, "Upload-Offset": "0"}
        async with client.patch(location, headers=said, data=b"01234") as answer:
            assert "GMT" in answer.headers["Upload-Expires"]

        async def expired() -> bool:
            async with client.head(location, headers=TUS) as answer:
                return answer.status == 410

        await eventually(expired)
        async with client.get(f"{location}/content") as answer:
            assert answer.status == 410
        async with client.get(f"{location}/history") as answer:
            topics = [event["type"] for event in (await answer.json())["items"]]
            assert topics[-1] == "upload.expired"
        folder = impatient.settings.blob_dir
        await eventually(lambda: stored_files(folder) == [])


async def test_cancelling_an_upload_or_its_batch_frees_the_bytes(live_server: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {live_server.key}"}

    async def begun(client: aiohttp.ClientSession, path: str) -> str:
        said = {**BYTES, "Upload-Length": "10"}
        async with client.post(path, headers=said, data=b"01234") as answer:
            assert answer.status == 201
            return answer.headers["Location"]

    folder = live_server.settings.blob_dir
    async with aiohttp.ClientSession(live_server.url, headers=headers) as client:
        location = await begun(client, "/v1/uploads")
        async with client.post(f"{location}/cancel") as answer:
            assert answer.status == 202
        assert stored_files(folder) == []

        async with client.post("/v1/batches", json={}) as answer:
            batch = answer.headers["Location"]
        await begun(client, f"{batch}/uploads")
        assert len(stored_files(folder)) == 1
        async with client.post(f"{batch}/cancel") as answer:
            assert answer.status == 202
        await eventually(lambda: stored_files(folder) == [])


async def test_the_sweeper_decides_on_the_log_and_not_on_what_it_remembers(
    database_url: str, tmp_path: Path, server: Server
) -> None:
    batch = await server.start_batch(FileDeclaration(path="a", size=5))
    upload = upload_id_for(batch, "a", server.services.log.id_secret)
    async with (
        serving(database_url, tmp_path) as another,
        _sweeper(server, database_url) as sweeper,  # projected up to here only
    ):
        assert (await server.services.log.upload(upload)).blob is None
        headers = {**BYTES, **filename("a"), "Upload-Length": "5"}
        path = f"/v1/batches/{batch}/uploads"
        answer = await another.ask("POST", path, headers=headers, data=b"bytes")
        assert answer.status == 201
        _age(tmp_path)

        assert await _clear_all(sweeper) == ([], [])
        assert await another.content(f"/v1/uploads/{upload}") == b"bytes"


async def test_bytes_of_ended_uploads_are_freed_in_steps(
    database_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.sweeper.MAX_UPLOADS_PER_STEP", 1)
    ended = [await server.create(10) for _ in range(3)]
    for location in ended:
        assert await server.patch(location, 0, b"01234") == 204
        await _cancelled_behind_our_back(server, location)
    head = await server.services.log.head()
    async with _sweeper(server, database_url) as sweeper:
        position, steps = 0, 0
        while position < head:
            position, steps = await sweeper.free_ended(position), steps + 1

    assert steps >= len(ended)
    for location in ended:
        assert await server.services.blobs.size(upload_blob_name(upload_in(location))) == 0


async def test_an_upload_that_moved_on_behind_the_read_model_does_not_expire(
    database_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, moving = await server.create(10), await server.create(10)
    versions = await server.services.log.versions([upload_in(idle), upload_in(moving)])
    found = [IdleUpload(upload, version) for upload, version in versions.items()]

    async def idle_as_projected(*_: object) -> list[IdleUpload]:
        return found

    monkeypatch.setattr(PostgresUploadStatusLookup, "idle", idle_as_projected)
    assert await server.patch(moving, 0, b"01234") == 204
    async with _sweeper(server, database_url) as sweeper:
        assert await sweeper.expire() == 1

    assert await server.offset(moving) == 5
    assert (await server.ask("HEAD", idle, headers=TUS)).status == 410


class _RecordedPreemption(NoRemotePreemption):
    """Record whether the bytes of an upload were there when its transfers were stopped."""

    def __init__(self, blobs: LocalBlobStore) -> None:
        self._blobs = blobs
        self.stopped: dict[UUID, int] = {}

    async def stop(self, upload: UUID) -> None:
        self.stopped[upload] = await self._blobs.size(upload_blob_name(upload))


async def test_transfers_are_stopped_before_the_bytes_of_their_upload_are_freed(
    database_url: str, server: Server
) -> None:
    location = await server.create(10)
    assert await server.patch(location, 0, b"01234") == 204
    await _cancelled_behind_our_back(server, location)
    blobs = server.services.blobs
    assert isinstance(blobs, LocalBlobStore)
    preemption = _RecordedPreemption(blobs)
    async with _sweeper(server, database_url, preemption) as sweeper:
        await sweeper.free_ended(0)

    assert preemption.stopped == {upload_in(location): 5}
    assert await blobs.size(upload_blob_name(upload_in(location))) == 0
