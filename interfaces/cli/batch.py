"""`uptrail batch`: start, list, show and watch batches, and steer them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from cyclopts import App, Parameter
from cyclopts.validators import Number

from application.views import BatchView
from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.errors import EXIT_OF_OUTCOME
from interfaces.cli.options import Common
from interfaces.cli.running import PATIENCE, ask
from interfaces.cli.screens import make_screen
from interfaces.cli.watching import until_outcome

app = App(name="batch", help="Start, list, show, watch and steer batches.")

Limit = Annotated[int, Parameter(validator=Number(gte=1))]


@app.command
def start(
    *,
    label: str = "",
    pipeline: str = "default",
    priority: int = 0,
    notify: str | None = None,
    common: Common | None = None,
) -> None:
    """Start an empty batch, and print its id.

    Parameters
    ----------
    label
        A name for people.
    pipeline
        What happens to each file.
    priority
        Batches of a higher one are released to the workers first.
    notify
        Id or address of a webhook that is told on request.
    """
    common = common or Common()
    options = {"label": label, "pipeline": pipeline, "priority": priority}
    if notify is not None:
        options["notify"] = notify

    async def run(client: Client) -> UUID:
        return (await client.start_batch(options, key=uuid4().hex)).id

    id = ask(common, run)
    if common.json:
        output.emit({"id": id})
    else:
        output.say(str(id))


@app.command(name="list")
def list_(
    *,
    state: Literal["open", "sealed", "cancelling", "completed"] | None = None,
    label: str | None = None,
    limit: Limit = 20,
    common: Common | None = None,
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
    common = common or Common()

    async def run(client: Client) -> list[BatchView]:
        return [row async for row in client.batches(limit=limit, state=state, label=label)]

    batches = ask(common, run)
    if common.json:
        output.emit(batches)
        return
    head = ("id", "state", "done", "uploads", "size", "started", "label")
    output.table(head, (_row(batch) for batch in batches))


@app.command
def show(
    id: str,
    *,
    state: str | None = None,
    at: str | None = None,
    limit: Limit = 50,
    common: Common | None = None,
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
    common = common or Common()

    async def run(client: Client) -> None:
        batch = await client.batch(id, at=at)
        uploads = [row async for row in client.uploads(id, state=state, limit=limit)]
        if common.json:
            output.emit({"batch": batch, "uploads": uploads})
            return
        _describe(batch)
        head = ("upload", "size", "state", "path")
        rows = (
            (upload.id, output.size(upload.size), upload.state, _line(upload.path, upload.error))
            for upload in uploads
        )
        output.table(head, rows)

    ask(common, run)


@app.command
def watch(id: str, *, common: Common | None = None) -> int:
    """Follow one batch live until its outcome, through any number of cuts."""
    common = common or Common()
    screen = make_screen(json=common.json)

    async def run(client: Client) -> BatchView:
        known = await client.batch(id)
        client.connection.note = screen.note
        with screen:
            return await until_outcome(client, known.id, screen)

    batch = ask(common, run, patience=PATIENCE)
    if not common.json:
        _describe(batch)
    return EXIT_OF_OUTCOME[batch.outcome or ""]


def _steering(verb: str, help: str) -> None:
    def steer(id: str, *, common: Common | None = None) -> None:
        common = common or Common()

        async def run(client: Client) -> None:
            await client.command(f"/v1/batches/{id}/{verb}")

        ask(common, run)
        if common.json:
            output.emit({"id": id, "asked": verb})
        else:
            output.say(f"{verb} of batch {id} is on record")

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
    common: Common | None = None,
) -> None:
    """Move a batch before or behind the others of its owner.

    Parameters
    ----------
    priority
        Batches of a higher one are released to the workers first.
    """
    common = common or Common()

    async def run(client: Client) -> None:
        await client.command(f"/v1/batches/{id}/priority", {"priority": priority})

    ask(common, run)
    if common.json:
        output.emit({"id": id, "priority": priority})
    else:
        output.say(f"batch {id} has priority {priority} now")


app.command("interfaces.cli.report:report", name="report", help="What became of every file.")


def _row(batch: BatchView) -> tuple[object, ...]:
    return (
        batch.id,
        output.standing(batch),
        f"{batch.percent:.0f} %",
        batch.uploads,
        output.size(batch.bytes_total),
        output.moment(batch.started_at),
        batch.label,
    )


def _describe(batch: BatchView) -> None:
    output.say(f"{batch.label or 'batch'}: {output.standing(batch)}, {batch.percent:.0f} %")
    if batch.pause_reason:
        output.say(f"  paused   {batch.pause_reason}")
    output.say(f"  id       {batch.id}")
    output.say(f"  owner    {batch.owner}, started by {batch.started_by}")
    output.say(f"  started  {output.moment(batch.started_at)}")
    end = batch.completed_at or datetime.now(UTC)
    output.say(f"  took     {(end - batch.started_at).total_seconds():.1f} s")
    received = f"{output.size(batch.bytes_received)} of {output.size(batch.bytes_total)}"
    output.say(f"  bytes    {received}")
    output.say(f"  uploads  {batch.uploads}: {output.counted(batch.counts)}")


def _line(path: str, error: str | None) -> str:
    return f"{path} ({error})" if error else path
