"""A process dies at any await of a request; the repeated request takes effect once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from application.commands import AddUploads, BatchCommand, Command, StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import execute
from application.handlers.uploads import add_uploads
from application.transfers.locks import upload_blob_name
from domain.batch.aggregate import Batch
from domain.file import FileDeclaration
from infrastructure.read_model.rebuild import verify
from tests.contracts.blob_store import content
from tests.crash.awaits import awaits
from tests.crash.fork_server import DONE
from tests.crash.harness import CrashHarness
from tests.crash.roles import bytes_of, command_options

SIZE = 45  # bytes, in five pieces

FILES = tuple(FileDeclaration(path=f"{number}.txt", size=SIZE) for number in range(3))

STARTED = "start_batch"  # the only request that needs no batch
REQUESTS: dict[str, tuple[Any, Callable[[UUID], Command]]] = {
    "start_batch": (start_batch, lambda id: StartBatch(id=id, owner="acme", files=FILES)),
    "add_uploads": (add_uploads, lambda id: AddUploads(batch=id, files=FILES, max_size=SIZE)),
    "seal_batch": (execute, lambda id: BatchCommand(id, Batch.seal)),
    "cancel_batch": (execute, lambda id: BatchCommand(id, Batch.cancel)),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_command_that_is_repeated_after_a_crash_happens_once(
    harness: CrashHarness, name: str
) -> None:
    handler, command = REQUESTS[name]

    for ends_at in awaits(5, 3):
        batch = uuid4()
        if name != STARTED:
            await harness.ask(start_batch, StartBatch(id=batch, owner="acme"))
        asked = command_options(command(batch))
        ended = (await harness.run_process("command", ends_at, **asked)).ended
        assert await harness.ask(handler, command(batch)) is not None

        topics = await harness.harness.topics(batch)
        assert len(topics) == len(set(topics)) == 2
        if ended == DONE:
            break
    await harness.check()


@pytest.mark.timeout(600)
async def test_bytes_that_were_acknowledged_survive_a_crash_at_every_await(
    harness: CrashHarness,
) -> None:
    for ends_at in awaits(7, 7):
        batch = uuid4()
        started = StartBatch(id=batch, owner="acme", files=FILES[:1])
        (upload,) = (await harness.ask(start_batch, started)).uploads
        sent = {"upload": upload, "size": SIZE}
        ended = (await harness.run_process("receive", ends_at, **sent)).ended
        recorded = (await harness.harness.upload(upload)).received
        assert recorded <= await harness.harness.blobs.size(upload_blob_name(upload))
        if ended != DONE:
            await harness.run_process("receive", **sent)

        assert (await harness.harness.upload(upload)).received == SIZE
        assert await content(harness.harness.blobs, upload_blob_name(upload)) == bytes_of(0, SIZE)
        if ended == DONE:
            break
    await harness.check()


async def test_rows_are_projected_once_however_often_the_projector_is_killed(
    harness: CrashHarness,
) -> None:
    for ends_at in awaits(6, 5):
        await harness.harness.batch({"a.txt": b"x"})
        if (await harness.run_process("project", ends_at)).ended == DONE:
            break
    await harness.settle()


@pytest.mark.parametrize("work", ["rebuild", "verify"])
async def test_maintenance_that_is_killed_leaves_live_rows_alone_and_nothing_beside_them(
    database_url: str, harness: CrashHarness, work: str
) -> None:
    await harness.harness.batch({"a.txt": b"x"})
    await harness.run_process("project")
    for ends_at in awaits(4, 13):
        if (await harness.run_process(work, ends_at)).ended == DONE:
            break
        assert (await verify(database_url, harness.harness.log)).sound
    await harness.run_process(work)

    assert await harness.harness.fetch(BESIDE) == []


BESIDE = """
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'read_model_%%'
UNION ALL SELECT application_name FROM notification_tracking
WHERE application_name LIKE 'read_model_%%'"""
