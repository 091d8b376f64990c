"""`uptrail demo`: the main job from end to end, with real parts, on this machine."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import msgspec
from cyclopts import Parameter
from msgspec.structs import replace

from application.pipeline import Pipeline, Step
from application.views import BatchView, UploadView
from domain.retry import RetryPolicy
from infrastructure.files import make_folder
from infrastructure.settings import DEFAULT_PIPELINE, Settings
from infrastructure.telemetry import configure_logging
from interfaces.bootstrap.container import ALL_ROLES
from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_on_uvloop
from interfaces.cli.console import CommandError, DataDirOptions, Exit, ServerAddress, UsageError
from interfaces.cli.files import ScannedFile, resolve_roots, scan
from interfaces.cli.history import events_of, print_events
from interfaces.cli.progress import choose_reporter
from interfaces.cli.upload import UploadJob, UploadReport
from interfaces.cli.upload import run_upload as run_job

if TYPE_CHECKING:
    from interfaces.bootstrap.listen import Ready

# What the demo uploads, and the pipeline in which one of these files fails once.

PACKAGES = ("domain", "application", "infrastructure", "interfaces")
PROJECT = ("README.md", "CHANGELOG.md", "LICENSE", "docs", "tests")
SHOWN = ("*.py", "*.md", "*.png", "*.jpg", "*.svg", "*.css", "*.js", "*.html", "*.toml", "LICENSE")
INSTALLED = "node_modules"  # what a tool put into the tests is not ours to show
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif")


class DemoFiles(msgspec.Struct, frozen=True):
    """Files by their names in the batch, and the name of the file that fails once."""

    label: str
    roots: dict[str, Path]
    rehearsed: str


def select_files(folder: Path | None) -> DemoFiles:
    """Return the files of the folder, or our own. Raises UsageError if there are none."""
    if folder is None:
        roots, label = _own_files(), "Uptrail's own files"
    else:
        roots = resolve_roots([folder])
        label = next(iter(roots))
    return DemoFiles(label, roots, _one_of(roots))


def demo_settings(settings: Settings, chosen: DemoFiles) -> Settings:
    """Return the settings with a pipeline `demo`, the default one with a planned failure.

    One process: it runs the server and the client.
    """
    rehearse = Step(
        processor="rehearse", options={"fail_first_attempt_of": [_literally(chosen.rehearsed)]}
    )
    pipeline = Pipeline(steps=(*DEFAULT_PIPELINE.steps, rehearse))
    return replace(
        settings,
        processes=1,
        pipelines={**settings.pipelines, "demo": pipeline},
        retry_policy=RetryPolicy(first_delay=2.0),
    )


def _own_files() -> dict[str, Path]:
    """Return documents, pictures and code of a checkout; of an installed package its modules."""
    base = Path(__file__).parents[2]
    places = (*PACKAGES, *PROJECT) if (base / "pyproject.toml").is_file() else PACKAGES
    found = chain.from_iterable(scan({name: base / name}) for name in places)
    return {
        entry.name: entry.path
        for entry in found
        if isinstance(entry, ScannedFile)
        and INSTALLED not in entry.path.parts
        and any(fnmatchcase(entry.path.name, pattern) for pattern in SHOWN)
    }


def _one_of(roots: dict[str, Path]) -> str:
    """Return a picture if there is one, because its attempts show more; else the first file."""
    first = None
    for entry in scan(roots):
        if isinstance(entry, ScannedFile):
            if any(fnmatchcase(entry.path.name.lower(), pattern) for pattern in PICTURES):
                return entry.name
            first = first or entry.name
    if first is None:
        raise UsageError("there are no files to upload", "name another folder")
    return first


def _literally(name: str) -> str:
    """Return a pattern that matches this name only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


LOG = "demo.log"


