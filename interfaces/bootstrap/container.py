"""The blob store of this process: a folder, or a bucket where the settings name one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID

import msgspec
import structlog
from uuid_utils.compat import uuid7

from application.ports.blobs import BlobInventory, BlobStore
from application.views import utc_now
from infrastructure.audit.verifier import PostgresSeals
from infrastructure.auth.keys import PostgresKeys
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.erasure.keyring import Keyring, PostgresErasures
from infrastructure.erasure.master_keys import MasterKeys, OwnerKeyCopies, master_keys_of
from infrastructure.erasure.wrapped_keys import ensure_master_key
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.files import make_folder
from infrastructure.jobs.heartbeat import PostgresWorkers
from infrastructure.postgres import requirements
from infrastructure.postgres.connection import connect
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.embedded.system import EmbeddedPostgresError
from infrastructure.postgres.listener import READ_MODEL, Listener, NotifyPreemption
from infrastructure.postgres.locks import PostgresTransferLimiter
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.postgres.schema import migrate
from infrastructure.processors.http import PostgresRemoteSteps
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.history import PostgresHistory
from infrastructure.read_model.queries import PostgresQueries, PostgresUsage
from infrastructure.settings import Settings
from infrastructure.settings_loader import BadSetting
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.common.forwarded import public_base_url
from interfaces.common.services import Services


class Blobs(BlobStore, BlobInventory, Protocol):
    """Blob store with its inventory."""


def describe_blob_location(settings: Settings) -> str:
    """Describe the location of the bytes: of a bucket only its name is shown."""
    return (settings.blob_bucket or str(settings.blob_dir)).partition("?")[0]


@asynccontextmanager
async def open_blobs(settings: Settings, database_url: str) -> AsyncIterator[Blobs]:
    """Open the blob store. Raises OSError, BadLocation, BucketUnusable."""
    if settings.blob_bucket is None:
        local = LocalBlobStore(settings.blob_dir)
        try:
            yield local
        finally:
            local.close()
        return
    from infrastructure.blobs.s3.client import parse_location
    from infrastructure.blobs.s3.locks import PostgresLocks
    from infrastructure.blobs.s3.store import open_s3_blobs

    location = parse_location(settings.blob_bucket)
    async with (
        PostgresLocks(database_url) as locks,
        open_s3_blobs(location, locks, largest=settings.max_file_size) as store,
    ):
        yield store


# Roles of a process: api serves requests, orchestrator decides and projects, worker runs steps.


class Role(StrEnum):
    API = "api"
    ORCHESTRATOR = "orchestrator"
    WORKER = "worker"


ALL_ROLES = tuple(Role)

# Checks before a server starts: settings that cannot work are reported at once.


def validate_settings(settings: Settings, roles: Sequence[Role]) -> None:
    """Raise BadSetting for settings with which these roles cannot run.

    Such are pipelines that the worker of this process could not run, and several processes on a
    system where none can inherit a socket.
    """
    if settings.processes > 1 and sys.platform == "win32":
        raise BadSetting("processes must be 1 on Windows")
    if Role.WORKER in roles:
        from infrastructure.processors.registry import check_pipelines, known_options

        check_pipelines(
            settings.pipelines,
            known_options(),
            allow_private_addresses=settings.allow_private_addresses,
        )
        steps = [step for pipeline in settings.pipelines.values() for step in pipeline.steps]
        if any(step.processor == "http" for step in steps) and not _reachable(settings, roles):
            raise BadSetting("public_url must be set: `http` steps tell services to answer there")


def _reachable(settings: Settings, roles: Sequence[Role]) -> bool:
    """Return whether services can reach the API: at the public URL, or on this machine."""
    here = Role.API in roles and settings.port and settings.host in ("127.0.0.1", "localhost")
    return bool(settings.public_url or here)


def callback_base_url(settings: Settings, roles: Sequence[Role]) -> str:
    """Return the public URL for callbacks of services and links in webhooks, empty if unknown."""
    here = f"http://{settings.host}:{settings.port}" if _reachable(settings, roles) else ""
    return public_base_url(settings, local_url=here)


# Number of PostgreSQL connections that a server needs, by role, checked at its start.

STALE_SESSION_TIMEOUT = 5.0  # seconds until sessions of a process that has just ended count no more
CONNECTION_POLL_INTERVAL = 0.5  # seconds between two queries

# Connections that a process holds for itself, by role and for every process.
BASE_CONNECTIONS = 3  # listener, committer, keys of owners
ORCHESTRATOR_CONNECTIONS = (
    6  # orchestrator, projector, sweeper, eraser, sealer, dispatcher of webhooks
)
WORKER_CONNECTIONS = 4  # the queue's
LEAST_READS, LEAST_QUERIES = 2, 1

_log = structlog.get_logger(__name__)


class PoolSizes(msgspec.Struct, frozen=True):
    """Maximum sizes of the connection pools that grow with the load."""

    reads: int = 12
    queries: int = 16


class Needs(msgspec.Struct, frozen=True):
    """Numbers of connections: the minimum to work, and the maximum under load."""

    least: int
    most: int


class TooFewConnections(requirements.UnfitDatabase):
    """The database leaves fewer connections than this server needs to work."""


def needs_of(settings: Settings, roles: Sequence[Role]) -> Needs:
    """Return the connections that one process with these roles needs."""
    held = BASE_CONNECTIONS
    held += settings.max_owner_transfers > 0  # transfer permits
    held += settings.blob_bucket is not None  # locks of blobs
    held += ORCHESTRATOR_CONNECTIONS * (Role.ORCHESTRATOR in roles) + WORKER_CONNECTIONS * (
        Role.WORKER in roles
    )
    queries = Role.API in roles or Role.ORCHESTRATOR in roles
    sizes = PoolSizes()
    return Needs(
        least=held + LEAST_READS + LEAST_QUERIES * queries,
        most=held + sizes.reads + sizes.queries * queries,
    )


def needs_of_server(settings: Settings, roles: Sequence[Role]) -> list[Needs]:
    """Return the connections that each process of a server needs."""
    if Role.API not in roles or settings.processes == 1:
        return [needs_of(settings, roles)]
    others = [role for role in roles if role is not Role.API]
    needs = [needs_of(settings, [Role.API])] * settings.processes
    return [*needs, needs_of(settings, others)] if others else needs


async def require_connections(settings: Settings, roles: Sequence[Role]) -> PoolSizes:
    """Return the pool sizes for every process of this server.

    An embedded database has enough. Raises TooFewConnections, psycopg.Error, BadDatabaseUrl.
    """
    if settings.database_url is None:
        return PoolSizes()
    each = needs_of_server(settings, roles)
    least, most = sum(need.least for need in each), sum(need.most for need in each)
    async with await connect(settings.database_url, name="check", patient=False) as connection:
        limit = await requirements.tightest_limit(connection)
        deadline = asyncio.get_running_loop().time() + STALE_SESSION_TIMEOUT
        while limit.free < least and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(CONNECTION_POLL_INTERVAL)
            limit = await requirements.tightest_limit(connection)
        pooled = await requirements.is_pooled(connection)
    if limit.free < least:
        raise TooFewConnections(
            f"{limit.source}, of which {limit.free} are free; this server needs {least} connections"
            f" at least, and up to {most} under load",
            limit.remedy.format(limit.most - limit.free + most),
        )
    if pooled and (given := await requirements.open_at_once(settings.database_url, least)) < least:
        raise TooFewConnections(
            f"the pooler gives {given} connections at once; this server needs {least} at least, and"
            f" up to {most} under load",
            f"raise default_pool_size of pgbouncer to {most}",
        )
    if limit.free < most:
        available = f"{limit.source}, of which {limit.free} are free"
        _log.warning("few_connections", limit=available, needed=most, at_least=least)
    return _sizes(limit, least, most)


def _sizes(limit: requirements.ConnectionLimit, least: int, most: int) -> PoolSizes:
    """Divide the available connections among the pools if there are too few for full load."""
    sizes = PoolSizes()
    share = min(1.0, (limit.free - least) / max(1, most - least))
    return PoolSizes(
        reads=LEAST_READS + int(share * (sizes.reads - LEAST_READS)),
        queries=LEAST_QUERIES + int(share * (sizes.queries - LEAST_QUERIES)),
    )


# The database of this process: the configured one, or an embedded one that is kept running.

DATABASE_POLL_INTERVAL = 0.5  # seconds between two checks of the embedded server


class NoDatabase(Exception):
    """No database is configured, and the data directory has no embedded one."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"no database was named, and there is none in {data_dir}")
        self.hint = (
            "name the one that the other machines use (--database-url or UPTRAIL_DATABASE_URL), or"
            " the data folder of the server on this machine (--data-dir)"
        )


