"""`uptrail demo`: the main job from end to end, with real parts, on this machine."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from cyclopts import Parameter

from application.views import BatchView, UploadView
from infrastructure.settings import Settings
from infrastructure.telemetry.logging import configure_logging
from interfaces.bootstrap.role import ALL_ROLES
from interfaces.cli import output
from interfaces.cli.client import Client
from interfaces.cli.demo_files import Chosen, choose, demo_settings
from interfaces.cli.errors import CommandError, Exit
from interfaces.cli.history import events_of, tell
from interfaces.cli.options import Place, Server
from interfaces.cli.running import PATIENCE, run_fast
from interfaces.cli.screens import make_screen
from interfaces.cli.uploading import Job, Report
from interfaces.cli.uploading import upload as run_job

if TYPE_CHECKING:
    from interfaces.bootstrap.invitation import Ready

LOG = "demo.log"


def demo(
    folder: Annotated[Path | None, Parameter(name="DIR")] = None,
    /,
    *,
    port: int = 0,
    place: Place | None = None,
) -> int:
    """Upload a folder, watch it live, and read what happened.

    Everything is real: PostgreSQL, the server with all its roles, uploads over HTTP. One file
    fails once on purpose, so that its attempts can be seen. On a terminal the server goes on
    until Ctrl-C.

    Parameters
    ----------
    folder
        What to upload; by default Uptrail's own files.
    port
        Port to listen on; by default any free one.
    """
    chosen = choose(folder)
    place = place or Place()
    if place.data_dir is not None:
        return _demonstrate(place.settings(port=port), chosen)
    with tempfile.TemporaryDirectory(prefix="uptrail-demo-") as name:
        settings = Place(data_dir=Path(name), config=place.config).settings(port=port)
        try:
            return _demonstrate(settings, chosen)
        finally:
            _discard(settings)


def _demonstrate(settings: Settings, chosen: Chosen) -> int:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.data_dir / LOG).open("a") as log:
        configure_logging("json", settings.log_level, log)
        return run_fast(_serve_and_show(demo_settings(settings, chosen), chosen))


async def _serve_and_show(settings: Settings, chosen: Chosen) -> int:
    """Runs the server in this process, and beside it the client that shows it at work."""
    from interfaces.bootstrap.serving import serve

    stop = asyncio.Event()
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    output.say("Starting PostgreSQL, API, orchestrator and worker ...")
    serving = asyncio.create_task(serve(settings, ALL_ROLES, ready.set_result, stop))
    showing = asyncio.create_task(_show(settings, ready, chosen))
    try:
        await asyncio.wait({serving, showing}, return_when=asyncio.FIRST_COMPLETED)
        if not showing.done():  # Ctrl-C in the middle, or a server that did not come up
            await serving
            return Exit.INTERRUPTED
        code = showing.result()
        if sys.stdout.isatty():
            output.say()
            output.say("The server goes on until Ctrl-C.")
            await serving
        return code
    finally:
        stop.set()
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
        await serving


async def _show(settings: Settings, ready: asyncio.Future[Ready], chosen: Chosen) -> int:
    up = await ready
    assert up.url is not None
    output.say(f"Ready at {up.url}")
    output.say(f"In a browser: {up.login}")
    output.say()
    server = Server(up.url, settings.admin_key_file.read_text().strip())
    screen = make_screen(json=False, brief=True)
    job = Job(chosen.roots, chosen.label, "demo", 4, True)
    async with Client(server, patience=PATIENCE) as client:
        with screen:
            report = await run_job(client, job, settings.data_dir, screen)
        assert report.batch is not None
        _summarize(report.batch)
        _list_failures(report)
        upload = await _upload_at(client, report.id, chosen.rehearsed)
        if upload is not None:
            await _audit(client, upload)
    _next_steps(settings, upload)
    return report.exit


def _summarize(batch: BatchView) -> None:
    ended = batch.completed_at or batch.updated_at
    took = (ended - batch.started_at).total_seconds()
    output.say()
    output.say(f"{batch.label}: {output.standing(batch)}")
    output.say(
        f"  {batch.uploads} files, {output.size(batch.bytes_total)} in {took:.1f} s: "
        f"{output.counted(batch.counts)}"
    )


def _list_failures(report: Report) -> None:
    for failure in report.failures[:10]:
        output.say(f"  {failure.path}: {failure.reason}")
    if report.failed > 10:
        output.say(f"  ... and {report.failed - 10} more")


async def _audit(client: Client, upload: UploadView) -> None:
    """The whole story of the file that failed once."""
    output.say()
    output.say(f"What happened to {upload.path}, as the log has it:")
    output.say()
    tell([event async for event in events_of(client, upload.id)])


async def _upload_at(client: Client, batch: UUID, path: str) -> UploadView | None:
    async for upload in client.uploads(batch):
        if upload.path == path:
            return upload
    return None


def _next_steps(settings: Settings, upload: UploadView | None) -> None:
    """On a terminal the server goes on, and the commands find it; otherwise it has ended."""
    uptrail = "uptrail" if shutil.which("uptrail") else sys.argv[0]
    commands = ["upload ./folder --wait", "batch list", "verify", "doctor"]
    here = ""
    if sys.stdout.isatty():
        here = f" --data-dir {settings.data_dir}"
        commands[2:2] = [f"history show {upload.id}"] if upload else []
    else:
        commands[:0] = ["serve"]
    output.say()
    output.say("Try next, in another terminal:")
    for command in commands:
        output.say(f"  {uptrail} {command}{here}")


def _discard(settings: Settings) -> None:
    """Removes the demo's database; one that is in use by another command stays."""
    if settings.database_url is not None:
        return
    from infrastructure.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError

    try:
        EmbeddedPostgres(settings.data_dir).discard()
    except EmbeddedPostgresError as error:
        raise CommandError(error.problem, error.remedy) from None
