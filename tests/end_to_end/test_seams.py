"""Races between two processes, each by a schedule that the test controls.

A `Gate` holds one call of one process, the test lets the other process act, and opens the gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.append import Append, AppendCondition, StreamAppend, append_to_stream
from application.commands import (
    AddUploads,
    BatchCommand,
    RegisterUpload,
    StartBatch,
    UploadCommand,
    record_received,
)
from application.errors import Conflict
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext, execute
from application.handlers.uploads import (
    StoredFile,
    add_uploads,
    record_received_files,
    register_upload,
)
from application.ports.read_model import FeedFilter
from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor, AppendRequest, Transfers
from domain.batch.aggregate import Batch
from domain.batch.events import BatchPaused, BatchSealed, UploadsAdded
from domain.errors import CommandRejected, InvalidState
from domain.event import topic_of
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.events import UploadCompleted
from domain.upload.state import UploadState
from infrastructure.read_model import projector, rebuild
from infrastructure.read_model.feed import PostgresFeed
from interfaces.bootstrap.container import Container
from interfaces.uploads.setup import TRANSFERS
from tests.builders import NOON, WORKER, attempt, queued, registered
from tests.harness import open_test_container, serve_http
from tests.support import eventually

ACTOR = Actor("key:test")
CONTENT = b"x" * 1000


class Gate:
    """Holds the first call of a coroutine method until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()
        method = getattr(target, name)

        async def held(*arguments: Any, **named: Any) -> Any:
            is_first = not self._reached.is_set()
            self._reached.set()
            if is_first:
                await self._opened.wait()
            return await method(*arguments, **named)

        monkeypatch.setattr(target, name, held)

    async def reached(self) -> None:
        async with asyncio.timeout(60):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()


@dataclass(frozen=True)
class Process:
    """What one process remembers, and its way to append and receive."""

    container: Container
    transfers: Transfers

    @property
    def log(self) -> Any:
        return self.container.log

    async def start_batch(self, *paths: str) -> UUID:
        files = tuple(FileDeclaration(path=path, size=len(CONTENT)) for path in paths)
        command = StartBatch(id=self.container.services.new_id(), owner="acme", files=files)
        await start_batch(self.log, command, context())
        return command.id

    async def register(self, batch: UUID, path: str) -> UUID:
        command = RegisterUpload(batch=batch, file=FileDeclaration(path=path, size=len(CONTENT)))
        return (await register_upload(self.log, command, context())).upload.id

    async def receive(self, upload: UUID, content: bytes, offset: int = 0) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        request = AppendRequest(upload=upload, offset=offset, length=len(content))
        await self.transfers.receive(request, chunks(), ACTOR)

    async def topics(self, stream: UUID) -> list[str]:
        return [topic_of(recorded.event) for recorded in await self.log.stream(stream)]


@asynccontextmanager
async def two_processes(database_url: str, folder: Path) -> AsyncIterator[tuple[Process, Process]]:
    """Two containers on one database and one folder of blobs, without background tasks."""
    async with AsyncExitStack() as stack:
        processes = []
        for _ in range(2):
            opened = open_test_container(database_url, folder)
            container = await stack.enter_async_context(opened)
            server = await stack.enter_async_context(serve_http(container))
            processes.append(Process(container, server.app[TRANSFERS]))
        yield processes[0], processes[1]


def progress(upload: UUID, received: int) -> UploadCommand:
    decision = partial(
        record_received, received=received, blob=upload_blob_name(upload), complete=False
    )
    return UploadCommand(upload, decision, accepts_cached=True)


def context() -> CommandContext:
    return CommandContext("key:test", datetime.now(UTC))


async def test_a_command_decided_before_another_was_recorded_is_decided_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_processes(database_url, tmp_path) as (first, second):
        batch = await first.start_batch("a.txt")
        gate = Gate(monkeypatch, first.log, "append")
        pausing = asyncio.create_task(
            execute(first.log, BatchCommand(batch, Batch.pause), context())
        )
        await gate.reached()
        await execute(
            second.log, BatchCommand(batch, partial(Batch.cancel, reason="test")), context()
        )
        gate.open()

        with pytest.raises(InvalidState):
            await pausing
        assert "batch.paused" not in await second.topics(batch)


