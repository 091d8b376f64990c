"""Harness of orchestrator and workers: log, blobs and roles on one database, and commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from application.append import RecordedEvent
from application.commands import BatchCommand, RegisterUpload, StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext, execute
from application.handlers.uploads import register_upload
from application.pipeline import Pipeline, Processor, Step
from domain.batch.aggregate import Batch
from domain.event import Event, topic_of
from domain.file import FileDeclaration
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.jobs.orchestrator import Orchestrator
from infrastructure.jobs.rounds import orchestrator_leadership
from infrastructure.jobs.worker import PostgresRunnableUploads, Worker, postgres_queue
from infrastructure.postgres.listener import Listener
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.settings import Settings
from interfaces.bootstrap.tasks import supervise
from tests.harness import open_log
from tests.support import eventually

ALICE = "key:alice"
SOON = RetryPolicy(attempts=3, first_delay=0.05, longest_delay=0.2)


def settings(**more: Any) -> Settings:
    """Return settings under which no worker counts as dead because the machine is slow."""
    usual: dict[str, Any] = {"worker_heartbeat": 0.2, "worker_dead_after": 600.0}
    return Settings(**{**usual, **more})


def pipeline(*processors: str, timeout: float = 30.0, **options: Any) -> dict[str, Pipeline]:
    """Return the only pipeline of the harness, under the name that uploads ask for."""
    steps = (Step(processor=name, timeout=timeout, options=options) for name in processors)
    return {"default": Pipeline(steps=tuple(steps))}


class PipelineHarness:
    """Parts of one process, and commands to them. The test starts and stops the roles."""

    def __init__(
        self,
        url: str,
        pool: Pool,
        listener: Listener,
        log: PostgresEventLog,
        blobs: LocalBlobStore,
        chosen: Settings,
    ) -> None:
        self.url = url
        self.pool = pool
        self.log = log
        self.blobs = blobs
        self.settings = chosen
        self._listener = listener
        self._roles: set[asyncio.Task[None]] = set()

    # Roles.

    def orchestrator(self) -> Orchestrator:
        leadership = orchestrator_leadership(self.url, self.settings)
        return Orchestrator(leadership, self.log, self._listener.wakeups(), self.settings, now)

    def orchestrate(self) -> asyncio.Task[None]:
        return self.start(supervise("orchestrator", self.orchestrator().run, essential=False))

    def work(self, processors: Mapping[str, Processor], **more: Any) -> asyncio.Task[None]:
        chosen = more.pop("settings", self.settings)
        worker = Worker(
            postgres_queue(self.url),
            PostgresRunnableUploads(self.pool),
            self.log,
            self.blobs,
            processors,
            chosen,
            now,
            lambda: 0.5,
        )
        return self.start(worker.run())

    def run(self, processors: Mapping[str, Processor], **more: Any) -> asyncio.Task[None]:
        """Start an orchestrator and a worker; return the task of the worker."""
        self.orchestrate()
        return self.work(processors, **more)

    def start(self, running: Any) -> asyncio.Task[None]:
        role = asyncio.create_task(running)
        self._roles.add(role)
        return role

    async def stop(self, *roles: asyncio.Task[None]) -> None:
        for role in roles or tuple(self._roles):
            role.cancel()
            self._roles.discard(role)
            await asyncio.wait((role,))

    # Commands.

    async def batch(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        seal: bool = True,
        owner: str = "acme",
        priority: int = 0,
        media_type: str | None = None,
        retry_policy: RetryPolicy = SOON,
        failure_threshold: float | None = None,
    ) -> UUID:
        """Start a batch of files whose bytes have all arrived."""
        id = uuid4()
        command = StartBatch(
            id=id,
            owner=owner,
            priority=priority,
            retry_policy=retry_policy,
            failure_threshold=failure_threshold,
        )
        await start_batch(self.log, command, context())
        await asyncio.gather(
            *(
                self.receive(id, path, content, media_type)
                for path, content in (files or {}).items()
            )
        )
        if seal:
            await self.seal(id)
        return id

    async def receive(
        self, batch: UUID, path: str, content: bytes, media_type: str | None = None
    ) -> UUID:
        blob = f"uploads/{uuid4()}"
        await self.blobs.put(blob, content)
        file = FileDeclaration(path=path, size=len(content), media_type=media_type)
        command = RegisterUpload(batch=batch, file=file, received=len(content), blob=blob)
        return (await register_upload(self.log, command, context())).upload.id

    async def declared(self, batch: UUID, path: str) -> UUID:
        """Register a file of which no byte has arrived."""
        command = RegisterUpload(batch=batch, file=FileDeclaration(path=path, size=10))
        return (await register_upload(self.log, command, context())).upload.id

    async def seal(self, batch: UUID) -> None:
        await execute(self.log, BatchCommand(batch, Batch.seal), context())

    async def pause(self, batch: UUID) -> None:
        await execute(self.log, BatchCommand(batch, Batch.pause), context())

    async def cancel(self, batch: UUID, reason: str = "changed my mind") -> None:
        await execute(
            self.log, BatchCommand(batch, partial(Batch.cancel, reason=reason)), context()
        )

    # Queries.

    async def events(self, stream: UUID | None = None) -> Sequence[RecordedEvent]:
        if stream is not None:
            return await self.log.stream(stream)
        return await self.log.read(0, limit=1_000_000)

    async def topics(self, stream: UUID) -> list[str]:
        return [topic_of(recorded.event) for recorded in await self.events(stream)]

    async def all_of(self, kind: type[Event], stream: UUID | None = None) -> list[Any]:
        events = await self.events(stream)
        return [recorded.event for recorded in events if isinstance(recorded.event, kind)]

    async def upload(self, id: UUID) -> Upload:
        self.log.forget(id)
        return await self.log.upload(id)

    async def uploads(self, batch: UUID) -> dict[str, Upload]:
        """Return every upload of the batch by its path, folded from the log alone."""
        found: dict[UUID, Upload] = {}
        for recorded in await self.events():
            event: Any = recorded.event
            if getattr(event, "batch", None) == batch:
                found[recorded.stream] = Upload.begin(recorded.stream, event)
            elif recorded.stream in found:
                found[recorded.stream] = found[recorded.stream].evolve(event)
        return {upload.path: upload for upload in found.values()}

    async def count(self, batch: UUID, state: UploadState) -> int:
        """Count the uploads of the batch in this state, folded from the log alone."""
        return [upload.state for upload in (await self.uploads(batch)).values()].count(state)

    async def completed(self, batch: UUID, deadline: float = 60.0) -> Batch:
        """Wait until the batch has an outcome, and return it."""

        async def done() -> Batch | None:
            self.log.forget(batch)
            found = await self.log.batch(batch)
            return found if found.outcome else None

        found: Batch = await eventually(done, deadline)
        return found

    async def fetch(self, query: Any, *parameters: object) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def fetch_none(self, statement: Any) -> None:
        """Execute a statement that returns no rows."""
        async with self.pool.connection() as connection:
            await connection.execute(statement)

    async def cut_all_connections(self) -> None:
        """Terminate all sessions but this one, as a restart of the server would, and wait."""
        await self.fetch(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def until(
        self, condition: Callable[[], Awaitable[object] | object], deadline: float = 60.0
    ) -> Any:
        return await eventually(condition, deadline)


def now() -> datetime:
    return datetime.now(UTC)


def context() -> CommandContext:
    return CommandContext(by=ALICE, at=now())


@asynccontextmanager
async def open_harness(url: str, folder: Path, **more: Any) -> AsyncIterator[PipelineHarness]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(make_pool(url, name="test", max_size=6))
        listener = await stack.enter_async_context(Listener(url))
        log = await stack.enter_async_context(open_log(url, pool=pool))
        blobs = LocalBlobStore(folder / "blobs")
        stack.callback(blobs.close)
        harness = PipelineHarness(url, pool, listener, log, blobs, settings(**more))
        stack.push_async_callback(harness.stop)
        yield harness
