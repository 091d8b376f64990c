"""`uptrail batch`: start, list, show and watch batches, and steer them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID, uuid4

from cyclopts import App, Parameter
from cyclopts.validators import Number

from application.views import BatchView
from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_with_client, send_command
from interfaces.cli.console import EXIT_OF_OUTCOME, ClientOptions
from interfaces.cli.progress import choose_reporter, wait_for_outcome

app = App(name="batch", help="Start, list, show, watch and steer batches.")

Limit = Annotated[int, Parameter(validator=Number(gte=1))]


@app.command
def start(
    *,
    label: str = "",
    pipeline: str = "default",
    priority: int = 0,
    notify: str | None = None,
    common: ClientOptions | None = None,
) -> None:
    """Start an empty batch, and print its id.

    Parameters
    ----------
    label
        Human-readable name.
    pipeline
        Name of the pipeline for each file.
    priority
        Batches of a higher one are released to the workers first.
    notify
        Id or address of a webhook with `on_request`.
    """
    common = common or ClientOptions()
    options = {"label": label, "pipeline": pipeline, "priority": priority}
    if notify is not None:
        options["notify"] = notify

    async def run(client: Client) -> UUID:
        return (await client.start_batch(options, key=uuid4().hex)).id

    id = run_with_client(common, run)
    if common.json:
        console.emit({"id": id})
    else:
        console.print_line(str(id))


@app.command(name="list")
def list_(
    *,
    state: Literal["open", "sealed", "cancelling", "completed"] | None = None,
    label: str | None = None,
    limit: Limit = 20,
    common: ClientOptions | None = None,
) -> None:
    """List batches, newest first.

    Parameters
    ----------
    state
        Only those in this state.
    label
        Only those with this label.
    limit
        How many at most.
    """
    common = common or ClientOptions()

    async def run(client: Client) -> list[BatchView]:
        return [row async for row in client.batches(limit=limit, state=state, label=label)]

    batches = run_with_client(common, run)
    if common.json:
        console.emit(batches)
        return
    head = ("id", "state", "done", "uploads", "size", "started", "label")
    console.table(head, (_row(batch) for batch in batches))


@app.command
def show(
    id: str,
    *,
    state: str | None = None,
    at: str | None = None,
    limit: Limit = 50,
    common: ClientOptions | None = None,
) -> None:
    """Show one batch and its uploads.

    Parameters
    ----------
    state
        Only uploads in this state, such as failed.
    at
        The batch as of this position or time (RFC 3339) instead of now.
    limit
        How many uploads at most.
    """
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        batch = await client.batch(id, at=at)
        uploads = [row async for row in client.uploads(id, state=state, limit=limit)]
        if common.json:
            console.emit({"batch": batch, "uploads": uploads})
            return
        _describe(batch)
        head = ("upload", "size", "state", "path")
        rows = (
            (upload.id, console.size(upload.size), upload.state, _line(upload.path, upload.error))
            for upload in uploads
        )
        console.table(head, rows)

    run_with_client(common, run)


@app.command
def watch(id: str, *, common: ClientOptions | None = None) -> int:
    """Follow one batch live until its outcome; the feed resumes after lost connections."""
    common = common or ClientOptions()
    screen = choose_reporter(json=common.json)

    async def run(client: Client) -> BatchView:
        known = await client.batch(id)
        client.connection.note = screen.note
        with screen:
            return await wait_for_outcome(client, known.id, screen)

    batch = run_with_client(common, run, patience=SILENCE_TIMEOUT)
    if not common.json:
        _describe(batch)
    return EXIT_OF_OUTCOME[batch.outcome or ""]


def _steering(verb: str, help: str) -> None:
    def steer(id: str, *, common: ClientOptions | None = None) -> None:
        send_command(
            common,
            f"/v1/batches/{id}/{verb}",
            result={"id": id, "asked": verb},
            message=f"{verb} of batch {id} is on record",
        )

    app.command(steer, name=verb, help=help)


_steering("seal", "Let no more files join; the batch ends when its files have.")
_steering("pause", "Release nothing more to the workers.")
_steering("resume", "Release files to the workers again.")
_steering("retry", "Process every failed file again.")
_steering("cancel", "Call the batch off, with every file that has not ended.")


@app.command
def prioritize(
    id: str,
    priority: Annotated[int, Parameter(validator=Number(gte=-100, lte=100))],
    *,
    common: ClientOptions | None = None,
) -> None:
    """Change the priority of a batch among those of its owner.

    Parameters
    ----------
    priority
        Batches of a higher one are released to the workers first.
    """
    send_command(
        common,
        f"/v1/batches/{id}/priority",
        {"priority": priority},
        result={"id": id, "priority": priority},
        message=f"batch {id} has priority {priority} now",
    )


@app.command
def rename(id: str, label: str, *, common: ClientOptions | None = None) -> None:
    """Change the label of a batch.

    Parameters
    ----------
    label
        Human-readable name; empty to remove it.
    """
    send_command(
        common,
        f"/v1/batches/{id}",
        {"label": label},
        method="PATCH",
        result={"id": id, "label": label},
        message=f"batch {id} has {f'the label {label}' if label else 'no label'} now",
    )


app.command("interfaces.cli.batch:report", name="report", help="Show the result of every file.")


def _row(batch: BatchView) -> tuple[object, ...]:
    return (
        batch.id,
        console.state_label(batch),
        f"{batch.percent:.0f} %",
        batch.uploads,
        console.size(batch.bytes_total),
        console.format_time(batch.started_at),
        batch.label,
    )


def _describe(batch: BatchView) -> None:
    console.print_line(
        f"{batch.label or 'batch'}: {console.state_label(batch)}, {batch.percent:.0f} %"
    )
    if batch.pause_reason:
        console.print_line(f"  paused   {batch.pause_reason}")
    console.print_line(f"  id       {batch.id}")
    console.print_line(f"  owner    {batch.owner}, started by {batch.started_by}")
    console.print_line(f"  started  {console.format_time(batch.started_at)}")
    end = batch.completed_at or datetime.now(UTC)
    console.print_line(f"  took     {(end - batch.started_at).total_seconds():.1f} s")
    received = f"{console.size(batch.bytes_received)} of {console.size(batch.bytes_total)}"
    console.print_line(f"  bytes    {received}")
    console.print_line(f"  uploads  {batch.uploads}: {console.format_counts(batch.counts)}")


def _line(path: str, error: str | None) -> str:
    return f"{path} ({error})" if error else path


# `uptrail batch report`: the result of every file of a batch, for a program or a spreadsheet.


def report(
    id: str,
    *,
    format: Literal["json", "ndjson", "csv"] = "csv",
    only: Literal["failed"] | None = None,
    to: Path | None = None,
    common: ClientOptions | None = None,
) -> None:
    """Write the result of every file of a batch.

    Parameters
    ----------
    format
        How: csv for spreadsheets, json with a summary of the reasons, ndjson for programs.
    only
        Only the files that failed, were quarantined or rejected.
    to
        A file; by default standard output.
    """
    common = common or ClientOptions()
    format = "json" if common.json else format
    params = {"only": only} if only else {}

    async def run(client: Client) -> None:
        with nullcontext(sys.stdout.buffer) if to is None else to.open("wb") as file:
            async for piece in client.download(f"/v1/batches/{id}/report.{format}", params):
                file.write(piece)
            file.flush()

    run_with_client(common, run)