async def test_two_bundles_that_join_one_batch_at_once_are_both_counted(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither states an expected version of the batch: both may append."""
    async with two_processes(database_url, tmp_path) as (first, second):
        batch = await first.start_batch()

        async def bundle(process: Process, *paths: str) -> None:
            known = await process.log.batch(batch)
            stored = [
                StoredFile(FileDeclaration(path=path), len(CONTENT), f"blob-{path}")
                for path in paths
            ]
            await record_received_files(process.log, known, stored, context())

        gate = Gate(monkeypatch, first.log, "append")
        slow = asyncio.create_task(bundle(first, "a.txt", "b.txt"))
        await gate.reached()
        await bundle(second, "c.txt")
        gate.open()
        await slow
        # And two appends of one process, which share a group.
        await asyncio.gather(bundle(first, "d.txt"), bundle(first, "e.txt", "f.txt"))

        recorded = await second.log.stream(batch)
        added = [r.event.count for r in recorded if isinstance(r.event, UploadsAdded)]
        assert sorted(added) == [1, 1, 2, 2]
        assert [event.version for event in recorded] == list(range(1, len(recorded) + 1))


async def test_a_refusal_rests_on_what_is_recorded_and_not_on_what_is_remembered(
    database_url: str, tmp_path: Path
) -> None:
    async with two_processes(database_url, tmp_path) as (first, second):
        upload = await first.register(await first.start_batch(), "a.txt")
        half = progress(upload, 500)
        await execute(first.log, half, context())
        loss = UploadCommand(upload, partial(Upload.record_data_loss, stored=100))
        await execute(second.log, loss, context())

        # The first process remembers 500 bytes, beside which these would be a step back.
        less = progress(upload, 300)
        changed = await execute(first.log, less, context())

        assert changed.aggregate.received == 300


async def test_an_offset_is_never_answered_from_memory(database_url: str, tmp_path: Path) -> None:
    async with two_processes(database_url, tmp_path) as (first, second):
        upload = await first.register(await first.start_batch(), "a.txt")
        await first.receive(upload, CONTENT[:500])
        assert first.log.remembered(upload).received == 500
        await second.receive(upload, CONTENT[500:800], offset=500)

        assert (await first.transfers.current_upload(upload, ACTOR)).received == 800

        await second.receive(upload, CONTENT[800:], offset=800)
        current = await first.transfers.current_upload(upload, ACTOR)
        assert (current.received, current.state) == (1000, UploadState.RECEIVED)


@pytest.mark.parametrize("way", ["one by one", "by list", "in a bundle"])
async def test_a_file_that_joins_while_its_batch_is_sealed_joins_before_or_not_at_all(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async with two_processes(database_url, tmp_path) as (first, second):
        batch = await first.start_batch("a.txt")
        known = await first.log.batch(batch)
        file = FileDeclaration(path="late.txt", size=len(CONTENT))
        work = {
            "one by one": lambda: first.register(batch, "late.txt"),
            "by list": lambda: add_uploads(
                first.log, AddUploads(batch=batch, files=(file,), max_size=10_000), context()
            ),
            "in a bundle": lambda: record_received_files(
                first.log, known, [StoredFile(file, len(CONTENT), "blob")], context()
            ),
        }[way]
        gate = Gate(monkeypatch, first.log, "append")
        joining = asyncio.create_task(work())
        await gate.reached()
        await execute(second.log, BatchCommand(batch, Batch.seal), context())
        gate.open()

        with pytest.raises((InvalidState, Conflict)):
            await joining
        assert (await second.topics(batch))[-1] == "batch.sealed"
        late = upload_id_for(batch, "late.txt", first.log.id_secret)
        assert await second.topics(late) == []


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("order", [1, -1])
async def test_two_conditions_on_one_stream_are_both_checked(
    database_url: str, tmp_path: Path, grouped: bool, order: int
) -> None:
    """Each has topics and a version of its own; the stream has moved on for one of the two."""
    async with two_processes(database_url, tmp_path) as (first, _):
        batch = await first.start_batch()
        await execute(first.log, BatchCommand(batch, Batch.pause), context())  # version 2
        sealed = frozenset({topic_of(BatchSealed)})
        paused = frozenset({topic_of(BatchPaused)})
        fine = (
            AppendCondition(batch, 2, paused),
            AppendCondition(batch, 1, sealed),
        )
        broken = (
            AppendCondition(batch, 1, paused),
            AppendCondition(batch, 2, sealed),
        )

        def append(*conditions: AppendCondition) -> Append:
            upload = first.container.services.new_id()
            writes = (StreamAppend(upload, 0, (registered(batch=batch),)),)
            return Append(writes, conditions=conditions[::order])

        if grouped:
            results = await asyncio.gather(
                first.log.append(append(*fine)),
                first.log.append(append(*broken)),
                first.log.append(append(*fine)),
                return_exceptions=True,
            )
            assert [isinstance(result, Conflict) for result in results] == [False, True, False]
        else:
            await first.log.append(append(*fine))
            with pytest.raises(Conflict):
                await first.log.append(append(*broken))


async def test_a_cancel_that_is_refused_leaves_the_bytes(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_processes(database_url, tmp_path) as (first, second):
        upload = await first.register(await first.start_batch(), "a.txt")
        await first.receive(upload, CONTENT[:500])
        gate = Gate(monkeypatch, first.log, "append")
        command = UploadCommand(upload, partial(Upload.cancel, reason="test"))
        cancelling = asyncio.create_task(first.transfers.cancel(command, context()))
        await gate.reached()
        await second.receive(upload, CONTENT[500:], offset=500)
        received = await second.log.upload(upload)
        events = (queued(), attempt(), UploadCompleted(at=NOON, by=WORKER))
        await second.log.append(append_to_stream(upload, received.version, *events))
        gate.open()

        with pytest.raises(CommandRejected):
            await cancelling
        current = await second.log.upload(upload)
        assert current.state is UploadState.COMPLETED
        assert await second.container.blobs.size(current.blob) == len(CONTENT)


async def test_bytes_stored_while_the_upload_is_cancelled_elsewhere_are_not_kept(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is open when the other process cancels and deletes the blob."""
    async with two_processes(database_url, tmp_path) as (first, second):
        upload = await first.register(await first.start_batch(), "a.txt")
        gate = Gate(monkeypatch, first.log, "append")
        receiving = asyncio.create_task(first.receive(upload, CONTENT))
        await gate.reached()
        await second.transfers.cancel(
            UploadCommand(upload, partial(Upload.cancel, reason="test")), context()
        )
        gate.open()

        with pytest.raises(CommandRejected):
            await receiving
        assert await second.container.blobs.size(upload_blob_name(upload)) in (None, 0)
        assert "upload.file_received" not in await second.topics(upload)


async def test_a_page_of_the_feed_that_waits_for_a_rebuild_is_of_the_new_rows(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild has renamed the tables and not committed when the feed begins to read."""
    async with two_processes(database_url, tmp_path) as (first, second):
        batch = await first.start_batch("a.txt", "b.txt")
        await projector.catch_up(database_url, first.log)
        gate = Gate(monkeypatch, rebuild, "_record")
        rebuilding = asyncio.create_task(rebuild.rebuild(database_url, first.log))
        await gate.reached()
        feed = PostgresFeed(second.container.pool)
        selection = FeedFilter(None, None, frozenset({batch}))
        reading = asyncio.create_task(feed.changes(selection, since=0, after=0, limit=100))
        await eventually(lambda: _sessions_that_wait_for_a_lock(second))
        gate.open()

        page, rebuilt = await reading, await rebuilding

        assert page.epoch == rebuilt.epoch
        assert [row.id for row in page.batches] == [batch]
        assert {row.path for row in page.uploads} == {"a.txt", "b.txt"}


async def _sessions_that_wait_for_a_lock(process: Process) -> int:
    async with process.container.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        row = await cursor.fetchone()
    return int(row[0]) if row else 0
