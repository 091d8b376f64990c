"""`uptrail serve` and `uptrail worker`: the server, in whole or in part."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import structlog
from cyclopts import Parameter

from infrastructure.settings import Settings
from infrastructure.tasks import cancel_and_wait
from infrastructure.telemetry import configure_logging
from interfaces.bootstrap.container import ALL_ROLES, Role, open_container
from interfaces.bootstrap.listen import stop_on_signals
from interfaces.bootstrap.processes import (
    ALIVE_MESSAGE,
    HEARTBEAT_INTERVAL,
    UP_MESSAGE,
    ChildConfig,
    parse_config,
)
from interfaces.bootstrap.server import run_until_stopped
from interfaces.cli import console
from interfaces.cli.client import run_on_uvloop
from interfaces.cli.console import CommandError, DataDirOptions, Exit, UsageError
from interfaces.cli.main import run_reporting_errors

if TYPE_CHECKING:
    from interfaces.bootstrap.listen import Ready

YOUNG_OBJECTS = 10_000  # allocated and not freed, before the youngest are looked through


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """Options of the database and the blob store."""

    database_url: Annotated[
        str | None, Parameter(help="Your PostgreSQL; by default an embedded one.")
    ] = None
    blobs: Annotated[
        str | None,
        Parameter(help="Folder for the bytes, or s3://bucket; by default in the data directory."),
    ] = None


def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    processes: int | None = None,
    role: Annotated[tuple[Role, ...], Parameter(negative="", show_default=False)] = (),
    store: StorageOptions | None = None,
    place: DataDirOptions | None = None,
) -> int:
    """Run the server until Ctrl-C.

    Parameters
    ----------
    host
        Address to listen on; by default this machine only (127.0.0.1).
    port
        Port to listen on; 0 takes any free one.
    processes
        How many processes answer on it; the other roles get one more.
    role
        What this process does, by default everything; may be given several times.
    """
    store = store or StorageOptions()
    roles = tuple(dict.fromkeys(role)) or ALL_ROLES
    if processes is not None and Role.API not in roles:
        raise UsageError(
            "--processes counts those that answer on the port: it takes the role api",
            "for more workers or orchestrators start the command several times",
        )
    settings = (place or DataDirOptions()).settings(
        host=host,
        port=port,
        processes=processes,
        database_url=store.database_url,
        blobs=store.blobs,
    )
    return _run(settings, roles)


def worker(*, store: StorageOptions | None = None, place: DataDirOptions | None = None) -> int:
    """Run one more worker on the same database and blobs, until Ctrl-C."""
    store = store or StorageOptions()
    settings = (place or DataDirOptions()).settings(
        database_url=store.database_url, blobs=store.blobs
    )
    return _run(settings, (Role.WORKER,))


def _run(settings: Settings, roles: Sequence[Role]) -> int:
    from interfaces.bootstrap.server import serve

    configure_logging(settings.log_format, settings.log_level)

    def tell(ready: Ready) -> None:
        freeze_gc()
        _tell(ready, settings)

    try:
        run_on_uvloop(serve(settings, roles, tell))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise CommandError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}",
            "choose another port with --port; 0 takes any free one",
        ) from None
    return Exit.OK


def freeze_gc() -> None:
    """Exclude the objects of the started server from garbage collection: they live as long as it.

    Objects of requests are freed by reference counts; cycles among them are rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _tell(ready: Ready, settings: Settings) -> None:
    console.print_line(f"Uptrail is ready: {', '.join(ready.roles)}.")
    if ready.url is not None:
        console.print_line(f"  address  {ready.url}")
        console.print_line(
            f"  sign in  {ready.login or 'the admin key does not hold; make another'}"
        )
        console.print_line(f"  key      {settings.admin_key_file}")
        console.print_line("  try      uptrail upload ./folder --wait")


# Child process of `uptrail serve --processes`, started by `interfaces.bootstrap.processes`.


def child_main() -> int:
    """Run as a child process until the parent requests a stop, or has ended."""
    line = sys.stdin.buffer.readline()
    if not line:
        return Exit.OK
    order = parse_config(line)
    configure_logging(order.settings.log_format, order.settings.log_level)
    structlog.contextvars.bind_contextvars(process=order.name)
    run_on_uvloop(_serve(order))
    return Exit.OK


async def _serve(order: ChildConfig) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), partial(_orphaned, loop, stopping))
    sockets = [socket.socket(fileno=number) for number in order.sockets]
    living: list[asyncio.Task[None]] = []

    def up() -> None:
        freeze_gc()
        os.write(sys.stdout.fileno(), UP_MESSAGE)
        living.append(asyncio.create_task(_live(), name="signs-of-life"))

    with stop_on_signals(stopping):
        async with open_container(order.settings, order.pools) as parts:
            try:
                await run_until_stopped(parts, order.roles, sockets, up, stopping)
            finally:
                await cancel_and_wait(*living)


def _orphaned(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Return whether the parent has ended: its pipe is readable because it is closed."""
    loop.remove_reader(sys.stdin.fileno())
    stopping.set()


async def _live() -> None:
    """Send heartbeats to the parent."""
    with suppress(BrokenPipeError):
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            os.write(sys.stdout.fileno(), ALIVE_MESSAGE)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(child_main))
