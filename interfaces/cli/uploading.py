"""The whole job of `uptrail upload`: remember, start, send, seal, and wait for the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from application.views import BatchView, UploadView
from interfaces.cli.client import Client, StartedBatch
from interfaces.cli.errors import EXIT_OF_OUTCOME, Exit, Refusal, one_command_error
from interfaces.cli.output import size
from interfaces.cli.resuming import Memory, Remembered, memory_of
from interfaces.cli.screens import Screen
from interfaces.cli.sending import SHOWN_FAILURES, Sender, Tally
from interfaces.cli.watching import until_outcome

REFRESH = 0.1  # seconds between two looks at the tally
FAILED_STATES = ("failed", "quarantined", "rejected")


class Job(msgspec.Struct, frozen=True):
    """What to send, and how: paths by their name in the batch, several transfers at a time."""

    roots: dict[str, Path]
    label: str
    pipeline: str
    jobs: int
    wait: bool


class Failure(msgspec.Struct, frozen=True):
    """A file that did not make it, with the reason."""

    path: str
    reason: str


class Report(msgspec.Struct, frozen=True):
    """Result of an upload; `batch` is its row if the command waited for the outcome.

    `error` is why the batch is not sealed yet, and how to resume it.
    """

    id: UUID
    files: int
    bytes: int
    failures: list[Failure]
    failed: int
    batch: BatchView | None = None
    error: str = ""

    @property
    def exit(self) -> Exit:
        if self.error:
            return Exit.ERROR
        outcome = self.batch.outcome if self.batch else None
        verdict = EXIT_OF_OUTCOME.get(outcome or "", Exit.OK)
        return Exit.FAILURES if verdict is Exit.OK and self.failed else verdict


async def upload(client: Client, job: Job, data_dir: Path, screen: Screen) -> Report:
    """Sends everything, once, however often it is killed and run again.

    Raises CommandError of every kind.
    """
    names = (client.server.url, list(job.roots.values()), job.label, job.pipeline)
    with memory_of(data_dir, *names) as (memory, remembered, again):
        batch = await _start(client, job, memory, remembered, again, screen)
        with one_command_error():
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_send(client, job, batch, screen))
                watching = group.create_task(_watch(client, job, batch, sending, screen))
        tally = sending.result()
        if tally.stopped:
            return _unfinished(batch.id, tally, tally.stopped)
        memory.forget()
    return await _report(client, batch.id, tally, watching.result())


async def _watch(
    client: Client, job: Job, batch: StartedBatch, sending: asyncio.Task[Tally], screen: Screen
) -> BatchView | None:
    """The batch with its outcome, if that is waited for and there is going to be one."""
    if not job.wait:
        return None
    watching = asyncio.create_task(until_outcome(client, batch.id, screen))
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and sending.result().stopped:
            return None
        return await watching
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def _unfinished(id: UUID, tally: Tally, refusal: Refusal) -> Report:
    failures = [Failure(path, reason) for path, reason in tally.reasons]
    failed = tally.failures + tally.unsent_files
    return Report(id, tally.files, tally.size, failures, failed, error=_why_not(tally, refusal))


def _why_not(tally: Tally, refusal: Refusal) -> str:
    """One sentence for all files that were not sent, and what to do."""
    files = f"{tally.unsent_files} file{'' if tally.unsent_files == 1 else 's'} failed"
    again = "run the same command again to resume"
    if refusal.problem == "storage_full":
        free = "" if refusal.free is None else f", {size(refusal.free)} free"
        needs = f"needs {size(tally.size - tally.sent_bytes)}{free}"
        return f"{files}: not enough disk space ({needs}). Free space and {again}."
    if refusal.problem == "quota_exceeded":
        return f"{files}: {refusal}. Delete files or raise the limit, and {again}."
    return f"{files}: {refusal}. {again.capitalize()}."


async def _start(
    client: Client, job: Job, memory: Memory, remembered: Remembered, again: bool, screen: Screen
) -> StartedBatch:
    """The batch of this job: a new one, or the one that an earlier run began."""
    started = await _ask_for(client, job, remembered)
    if again and started.state in ("completed", "cancelling"):
        screen.note(f"the batch of an earlier run is {started.state}; starting a new one")
        remembered.key = uuid4().hex
        memory.keep(remembered)
        started = await _ask_for(client, job, remembered)
    elif again:
        screen.note(f"going on with batch {started.id}")
    else:
        screen.note(f"batch {started.id}")
    return started


async def _ask_for(client: Client, job: Job, remembered: Remembered) -> StartedBatch:
    options = {"label": job.label, "pipeline": job.pipeline}
    return await client.start_batch(options, key=remembered.key)


async def _send(client: Client, job: Job, batch: StartedBatch, screen: Screen) -> Tally:
    """Sends what is missing, and seals the batch; nothing where an earlier run did that."""
    if batch.state != "open":
        screen.note(f"everything was sent by an earlier run; batch {batch.id}")
        return Tally()
    sender = Sender(
        client, batch.id, job.roots, job.jobs, lambda name, why: screen.note(f"! {name}: {why}")
    )
    await asyncio.to_thread(sender.measure)
    showing = asyncio.create_task(_show(sender.tally, screen))
    try:
        tally = await sender.run()
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
        screen.sending(sender.tally)
    if tally.stopped:
        return tally
    await client.command(f"/v1/batches/{batch.id}/seal")
    screen.note(f"sent {tally.sent_files} files, {size(tally.sent_bytes)}; sealed")
    return tally


async def _show(tally: Tally, screen: Screen) -> None:
    while True:
        screen.sending(tally)
        await asyncio.sleep(REFRESH)


async def _report(client: Client, id: UUID, tally: Tally, batch: BatchView | None) -> Report:
    failures = [Failure(path, reason) for path, reason in tally.reasons]
    failed = tally.failures
    if batch is not None:
        sent = {failure.path for failure in failures}
        async for upload in _failed(client, id):
            if upload.path not in sent and len(failures) < SHOWN_FAILURES:
                failures.append(Failure(upload.path, upload.error or upload.state))
        failed = max(failed, sum(batch.counts.get(state, 0) for state in FAILED_STATES))
    return Report(id, tally.files, tally.size, failures, failed, batch)


async def _failed(client: Client, batch: UUID) -> AsyncIterator[UploadView]:
    for state in FAILED_STATES:
        async for upload in client.uploads(batch, state=state, limit=SHOWN_FAILURES):
            yield upload
