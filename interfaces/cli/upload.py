"""`uptrail upload PATH...`, and `show`, `retry`, `release` and `cancel` for one upload.

A file that is itself called `show` is named by its path: `uptrail upload ./show`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from application.views import BatchView, UploadView
from infrastructure import files
from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_with_client, send_command
from interfaces.cli.console import (
    EXIT_OF_OUTCOME,
    ClientOptions,
    CommandError,
    Exit,
    Interrupted,
    Refusal,
    Unreachable,
    one_command_error,
    size,
)
from interfaces.cli.files import resolve_roots
from interfaces.cli.progress import ProgressReporter, choose_reporter, wait_for_outcome
from interfaces.cli.transfer import SHOWN_FAILURES, UploadProgress, UploadSession
from interfaces.common.api_types import StartedBatchResponse

# State for resuming after a kill: one small file, written before the start.


class ResumeState(msgspec.Struct):
    """Idempotency key of the batch, with which a repeated command finds it."""

    key: str
    server: str
    roots: list[str]
    label: str
    pipeline: str


class ResumeFile:
    """Resume file of one upload, named after server, roots, label and pipeline."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self) -> ResumeState | None:
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(self.path.read_bytes(), type=ResumeState)
        return None

    def save(self, remembered: ResumeState) -> None:
        """Save durably. Raises OSError."""
        files.write_file_atomically(self.path, msgspec.json.encode(remembered))

    def delete(self) -> None:
        files.discard(self.path)


@contextmanager
def open_resume_file(
    data_dir: Path, server: str, roots: Iterable[Path], label: str, pipeline: str
) -> Iterator[tuple[ResumeFile, ResumeState, bool]]:
    """Open the resume file of this command; return its state, and whether an earlier run wrote it.

    One process holds it at a time. Raises CommandError while another does.
    """
    names = sorted(str(root) for root in roots)
    identity = msgspec.json.encode([server, names, label, pipeline])
    folder = data_dir / "resume"
    files.make_folder(folder)
    path = folder / f"{sha256(identity).hexdigest()[:24]}.json"
    with path.with_suffix(".lock").open("w") as lock:
        if not files.try_lock(lock.fileno()):
            raise CommandError(
                "the same upload runs already in another process",
                "wait for it, or give this one another --label",
            )
        memory = ResumeFile(path)
        known = memory.recall()
        if known is None:
            remembered = ResumeState(uuid4().hex, server, names, label, pipeline)
            memory.save(remembered)
        yield memory, known or remembered, known is not None


# `uptrail upload`: save the resume state, start, send, seal, and wait for the outcome.

REFRESH_INTERVAL = 0.1  # seconds between two updates of the progress
FAILED_STATES = ("failed", "quarantined", "rejected")


class UploadJob(msgspec.Struct, frozen=True):
    """Upload job: paths by their name in the batch, and options of the transfers."""

    roots: dict[str, Path]
    label: str
    pipeline: str
    jobs: int
    wait: bool


class FileFailure(msgspec.Struct, frozen=True):
    """A file that failed, with the reason."""

    path: str
    reason: str


class UploadReport(msgspec.Struct, frozen=True):
    """Result of an upload; `batch` is its row if the command waited for the outcome.

    `error` is why the batch is not sealed yet, and how to resume it.
    """

    id: UUID
    files: int
    bytes: int
    failures: list[FileFailure]
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


async def run_upload(
    client: Client, job: UploadJob, data_dir: Path, screen: ProgressReporter
) -> UploadReport:
    """Send all files once, however often the command is killed and repeated.

    Raises every kind of CommandError.
    """
    names = (client.server.url, list(job.roots.values()), job.label, job.pipeline)
    with open_resume_file(data_dir, *names) as (memory, remembered, again):
        batch = await _start(client, job, memory, remembered, again, screen)
        with one_command_error():
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_send(client, job, batch, screen))
                watching = group.create_task(_watch(client, job, batch, sending, screen))
        tally = sending.result()
        if tally.stopped:
            return _unfinished(batch.id, tally, tally.stopped)
        memory.delete()
    return await _report(client, batch.id, tally, watching.result())


async def _watch(
    client: Client,
    job: UploadJob,
    batch: StartedBatchResponse,
    sending: asyncio.Task[UploadProgress],
    screen: ProgressReporter,
) -> BatchView | None:
    """Return the batch with its outcome, if the command waits for it and the batch will get one."""
    if not job.wait:
        return None
    watching = asyncio.create_task(wait_for_outcome(client, batch.id, screen))
    try:
        await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and sending.result().stopped:
            return None
        return await watching
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def _unfinished(id: UUID, tally: UploadProgress, refusal: Refusal) -> UploadReport:
    failures = [FileFailure(path, reason) for path, reason in tally.reasons]
    failed = tally.failures + tally.unsent_files
    return UploadReport(
        id, tally.files, tally.size, failures, failed, error=_why_not(tally, refusal)
    )


def _why_not(tally: UploadProgress, refusal: Refusal) -> str:
    """Return one sentence about all files that were not sent, and what to do."""
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
    client: Client,
    job: UploadJob,
    memory: ResumeFile,
    remembered: ResumeState,
    again: bool,
    screen: ProgressReporter,
) -> StartedBatchResponse:
    """Return the batch of this job: a new one, or that of an earlier run."""
    started = await _ask_for(client, job, remembered)
    if again and started.state in ("completed", "cancelling"):
        screen.note(f"the batch of an earlier run is {started.state}; starting a new one")
        remembered.key = uuid4().hex
        memory.save(remembered)
        started = await _ask_for(client, job, remembered)
    elif again:
        screen.note(f"going on with batch {started.id}")
    else:
        screen.note(f"batch {started.id}")
    return started


