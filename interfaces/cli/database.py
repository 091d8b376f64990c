"""`uptrail database`: tasks of the database's owner if the server uses another role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts import App

from interfaces.cli import output
from interfaces.cli.options import Common
from interfaces.cli.records import with_parts
from interfaces.cli.serve import Store

if TYPE_CHECKING:
    from interfaces.bootstrap.parts import Parts

app = App(name="database", help="Migrate the database, and limit the role that serves.")


@app.command
def migrate(*, store: Store | None = None, common: Common | None = None) -> None:
    """Bring the database to this version, as its owner, and the read model with it."""
    common = common or Common()

    async def run(parts: Parts) -> bool:
        from infrastructure.read_model.rebuild import ensure_current

        return await ensure_current(parts.database.url, parts.log) is not None

    rebuilt = with_parts(common, store, run)
    if common.json:
        output.emit({"migrated": True, "rebuilt": rebuilt})
    else:
        output.say("migrated" + (", and the read model rebuilt" if rebuilt else ""))


@app.command
def grant(role: str, *, store: Store | None = None, common: Common | None = None) -> None:
    """Let a role serve that owns nothing: it cannot change or remove what the log holds.

    Parameters
    ----------
    role
        The role in the `database_url` of the servers; not the owner's.
    """
    common = common or Common()

    async def run(parts: Parts) -> None:
        from asyncio import to_thread

        from infrastructure.postgres.connection import connect_blocking
        from infrastructure.postgres.grants import grant_serving

        def granted() -> None:
            with connect_blocking(parts.database.url, name="grant") as connection:
                grant_serving(connection, role)

        await to_thread(granted)

    with_parts(common, store, run)
    if common.json:
        output.emit({"role": role, "granted": True})
    else:
        output.say(f"{role} may serve now, and not change or remove events and seals")
