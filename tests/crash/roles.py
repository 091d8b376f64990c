"""Roles of the crash tests: each runs one role's real code until there is nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from application import commands
from application.handlers import batches, uploads
from application.handlers.execute import CommandContext, execute
from application.transfers.errors import NotAcceptingBytes
from application.transfers.transfers import Actor, AppendRequest, TransferLimits, Transfers
from domain.batch.aggregate import Batch
from domain.errors import CommandRejected
from domain.upload.aggregate import Upload
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.jobs import orchestrator, rounds, worker
from infrastructure.jobs.selection import select_lost
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.read_model import projector
from infrastructure.read_model import rebuild as rebuilding
from infrastructure.read_model import rebuild as verifying
from infrastructure.settings import Settings
from interfaces.bootstrap.tasks import supervise
from tests.crash.fake_processors import PROCESSORS, SETTINGS
from tests.crash.fork_server import ProcessOrder
from tests.crash.kill_at_await import AwaitKiller, unmonitored
from tests.fakes import NoRemotePreemption, unlimited_quotas
from tests.harness import open_log

# Short intervals: no other process shares the server here.
orchestrator.MIN_ROUND_INTERVAL = orchestrator.MAX_ROUND_INTERVAL = 0.005
rounds.POLL_INTERVAL = 0.005
orchestrator.CHECK_INTERVAL = 0.01
worker.POLL_INTERVAL = 0.02

STILL = 100  # looks, a hundredth of a second and more from one to the next

_NOTHING_DIRTY = "SELECT NOT EXISTS (SELECT FROM orchestration.batches WHERE dirty)"
_LAST_WORKER = "SELECT coalesce(max(id), 0) FROM procrastinate_workers"
_NOTHING_TO_DO = """
SELECT EXISTS (SELECT FROM procrastinate_workers WHERE id > %(last)s) AND NOT EXISTS (
  SELECT FROM procrastinate_jobs WHERE worker_id > %(last)s AND status = 'doing'
  OR status = 'todo' AND coalesce(scheduled_at, now()) < now() + interval '1 s')"""


class Parts:
    """Log, blobs and settings of the roles in one process."""

    def __init__(self, order: ProcessOrder, pool: Pool, log: PostgresEventLog) -> None:
        self.pool = pool
        self.log = log
        self.blobs = LocalBlobStore(Path(order.folder) / "blobs", threads=2)
        self.settings = Settings(**{**SETTINGS, **order.options.get("settings", {})})
        self.later = timedelta(seconds=order.options.get("later", 0.0))

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    async def holds(self, question: Any, **about: object) -> bool:
        async with self.pool.connection() as connection:
            row = await (await connection.execute(question, about)).fetchone()
        return bool(row and row[0])


@asynccontextmanager
async def open_parts(order: ProcessOrder, killer: AwaitKiller) -> AsyncIterator[Parts]:
    """Awaits are counted once everything is open: to die earlier leaves nothing behind."""
    async with (
        make_pool(order.url, name="crash", max_size=4) as pool,
        open_log(order.url, pool=pool) as log,
    ):
        killer.begin()
        yield Parts(order, pool, log)


class Quiet(BaseException):
    """There is nothing left to do."""


class UntilQuiet:
    """The port `Wakeups` of an orchestrator that is to end when it has caught up."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def wait(self, after: int) -> None:
        """Raises Quiet."""
        seen = await self._parts.log.head() == after
        if seen and await self._parts.holds(_NOTHING_DIRTY) and not await self._lost():
            raise Quiet
        await asyncio.sleep(0.002)

    async def _lost(self) -> bool:
        """Return whether uploads seem to be lost, which a second check decides."""
        async with self._parts.pool.connection() as connection:
            return bool(await select_lost(connection))


async def orchestrate(order: ProcessOrder, killer: AwaitKiller) -> None:
    async with open_parts(order, killer) as parts:
        leadership = rounds.orchestrator_leadership(order.url, parts.settings)
        running = orchestrator.Orchestrator(
            leadership, parts.log, UntilQuiet(parts), parts.settings, parts.now
        )
        try:
            await supervise("orchestrator", running.run, essential=False)
        except Quiet:
            return