def require_database(settings: Settings, roles: Sequence[Role]) -> None:
    """Raise NoDatabase if a new embedded database would be of no use to these roles.

    A process with the role api may be the first one: uploads come to it. The other roles find their
    work in the database, and a new one has none.
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
        """Restart the embedded server whenever it has ended.

        A failed start is retried while this runs; the other components wait for their connections
        meanwhile.
        """
        if self._embedded is None:
            await asyncio.Event().wait()
            return
        while True:
            await asyncio.sleep(DATABASE_POLL_INTERVAL)
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
    """Start the embedded server, or connect, and migrate; an embedded server is stopped last.

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
    """Raise UnfitDatabase if the database cannot keep our guarantees; log doubts as warnings."""
    results = await requirements.examine(url)
    for result in results:
        if result.level is requirements.Level.WARN:
            _log.warning("database_check", check=result.check, found=result.detail)
    requirements.require(results)


# Opens everything that the roles and the interfaces need, and closes it in reverse order.


@dataclass(frozen=True, kw_only=True)
class Container:
    """The ports, and objects that only the composition root uses."""

    services: Services
    database: Database
    pool: Pool
    listener: Listener
    keys: PostgresKeys
    log: PostgresEventLog
    blobs: Blobs
    codec: Codec
    masters: MasterKeys


