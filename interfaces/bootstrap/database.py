"""The database of this process: the one it was given, or an embedded one that is kept running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from infrastructure.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from infrastructure.postgres.migrate import migrate
from infrastructure.postgres.requirements import Grade, examine, require
from infrastructure.settings import Settings
from interfaces.bootstrap.role import Role

LOOK = 0.5  # seconds between two looks at the embedded server

_log = structlog.get_logger(__name__)


class NoDatabase(Exception):
    """This process was given no database, and there is none where it would look."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"no database was named, and there is none in {data_dir}")
        self.hint = (
            "name the one that the other machines use (--database-url or UPTRAIL_DATABASE_URL), or"
            " the data folder of the server on this machine (--data-dir)"
        )


def require_database(settings: Settings, roles: Sequence[Role]) -> None:
    """Raises NoDatabase where an embedded one, made anew, would leave this process alone with it.

    A process that answers may be the first: uploads come to it. The others find what they are
    to do in the database, and in a new one there is nothing.
    """
    embedded = settings.database_url is None
    if embedded and Role.API not in roles and not (settings.data_dir / "postgres").exists():
        raise NoDatabase(settings.data_dir)
    if embedded and set(roles) != set(Role):
        _log.warning(
            "embedded_database",
            advice="the other roles must run on this machine, with the same data folder",
        )


class Database:
    """A migrated database; `url` stays the same however often its server is started again."""

    def __init__(self, url: str, embedded: EmbeddedPostgres | None) -> None:
        self.url = url
        self._embedded = embedded

    async def keep_running(self) -> None:
        """Starts the embedded server again whenever it is gone; somebody else's is left alone.

        What cannot be started is tried again for as long as this runs: the other parts wait for
        their connections meanwhile.
        """
        if self._embedded is None:
            await asyncio.Event().wait()
            return
        while True:
            await asyncio.sleep(LOOK)
            try:
                if await asyncio.to_thread(self._embedded.runs):
                    continue
                url = await asyncio.to_thread(self._embedded.start)
            except EmbeddedPostgresError as error:
                _log.error("postgres_not_started", error=str(error))
                continue
            if url != self.url:
                raise RuntimeError("the embedded PostgreSQL came back at another address")


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Started and migrated; an embedded server is left last.

    Raises EmbeddedPostgresError, NewerDatabase, BadDatabaseUrl, UnfitDatabase, psycopg.Error.
    """
    if settings.database_url is not None:
        await _require_fit(settings.database_url)
        await asyncio.to_thread(migrate, settings.database_url)
        yield Database(settings.database_url, None)
        return
    embedded = EmbeddedPostgres(settings.data_dir)
    url = await asyncio.to_thread(embedded.start)
    try:
        await asyncio.to_thread(migrate, url)
        yield Database(url, embedded)
    finally:
        await asyncio.to_thread(embedded.stop)


async def _require_fit(url: str) -> None:
    """Raises UnfitDatabase for one that cannot keep what is promised; warns where it may not."""
    verdicts = await examine(url)
    for verdict in verdicts:
        if verdict.grade is Grade.WARN:
            _log.warning("database_check", check=verdict.check, found=verdict.detail)
    require(verdicts)