async def work(order: ProcessOrder, killer: AwaitKiller) -> None:
    async with open_parts(order, killer) as parts:
        async with parts.pool.connection() as connection:
            row = await (await connection.execute(_LAST_WORKER)).fetchone()
        last = row[0] if row else 0
        running = asyncio.create_task(
            worker.Worker(
                worker.postgres_queue(order.url),
                worker.PostgresRunnableUploads(parts.pool),
                parts.log,
                parts.blobs,
                PROCESSORS,
                parts.settings,
                parts.now,
                lambda: 0.5,
            ).run()
        )
        await unmonitored(_until_idle(parts, last))
        running.cancel()
        await asyncio.wait((running,))


async def project(order: ProcessOrder, killer: AwaitKiller) -> None:
    async with open_parts(order, killer) as parts:
        await projector.catch_up(order.url, parts.log)


async def rebuild(order: ProcessOrder, killer: AwaitKiller) -> None:
    async with open_parts(order, killer) as parts:
        await rebuilding.rebuild(order.url, parts.log)


async def verify(order: ProcessOrder, killer: AwaitKiller) -> None:
    async with open_parts(order, killer) as parts:
        await verifying.verify(order.url, parts.log)


_HANDLERS: Mapping[type[commands.Command], Callable[..., Awaitable[Any]]] = {
    commands.StartBatch: batches.start_batch,
    commands.AddUploads: uploads.add_uploads,
}


def command_options(asked: commands.Command) -> dict[str, Any]:
    """Return the options of a process that executes this command; decisions go by name."""
    if not isinstance(asked, commands.BatchCommand | commands.UploadCommand):
        return {"kind": type(asked).__name__, "command": asked}
    decision = asked.decision if isinstance(asked.decision, partial) else partial(asked.decision)
    reopen = getattr(asked, "reopen", None)
    return {
        "kind": type(asked).__name__,
        "id": str(asked.id),
        "decision": decision.func.__name__,
        "input": decision.keywords,
        "reopen": reopen and reopen.__name__,
    }


def _read_command(options: dict[str, Any]) -> Any:
    kind = getattr(commands, options["kind"])
    if "command" in options:
        return msgspec.convert(options["command"], kind)
    aggregate: Any = Batch if kind is commands.BatchCommand else Upload
    decision = partial(getattr(aggregate, options["decision"]), **options["input"])
    more = {"reopen": getattr(Batch, options["reopen"])} if options["reopen"] else {}
    return kind(UUID(options["id"]), decision, **more)


async def command(order: ProcessOrder, killer: AwaitKiller) -> str:
    """Handles a command as an API process does; answers why it was refused, if it was."""
    asked = _read_command(order.options)
    handler = _HANDLERS.get(type(asked), execute)
    async with open_parts(order, killer) as parts:
        try:
            await handler(parts.log, asked, CommandContext("key:alice", parts.now()))
        except CommandRejected as refusal:
            return str(refusal)
    return ""


async def receive(order: ProcessOrder, killer: AwaitKiller) -> str:
    """Takes in the bytes of an upload from where it stands; answers why not, if it was refused."""
    async with open_parts(order, killer) as parts:
        upload, size = UUID(order.options["upload"]), int(order.options["size"])
        clock = asyncio.get_running_loop().time
        receiving = Transfers(
            parts.log,
            parts.blobs,
            NoRemotePreemption(),
            quotas=unlimited_quotas(clock),
            limits=TransferLimits(max_file_size=10**6, min_free_bytes=0, progress_interval=0.001),
            now=parts.now,
            clock=clock,
        )
        actor = Actor("key:alice")
        try:
            received = (await receiving.current_upload(upload, actor)).received
            incoming = AppendRequest(upload=upload, offset=received)
            await receiving.receive(incoming, _pieces(received, size), actor)
        except NotAcceptingBytes as refusal:  # they had all arrived before
            return str(refusal)
        return ""


def bytes_of(start: int, end: int) -> bytes:
    """Return this range of the content of every upload of these tests."""
    return bytes(place % 251 for place in range(start, end))


async def _pieces(start: int, end: int) -> AsyncIterator[bytes]:
    for at in range(start, end, 10):
        yield bytes_of(at, min(at + 10, end))
        await asyncio.sleep(0.002)


async def _until_idle(parts: Parts, last: int) -> None:
    """Returns when no job is left, or the ones that are have stood still, as those of a zombie."""
    head, still = 0, 0
    while not await parts.holds(_NOTHING_TO_DO, last=last) and still < STILL:
        now = await parts.log.head()
        head, still = now, still + 1 if now == head else 0
        await asyncio.sleep(0.01)


ROLES = {
    role.__name__: role for role in (orchestrate, work, project, rebuild, verify, command, receive)
}
