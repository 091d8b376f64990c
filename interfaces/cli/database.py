"""`uptrail database`: tasks of the database's owner if the server uses another role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts import App

from interfaces.cli import console
from interfaces.cli.console import ClientOptions
from interfaces.cli.projection import run_with_container
from interfaces.cli.serve import StorageOptions

if TYPE_CHECKING:
    from interfaces.bootstrap.container import Container

app = App(name="database", help="Migrate the database, and limit the role that serves.")


@app.command
def migrate(*, store: StorageOptions | None = None, common: ClientOptions | None = None) -> None:
    """Bring the database to this version, as its owner, and the read model with it."""
    common = common or ClientOptions()

    async def run(parts: Container) -> bool:
        from infrastructure.read_model.rebuild import rebuild_if_outdated

        return await rebuild_if_outdated(parts.database.url, parts.log) is not None

    rebuilt = run_with_container(common, store, run)
    if common.json:
        console.emit({"migrated": True, "rebuilt": rebuilt})
    else:
        console.print_line("migrated" + (", and the read model rebuilt" if rebuilt else ""))


@app.command
def grant(
    role: str, *, store: StorageOptions | None = None, common: ClientOptions | None = None
) -> None:
    """Allow a role to serve without owning tables: it cannot change or remove events.

    Parameters
    ----------
    role
        The role in the `database_url` of the servers; not the owner's.
    """
    common = common or ClientOptions()

    async def run(parts: Container) -> None:
        from asyncio import to_thread

        from infrastructure.postgres.connection import connect_blocking
        from infrastructure.postgres.schema import grant_serving

        def granted() -> None:
            with connect_blocking(parts.database.url, name="grant") as connection:
                grant_serving(connection, role)

        await to_thread(granted)

    run_with_container(common, store, run)
    if common.json:
        console.emit({"role": role, "granted": True})
    else:
        console.print_line(f"{role} may serve now, and not change or remove events and seals")
