"""What runs in the background of a server process, by its roles."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from application.sweeping import Sweeper
from infrastructure.audit.running import seal_at_intervals
from infrastructure.audit.sealing import sealer_of
from infrastructure.blobs.notices import NotifiedElsewhere
from infrastructure.erasure.eraser import Eraser
from infrastructure.erasure.key_copies import OwnerKeyCopies
from infrastructure.erasure.rewriting import rewrite
from infrastructure.erasure.running import erase_continuously
from infrastructure.postgres.presence import Presence, Standing
from infrastructure.read_model import projector
from infrastructure.read_model.rebuild import ensure_current
from infrastructure.sweeping.running import sweep_continuously
from infrastructure.sweeping.standings import PostgresStandings
from interfaces.bootstrap import webhooks
from interfaces.bootstrap.checking import reach_us
from interfaces.bootstrap.parts import Parts
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.supervision import Work

# Parts that one process leads. An error of theirs never ends the server: what they have not done is
# done later, and requests are served meanwhile.
LED_PARTS = frozenset({"projector", "orchestrator", "sweeper", "eraser", "sealer", "webhooks"})

ORPHAN_AGE = 3600.0  # seconds after which bytes that no event names are nobody's


def works_of(parts: Parts, roles: Sequence[Role]) -> dict[str, Work]:
    """The parts that run in the background for these roles, by name, but for the API's own."""
    standing = Standing()
    interval = parts.services.settings.worker_heartbeat
    works: dict[str, Work] = {"presence": Presence(parts.pool, roles, standing, interval).run}
    if Role.ORCHESTRATOR in roles:
        works["projector"] = lambda: _project(parts)
        works["orchestrator"] = lambda: _orchestrate(parts, standing)
        works["sweeper"] = lambda: _sweep(parts)
        works["eraser"] = lambda: _erase(parts)
        works["sealer"] = lambda: _seal(parts)
        works |= webhooks.works_of(parts, reach_us(parts.services.settings, roles))
    if Role.WORKER in roles:
        works["worker"] = lambda: _work(parts, roles, standing)
    return works


async def _project(parts: Parts) -> None:
    """Rows that another version of the code made are built anew first."""
    await ensure_current(parts.database.url, parts.log)
    await projector.run(parts.database.url, parts.log, parts.listener.wakeups())


async def _orchestrate(parts: Parts, standing: Standing) -> None:
    from infrastructure.jobs.orchestrator import Orchestrator

    services = parts.services
    orchestrator = Orchestrator(
        parts.database.url,
        parts.log,
        parts.listener.wakeups(),
        services.settings,
        services.now,
        parts.codec,
    )
    standing.leads = lambda: orchestrator.is_leader
    await orchestrator.run()


async def _sweep(parts: Parts) -> None:
    services = parts.services
    sweeper = Sweeper(
        parts.log,
        parts.blobs,
        parts.blobs,
        PostgresStandings(parts.pool),
        # Not that of the interfaces: a process does not hear what it says itself.
        NotifiedElsewhere(parts.pool, parts.listener),
        expiry=services.settings.upload_expiry,
        orphan_age=ORPHAN_AGE,
        now=services.now,
    )
    await sweep_continuously(parts.database.url, sweeper)


async def _erase(parts: Parts) -> None:
    url, log = parts.database.url, parts.log
    eraser = Eraser(
        log,
        parts.services.blobs,
        parts.masters,
        parts.services.now,
        rewrite=lambda connection: rewrite(connection, url, log),
        copies=OwnerKeyCopies(parts.services.settings.master_key_folder),
    )
    await erase_continuously(parts.database.url, eraser)


async def _seal(parts: Parts) -> None:
    services = parts.services
    sealer = sealer_of(services.settings, services.now)
    await seal_at_intervals(parts.database.url, sealer, services.settings.seal_interval)


async def _work(parts: Parts, roles: Sequence[Role], standing: Standing) -> None:
    from infrastructure.jobs.worker import Worker
    from infrastructure.outbound.requests import open_outbound
    from infrastructure.processors.registry import open_processors
    from infrastructure.processors.service import HttpService

    services = parts.services
    settings = services.settings
    base_url = reach_us(settings, roles)
    async with (
        open_outbound(settings.allow_private_addresses) as outbound,
        open_processors(
            HttpService(outbound, services.remote_steps, base_url, services.now),
            processes=settings.step_processes,
            memory=settings.step_memory,
        ) as processors,
    ):
        worker = Worker(
            parts.database.url,
            parts.pool,
            parts.log,
            services.blobs,
            processors,
            services.settings,
            services.now,
            random,
            parts.codec,
        )
        standing.worker = lambda: worker.id
        await worker.run()