def new_id() -> UUID:
    """Return a UUIDv7: ids of one moment are adjacent in an index (RFC 9562 section 5.7)."""
    return uuid7()


@asynccontextmanager
async def open_container(
    settings: Settings, pools: PoolSizes | None = None
) -> AsyncIterator[Container]:
    """Open database, listener, log, read model, blobs and keys, and close them in reverse order.

    Raises what `open_database` and `open_blobs` raise, UnsafeWriter, NoMasterKey, OSError.
    """
    make_folder(settings.data_dir)
    pools = pools or PoolSizes()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        pool = make_pool(database.url, name="server", min_size=2, max_size=pools.reads)
        await stack.enter_async_context(pool)
        listener = await stack.enter_async_context(Listener(database.url))
        secrets = make_pool(database.url, name="keys", max_size=1)
        await stack.enter_async_context(secrets)
        masters = master_keys_of(settings)
        async with pool.connection() as connection:
            copies = OwnerKeyCopies(settings.master_key_folder)
            await ensure_master_key(connection, masters, copies)
        codec = Codec(encryption=Keyring(secrets, masters))
        committer = await stack.enter_async_context(GroupCommitter(database.url, codec=codec))
        log = await stack.enter_async_context(PostgresEventLog(pool, committer, codec=codec))
        engine = make_engine(
            database.url, size=min(4, pools.queries), overflow=max(0, pools.queries - 4)
        )
        stack.push_async_callback(engine.dispose)
        blobs = await stack.enter_async_context(open_blobs(settings, database.url))
        keys = PostgresKeys(pool, listener)
        services = Services(
            settings=settings,
            log=log,
            wakeups=listener.wakeups(),
            queries=PostgresQueries(engine, listener.wakeups(READ_MODEL)),
            history=PostgresHistory(engine, codec=codec),
            blobs=blobs,
            keys=keys,
            now=utc_now,
            new_id=new_id,
            remote_preemption=NotifyPreemption(pool, listener),
            remote_steps=PostgresRemoteSteps(pool),
            usage=PostgresUsage(pool),
            slots=await stack.enter_async_context(PostgresTransferLimiter(database.url)),
            workers=PostgresWorkers(pool, settings.worker_dead_after),
            webhooks=PostgresWebhooks(pool),
            seals=PostgresSeals(pool),
            erasures=PostgresErasures(pool),
        )
        yield Container(
            services=services,
            database=database,
            pool=pool,
            listener=listener,
            keys=keys,
            log=log,
            blobs=blobs,
            codec=codec,
            masters=masters,
        )