async def _ask_for(client: Client, job: UploadJob, remembered: ResumeState) -> StartedBatchResponse:
    options = {"label": job.label, "pipeline": job.pipeline}
    return await client.start_batch(options, key=remembered.key)


async def _send(
    client: Client, job: UploadJob, batch: StartedBatchResponse, screen: ProgressReporter
) -> UploadProgress:
    """Send what is missing and seal the batch; do nothing if an earlier run has done so."""
    if batch.state != "open":
        screen.note(f"everything was sent by an earlier run; batch {batch.id}")
        return UploadProgress()
    sender = UploadSession(
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


async def _show(tally: UploadProgress, screen: ProgressReporter) -> None:
    while True:
        screen.sending(tally)
        await asyncio.sleep(REFRESH_INTERVAL)


async def _report(
    client: Client, id: UUID, tally: UploadProgress, batch: BatchView | None
) -> UploadReport:
    failures = [FileFailure(path, reason) for path, reason in tally.reasons]
    failed = tally.failures
    if batch is not None:
        sent = {failure.path for failure in failures}
        async for upload in _failed(client, id):
            if upload.path not in sent and len(failures) < SHOWN_FAILURES:
                failures.append(FileFailure(upload.path, upload.error or upload.state))
        failed = max(failed, sum(batch.counts.get(state, 0) for state in FAILED_STATES))
    return UploadReport(id, tally.files, tally.size, failures, failed, batch)


async def _failed(client: Client, batch: UUID) -> AsyncIterator[UploadView]:
    for state in FAILED_STATES:
        async for upload in client.uploads(batch, state=state, limit=SHOWN_FAILURES):
            yield upload


RESUME = "run the same command again to go on from there"

app = App(name="upload", help="Send files and folders as one batch; resumes after a kill.")


@app.default
def upload(
    *paths: Path,
    label: str = "",
    pipeline: str = "default",
    wait: Annotated[bool, Parameter(negative="")] = False,
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 4,
    common: ClientOptions | None = None,
) -> int:
    """Send files and folders as one batch.

    Run the same command again after a kill: it sends only what is missing.

    Parameters
    ----------
    paths
        Files and folders; folders with everything in them.
    label
        A name for the batch, for people; by default those of the paths.
    pipeline
        What happens to each file.
    wait
        Follow the batch until its outcome, and print what failed.
    jobs
        Files sent at the same time.
    """
    common = common or ClientOptions()
    roots = resolve_roots(paths)
    label = label or ", ".join(roots)[:200]
    job = UploadJob(roots, label, pipeline, jobs, wait)
    data_dir = common.settings().data_dir
    screen = choose_reporter(json=False)
    common.server()  # no path at all is a mistake of its own

    async def run(client: Client) -> UploadReport:
        client.connection.note = screen.note
        with screen:
            return await run_upload(client, job, data_dir, screen)

    try:
        report = run_with_client(common, run, patience=SILENCE_TIMEOUT)
    except KeyboardInterrupt:
        raise Interrupted("stopped", RESUME) from None
    except Unreachable as error:
        raise Unreachable(str(error), RESUME) from None
    if common.json:
        console.emit(report)
    elif not report.error:
        _tell(report)
    if report.error:
        console.print_stderr(f"uptrail: {report.error}")
    return report.exit


@app.command
def show(id: str, *, at: str | None = None, common: ClientOptions | None = None) -> None:
    """Show one upload with its attempts.

    Parameters
    ----------
    at
        As of this position or time (RFC 3339) instead of now.
    """
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        upload, attempts = await client.upload(id, at=at), await client.attempts(id)
        if common.json:
            console.emit({"upload": upload, "attempts": attempts})
            return
        console.print_line(f"{upload.path}: {console.describe_upload(upload)}")
        console.print_line(f"  batch     {upload.batch}")
        console.print_line(
            f"  received  {console.size(upload.received)} of {console.size(upload.size)}"
        )
        for name, result in upload.results.items():
            told = ", ".join(f"{key} {value}" for key, value in result.items())
            console.print_line(f"  {name:<9} {told}")
        for attempt in attempts:
            console.print_line(
                f"  {console.format_time(attempt.started_at)}  {console.attempt_sentence(attempt)}"
            )

    run_with_client(common, run)


@app.command
def retry(id: str, *, common: ClientOptions | None = None) -> None:
    """Process a failed upload again."""
    _command(id, "retry", common)


@app.command
def cancel(id: str, *, common: ClientOptions | None = None) -> None:
    """Cancel one upload."""
    _command(id, "cancel", common)


@app.command
def release(id: str, *, reason: str, common: ClientOptions | None = None) -> None:
    """Release a file from quarantine: it counts as completed.

    Parameters
    ----------
    reason
        Reason for the release, recorded in the history.
    """
    _command(id, "release", common, {"reason": reason})


def _command(
    id: str, verb: str, common: ClientOptions | None, body: dict[str, str] | None = None
) -> None:
    send_command(
        common,
        f"/v1/uploads/{id}/{verb}",
        body,
        result={"id": id, "asked": verb},
        message=f"{verb} of upload {id} is on record",
    )


def _tell(report: UploadReport) -> None:
    for failure in report.failures:
        console.print_line(f"{failure.path}: {failure.reason}")
    more = report.failed - len(report.failures)
    if more > 0:
        console.print_line(f"... and {more} more: uptrail batch show {report.id} --state failed")
    if report.batch is None:
        console.print_line(f"batch {report.id}; follow it with: uptrail batch watch {report.id}")
    else:
        console.print_line(f"batch {report.id}: {console.state_label(report.batch)}")
