"""`uptrail projection`: what was projected from the log, in the database itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from cyclopts import App

from interfaces.cli import console
from interfaces.cli.console import ClientOptions, DataDirOptions
from interfaces.cli.serve import StorageOptions

if TYPE_CHECKING:
    from interfaces.bootstrap.container import Container

T = TypeVar("T")

app = App(name="projection", help="List or rebuild what was projected from the log.")


@app.command(name="list")
def list_(*, store: StorageOptions | None = None, common: ClientOptions | None = None) -> None:
    """List projections: how far each is, and how far behind the log."""
    common = common or ClientOptions()

    async def run(parts: Container) -> None:
        async with parts.pool.connection() as connection:
            cursor = await connection.execute(_PROJECTIONS)
            rows = await cursor.fetchall()
        found = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        if common.json:
            console.emit(found)
        else:
            console.table(_COLUMNS, (tuple(row.values()) for row in found))

    run_with_container(common, store, run)


@app.command
def rebuild(*, store: StorageOptions | None = None, common: ClientOptions | None = None) -> None:
    """Build the read model anew from the log, beside the live one, and swap them."""
    common = common or ClientOptions()

    async def run(parts: Container) -> None:
        from infrastructure.read_model.rebuild import rebuild as build

        rebuilt = await build(parts.database.url, parts.log)
        if common.json:
            console.emit(rebuilt)
        else:
            console.print_line(f"the read model is rebuilt, up to position {rebuilt.position}")

    run_with_container(common, store, run)


def run_with_container(
    place: DataDirOptions, store: StorageOptions | None, what: Callable[[Container], Awaitable[T]]
) -> T:
    """Run `what` on the database itself, whether or not a server runs."""
    from infrastructure.telemetry import configure_logging
    from interfaces.bootstrap.container import open_container

    store = store or StorageOptions()
    settings = place.settings(database_url=store.database_url, blobs=store.blobs)
    configure_logging(settings.log_format, "warning")

    async def run() -> T:
        async with open_container(settings) as parts:
            return await what(parts)

    return asyncio.run(run())


_COLUMNS = ("name", "version", "position", "behind", "epoch")
_PROJECTIONS = """
    SELECT p.name, p.version, coalesce(t.notification_id, 0),
        (SELECT coalesce(max(notification_id), 0) FROM stored_events)
            - coalesce(t.notification_id, 0), p.epoch
    FROM projections p LEFT JOIN notification_tracking t ON t.application_name = p.name
    ORDER BY p.name"""
