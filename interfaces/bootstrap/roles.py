"""What runs in the background of a server process, by its roles."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from infrastructure.read_model import projector
from infrastructure.read_model.rebuild import ensure_current
from interfaces.bootstrap.parts import Parts
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.supervision import Work


def works_of(parts: Parts, roles: Sequence[Role]) -> dict[str, Work]:
    """The parts that run in the background for these roles, by name, but for the API's own."""
    works: dict[str, Work] = {}
    if Role.ORCHESTRATOR in roles:
        works["projector"] = lambda: _project(parts)
        works["orchestrator"] = lambda: _orchestrate(parts)
    if Role.WORKER in roles:
        works["worker"] = lambda: _work(parts)
    return works


async def _project(parts: Parts) -> None:
    """Rows that another version of the code made are built anew first."""
    await ensure_current(parts.database.url, parts.log)
    await projector.run(parts.database.url, parts.log, parts.listener.wakeups())


async def _orchestrate(parts: Parts) -> None:
    from infrastructure.jobs.orchestrator import Orchestrator

    services = parts.services
    orchestrator = Orchestrator(
        parts.database.url, parts.log, parts.listener.wakeups(), services.settings, services.now
    )
    await orchestrator.run()


async def _work(parts: Parts) -> None:
    from infrastructure.jobs.worker import Worker
    from infrastructure.processors.registry import open_processors

    services = parts.services
    async with open_processors() as processors:
        worker = Worker(
            parts.database.url,
            parts.pool,
            parts.log,
            services.blobs,
            processors,
            services.settings,
            services.now,
            random,
        )
        await worker.run()
