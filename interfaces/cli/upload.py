"""`uptrail upload PATH...`, and `show`, `retry`, `release` and `cancel` for one upload.

A file that is itself called `show` is named by its path: `uptrail upload ./show`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.errors import Interrupted, Unreachable
from interfaces.cli.options import Common
from interfaces.cli.running import PATIENCE, ask
from interfaces.cli.screens import make_screen
from interfaces.cli.uploading import Job, Report
from interfaces.cli.uploading import upload as run_job
from interfaces.cli.walking import roots_of

RESUME = "run the same command again to go on from there"

app = App(name="upload", help="Send files and folders as one batch; resumes after a kill.")


@app.default
def upload(
    *paths: Path,
    label: str = "",
    pipeline: str = "default",
    wait: Annotated[bool, Parameter(negative="")] = False,
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 4,
    common: Common | None = None,
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
    common = common or Common()
    roots = roots_of(paths)
    label = label or ", ".join(roots)[:200]
    job = Job(roots, label, pipeline, jobs, wait)
    data_dir = common.settings().data_dir
    screen = make_screen(json=False)
    common.server()  # none at all is another mistake than one that goes away

    async def run(client: Client) -> Report:
        client.connection.note = screen.note
        with screen:
            return await run_job(client, job, data_dir, screen)

    try:
        report = ask(common, run, patience=PATIENCE)
    except KeyboardInterrupt:
        raise Interrupted("stopped", RESUME) from None
    except Unreachable as error:
        raise Unreachable(str(error), RESUME) from None
    if common.json:
        output.emit(report)
    elif not report.error:
        _tell(report)
    if report.error:
        output.tell_people(f"uptrail: {report.error}")
    return report.exit


@app.command
def show(id: str, *, at: str | None = None, common: Common | None = None) -> None:
    """Show one upload with its attempts.

    Parameters
    ----------
    at
        As of this position or time (RFC 3339) instead of now.
    """
    common = common or Common()

    async def run(client: Client) -> None:
        upload, attempts = await client.upload(id, at=at), await client.attempts(id)
        if common.json:
            output.emit({"upload": upload, "attempts": attempts})
            return
        output.say(f"{upload.path}: {output.sentence(upload)}")
        output.say(f"  batch     {upload.batch}")
        output.say(f"  received  {output.size(upload.received)} of {output.size(upload.size)}")
        for name, result in upload.results.items():
            told = ", ".join(f"{key} {value}" for key, value in result.items())
            output.say(f"  {name:<9} {told}")
        for attempt in attempts:
            output.say(f"  {output.moment(attempt.started_at)}  {output.attempt_sentence(attempt)}")

    ask(common, run)


@app.command
def retry(id: str, *, common: Common | None = None) -> None:
    """Process a failed upload again."""
    _command(id, "retry", common or Common())


@app.command
def cancel(id: str, *, common: Common | None = None) -> None:
    """Call one upload off."""
    _command(id, "cancel", common or Common())


@app.command
def release(id: str, *, reason: str, common: Common | None = None) -> None:
    """Release a file from quarantine: it counts as completed.

    Parameters
    ----------
    reason
        Why it is good after all; kept in the history.
    """
    _command(id, "release", common or Common(), {"reason": reason})


def _command(id: str, verb: str, common: Common, body: dict[str, str] | None = None) -> None:
    async def run(client: Client) -> None:
        await client.command(f"/v1/uploads/{id}/{verb}", body)

    ask(common, run)
    if common.json:
        output.emit({"id": id, "asked": verb})
    else:
        output.say(f"{verb} of upload {id} is on record")


def _tell(report: Report) -> None:
    for failure in report.failures:
        output.say(f"{failure.path}: {failure.reason}")
    more = report.failed - len(report.failures)
    if more > 0:
        output.say(f"... and {more} more: uptrail batch show {report.id} --state failed")
    if report.batch is None:
        output.say(f"batch {report.id}; follow it with: uptrail batch watch {report.id}")
    else:
        output.say(f"batch {report.id}: {output.standing(report.batch)}")