def demo(
    folder: Annotated[Path | None, Parameter(name="DIR")] = None,
    /,
    *,
    port: int = 0,
    place: DataDirOptions | None = None,
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
    chosen = select_files(folder)
    place = place or DataDirOptions()
    if place.data_dir is not None:
        return _demonstrate(place.settings(port=port), chosen)
    with tempfile.TemporaryDirectory(prefix="uptrail-demo-") as name:
        settings = DataDirOptions(data_dir=Path(name), config=place.config).settings(port=port)
        try:
            return _demonstrate(settings, chosen)
        finally:
            _discard(settings)


def _demonstrate(settings: Settings, chosen: DemoFiles) -> int:
    make_folder(settings.data_dir)
    with (settings.data_dir / LOG).open("a") as log:
        configure_logging("json", settings.log_level, log)
        return run_on_uvloop(_serve_and_show(demo_settings(settings, chosen), chosen))


async def _serve_and_show(settings: Settings, chosen: DemoFiles) -> int:
    """Run the server in this process, and beside it the client that shows it."""
    from interfaces.bootstrap.server import serve

    stop = asyncio.Event()
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    console.print_line("Starting PostgreSQL, API, orchestrator and worker ...")
    serving = asyncio.create_task(serve(settings, ALL_ROLES, ready.set_result, stop))
    showing = asyncio.create_task(_show(settings, ready, chosen))
    try:
        await asyncio.wait({serving, showing}, return_when=asyncio.FIRST_COMPLETED)
        if not showing.done():  # Ctrl-C in the middle, or a server that did not come up
            await serving
            return Exit.INTERRUPTED
        code = showing.result()
        if sys.stdout.isatty():
            console.print_line()
            console.print_line("The server goes on until Ctrl-C.")
            await serving
        return code
    finally:
        stop.set()
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
        await serving


async def _show(settings: Settings, ready: asyncio.Future[Ready], chosen: DemoFiles) -> int:
    up = await ready
    assert up.url is not None
    console.print_line(f"Ready at {up.url}")
    console.print_line(f"In a browser: {up.login}")
    console.print_line()
    server = ServerAddress(up.url, settings.admin_key_file.read_text().strip())
    screen = choose_reporter(json=False, brief=True)
    job = UploadJob(chosen.roots, chosen.label, "demo", 4, True)
    async with Client(server, patience=SILENCE_TIMEOUT) as client:
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
    console.print_line()
    console.print_line(f"{batch.label}: {console.state_label(batch)}")
    console.print_line(
        f"  {batch.uploads} files, {console.size(batch.bytes_total)} in {took:.1f} s: "
        f"{console.format_counts(batch.counts)}"
    )


def _list_failures(report: UploadReport) -> None:
    for failure in report.failures[:10]:
        console.print_line(f"  {failure.path}: {failure.reason}")
    if report.failed > 10:
        console.print_line(f"  ... and {report.failed - 10} more")


async def _audit(client: Client, upload: UploadView) -> None:
    """Print the complete history of the file that failed once."""
    console.print_line()
    console.print_line(f"What happened to {upload.path}, as the log has it:")
    console.print_line()
    print_events([event async for event in events_of(client, upload.id)])


async def _upload_at(client: Client, batch: UUID, path: str) -> UploadView | None:
    async for upload in client.uploads(batch):
        if upload.path == path:
            return upload
    return None


def _next_steps(settings: Settings, upload: UploadView | None) -> None:
    """Print commands to try; on a terminal the server keeps running for them."""
    uptrail = "uptrail" if shutil.which("uptrail") else sys.argv[0]
    commands = ["upload ./folder --wait", "batch list", "verify", "doctor"]
    here = ""
    if sys.stdout.isatty():
        here = f" --data-dir {settings.data_dir}"
        commands[2:2] = [f"history show {upload.id}"] if upload else []
    else:
        commands[:0] = ["serve"]
    console.print_line()
    console.print_line("Try next, in another terminal:")
    for command in commands:
        console.print_line(f"  {uptrail} {command}{here}")


def _discard(settings: Settings) -> None:
    """Remove the demo's database, unless another command uses it."""
    if settings.database_url is not None:
        return
    from infrastructure.postgres.embedded.server import EmbeddedPostgres
    from infrastructure.postgres.embedded.system import EmbeddedPostgresError

    try:
        EmbeddedPostgres(settings.data_dir).discard()
    except EmbeddedPostgresError as error:
        raise CommandError(error.problem, error.remedy) from None
