"""`uptrail serve` and `uptrail worker`: the server, in whole or in part."""

from __future__ import annotations

import errno
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from infrastructure.settings import Settings
from infrastructure.telemetry.logging import configure_logging
from interfaces.bootstrap.role import ALL_ROLES, Role
from interfaces.cli import output
from interfaces.cli.errors import CommandError, Exit, UsageError
from interfaces.cli.options import Place
from interfaces.cli.running import run_fast

if TYPE_CHECKING:
    from interfaces.bootstrap.invitation import Ready

YOUNG_OBJECTS = 10_000  # allocated and not freed, before the youngest are looked through


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Store:
    """Where the events and the bytes are kept."""

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
    store: Store | None = None,
    place: Place | None = None,
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
    store = store or Store()
    roles = tuple(dict.fromkeys(role)) or ALL_ROLES
    if processes is not None and Role.API not in roles:
        raise UsageError(
            "--processes counts those that answer on the port: it takes the role api",
            "for more workers or orchestrators start the command several times",
        )
    settings = (place or Place()).settings(
        host=host,
        port=port,
        processes=processes,
        database_url=store.database_url,
        blobs=store.blobs,
    )
    return _run(settings, roles)


def worker(*, store: Store | None = None, place: Place | None = None) -> int:
    """Run one more worker on the same database and blobs, until Ctrl-C."""
    store = store or Store()
    settings = (place or Place()).settings(database_url=store.database_url, blobs=store.blobs)
    return _run(settings, (Role.WORKER,))


def _run(settings: Settings, roles: Sequence[Role]) -> int:
    from interfaces.bootstrap.serving import serve

    configure_logging(settings.log_format, settings.log_level)

    def tell(ready: Ready) -> None:
        stop_revisiting()
        _tell(ready, settings)

    try:
        run_fast(serve(settings, roles, tell))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise CommandError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}",
            "choose another port with --port; 0 takes any free one",
        ) from None
    return Exit.OK


def stop_revisiting() -> None:
    """What a server is made of lasts as long as it does: no collection needs to visit it again.

    What requests leave behind is freed by its reference counts; cycles among it are rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _tell(ready: Ready, settings: Settings) -> None:
    output.say(f"Uptrail is ready: {', '.join(ready.roles)}.")
    if ready.url is not None:
        output.say(f"  address  {ready.url}")
        output.say(f"  sign in  {ready.login or 'the admin key does not hold; make another'}")
        output.say(f"  key      {settings.admin_key_file}")
        output.say("  try      uptrail upload ./folder --wait")
