"""Opens everything that the roles and the interfaces stand on, and closes it in good order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from application.activity import utc_now
from infrastructure.audit.proofs import PostgresSeals
from infrastructure.auth.keys import PostgresKeys
from infrastructure.blobs.notices import NotifiedElsewhere
from infrastructure.erasure.erasures import PostgresErasures
from infrastructure.erasure.key_copies import OwnerKeyCopies
from infrastructure.erasure.keyring import Keyring
from infrastructure.erasure.master_keys import MasterKeys, master_keys_of
from infrastructure.erasure.wrapping import ensure_master_key
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.log import PostgresEventLog
from infrastructure.jobs.status import PostgresWorkers
from infrastructure.postgres.listener import READ_MODEL, Listener
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.postgres.transfer_limiter import PostgresTransferLimiter
from infrastructure.processors.errands import PostgresRemoteSteps
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.history import PostgresHistory
from infrastructure.read_model.queries import PostgresQueries
from infrastructure.read_model.usage import PostgresUsage
from infrastructure.settings import Settings
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.bootstrap.blobs import Blobs, open_blobs
from interfaces.bootstrap.connections import PoolSizes
from interfaces.bootstrap.database import Database, open_database
from interfaces.services import Services


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The ports, and what only the composition root passes on."""

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
    """A UUIDv7: ids of one moment lie side by side in an index (RFC 9562 section 5.7)."""
    from uuid_utils.compat import uuid7

    return uuid7()


@asynccontextmanager
async def open_parts(settings: Settings, pools: PoolSizes | None = None) -> AsyncIterator[Parts]:
    """Database, listener, log, read model, blobs and keys, ready to be used.

    Raises what `open_database` and `open_blobs` raise, UnsafeWriter, NoMasterKey, OSError.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
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
            elsewhere=NotifiedElsewhere(pool, listener),
            remote_steps=PostgresRemoteSteps(pool),
            usage=PostgresUsage(pool),
            slots=await stack.enter_async_context(PostgresTransferLimiter(database.url)),
            workers=PostgresWorkers(pool, settings.worker_dead_after),
            webhooks=PostgresWebhooks(pool),
            seals=PostgresSeals(pool),
            erasures=PostgresErasures(pool),
        )
        yield Parts(
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
