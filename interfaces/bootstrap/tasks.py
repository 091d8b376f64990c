"""Background tasks of a server process, by its roles, and their supervision."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import TypeAlias

import structlog

from application.sweeper import Sweeper
from application.webhooks.delivery import Deliverer
from application.webhooks.notifications import PayloadBuilder
from infrastructure.audit.sealer import make_sealer, seal_at_intervals
from infrastructure.backoff import Backoff
from infrastructure.database_errors import is_transient
from infrastructure.erasure.eraser import Eraser, erase_continuously, rewrite
from infrastructure.erasure.master_keys import OwnerKeyCopies
from infrastructure.jobs.heartbeat import ProcessHeartbeat, ProcessStatus
from infrastructure.outbound import open_safe_client
from infrastructure.postgres.listener import NotifyPreemption
from infrastructure.read_model import projector
from infrastructure.read_model.queries import PostgresUploadStatusLookup
from infrastructure.read_model.rebuild import rebuild_if_outdated
from infrastructure.sweeper import sweep_continuously
from infrastructure.webhooks.delivery import DeliveryLoop, HttpSender
from infrastructure.webhooks.dispatcher import WebhookDispatcher, dispatcher_leadership
from infrastructure.webhooks.outbox import PostgresOutbox
from interfaces.bootstrap.container import Container, Role, callback_base_url

TaskFactory: TypeAlias = Callable[[], Awaitable[None]]

MIN_RESTART_PAUSE = 0.2  # seconds before the first restart of a part
MAX_RESTART_PAUSE = 10.0
MAX_OUTAGE_PAUSE = 5.0  # while the database is unusable, so that parts are back soon after
STABLE_AFTER = 30.0  # seconds of running after which earlier deaths are forgotten
RECOVERED_AFTER = 1.0  # seconds of running after which an outage counts as over
CANCEL_INTERVAL = 0.5  # seconds until a part that goes on is cancelled once more
MAX_RESTARTS = 8  # of an essential part that was never stable

_log = structlog.get_logger(__name__)


class TaskFailed(Exception):
    """A part of the server fails however often it is restarted."""

    def __init__(self, name: str, error: BaseException | None) -> None:
        super().__init__(f"{name} keeps failing: {error!r}")
        self.hint = "the log holds every error; uptrail doctor checks what it stands on"


class StartupFailed(TaskFailed):
    """A part of the server failed before it was up, and has logged the reason."""

    def __init__(self, name: str, error: BaseException | None) -> None:
        super().__init__(name, error)
        self.args = (f"{name} did not come up: {error}",)


async def supervise(name: str, work: TaskFactory, *, essential: bool = True) -> None:
    """Run `work` until cancelled, however often it ends: the one loop that restarts a part.

    If an `essential` part ends too often, raises TaskFailed, which ends the server. Any other part
    is restarted without limit, every LONGEST_PAUSE seconds. An end because the database is unusable
    or because another process leads does not count: the part is restarted for as long as that
    takes.
    """
    loop = asyncio.get_running_loop()
    deaths, restarts = 0, Backoff(MIN_RESTART_PAUSE, MAX_RESTART_PAUSE)
    outage = Backoff(MIN_RESTART_PAUSE, MAX_OUTAGE_PAUSE)
    while True:
        began, failure = loop.time(), None
        try:
            await work()
        except StartupFailed:
            raise
        except Exception as error:
            failure = error
        lasted = loop.time() - began
        if lasted > STABLE_AFTER:
            deaths = 0
            restarts.reset()
        if lasted > RECOVERED_AFTER:
            outage.reset()
        if failure is not None and is_transient(failure):
            pause = outage.next_pause()
            _log.warning("part_waits", part=name, error=str(failure), restart_in=pause)
            await asyncio.sleep(pause)
            continue
        deaths += 1
        pause = restarts.next_pause()
        _log.error("part_died", part=name, deaths=deaths, restart_in=pause, exc_info=failure)
        if essential and deaths >= MAX_RESTARTS:
            raise TaskFailed(name, failure)
        await asyncio.sleep(pause)


async def wait_for_stop_or_failure(
    stopping: asyncio.Event, tasks: Sequence[asyncio.Task[None]]
) -> None:
    """Return when `stopping` is set. Raises TaskFailed."""
    waiting = asyncio.create_task(stopping.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        waiting.cancel()


async def cancel_within(*tasks: asyncio.Task[None], within: float, insist: bool = False) -> None:
    """Cancel tasks, wait `within` seconds at most until they have ended; log the rest.

    With `insist`, a task that goes on is cancelled again and again: in Python 3.11 a pool that
    lends a connection at that moment drops the cancellation.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    while running and (left := deadline - loop.time()) > 0:
        _, running = await asyncio.wait(
            running, timeout=min(left, CANCEL_INTERVAL) if insist else left
        )
        for task in running if insist else ():
            task.cancel()
    for task in running:
        _log.error("part_does_not_end", part=task.get_name(), waited=within)


def webhook_tasks(parts: Container, public_url: str) -> dict[str, TaskFactory]:
    """Return the parts by name; `public_url` is that of links in webhooks, empty if unknown."""
    deliveries_added = asyncio.Event()
    return {
        "webhooks": lambda: _follow(parts, deliveries_added),
        "deliveries": lambda: _deliver(parts, deliveries_added, public_url),
    }


async def _follow(parts: Container, deliveries_added: asyncio.Event) -> None:
    services = parts.services
    follower = WebhookDispatcher(
        dispatcher_leadership(parts.database.url, parts.codec),
        parts.listener.wakeups(),
        deliveries_added,
        most=services.settings.webhook_max_pending,
        now=services.now,
    )
    await follower.run()


async def _deliver(parts: Container, deliveries_added: asyncio.Event, public_url: str) -> None:
    services = parts.services
    settings = services.settings
    outbox = PostgresOutbox(parts.pool, settings.webhook_timeout)
    async with open_safe_client(settings.allow_private_addresses) as outbound:
        deliverer = Deliverer(
            outbox,
            HttpSender(outbound, settings.webhook_timeout),
            PayloadBuilder(parts.log, services.queries, public_url),
            parts.log,
            disable_after=settings.webhook_disable_after,
            now=services.now,
            random=random,
        )
        deliveries = DeliveryLoop(
            outbox,
            deliverer,
            deliveries_added,
            retention=settings.webhook_retention,
            now=services.now,
        )
        await deliveries.run()


# Parts that one process leads. An error of theirs never ends the server: what they have not done is
# done later, and requests are served meanwhile.
LED_PARTS = frozenset({"projector", "orchestrator", "sweeper", "eraser", "sealer", "webhooks"})

ORPHAN_AGE = 3600.0  # seconds after which bytes that no event names are deleted


def background_tasks(parts: Container, roles: Sequence[Role]) -> dict[str, TaskFactory]:
    """Return the background parts of these roles by name, without those of the API."""
    status = ProcessStatus()
    interval = parts.services.settings.worker_heartbeat
    heartbeat = ProcessHeartbeat(parts.pool, roles, status, interval)
    works: dict[str, TaskFactory] = {"heartbeat": heartbeat.run}
    if Role.ORCHESTRATOR in roles:
        works["projector"] = lambda: _project(parts)
        works["orchestrator"] = lambda: _orchestrate(parts, status)
        works["sweeper"] = lambda: _sweep(parts)
        works["eraser"] = lambda: _erase(parts)
        works["sealer"] = lambda: _seal(parts)
        works |= webhook_tasks(parts, callback_base_url(parts.services.settings, roles))
    if Role.WORKER in roles:
        works["worker"] = lambda: _work(parts, roles, status)
    return works


async def _project(parts: Container) -> None:
    """Rebuild rows that another version of the code has made, then project."""
    await rebuild_if_outdated(parts.database.url, parts.log)
    await projector.run(parts.database.url, parts.log, parts.listener.wakeups())


async def _orchestrate(parts: Container, status: ProcessStatus) -> None:
    from infrastructure.jobs.orchestrator import Orchestrator
    from infrastructure.jobs.rounds import orchestrator_leadership

    services = parts.services
    settings = services.settings
    orchestrator = Orchestrator(
        orchestrator_leadership(parts.database.url, settings, parts.codec),
        parts.log,
        parts.listener.wakeups(),
        settings,
        services.now,
    )
    status.leads = lambda: orchestrator.is_leader
    await orchestrator.run()


async def _sweep(parts: Container) -> None:
    services = parts.services
    sweeper = Sweeper(
        parts.log,
        parts.blobs,
        parts.blobs,
        PostgresUploadStatusLookup(parts.pool),
        # Not the one of the interfaces: a process ignores its own notifications.
        NotifyPreemption(parts.pool, parts.listener),
        expiry=services.settings.upload_expiry,
        orphan_age=ORPHAN_AGE,
        now=services.now,
    )
    await sweep_continuously(parts.database.url, sweeper)


async def _erase(parts: Container) -> None:
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


async def _seal(parts: Container) -> None:
    services = parts.services
    sealer = make_sealer(services.settings, services.now)
    await seal_at_intervals(parts.database.url, sealer, services.settings.seal_interval)


async def _work(parts: Container, roles: Sequence[Role], status: ProcessStatus) -> None:
    from infrastructure.jobs.worker import PostgresRunnableUploads, Worker, postgres_queue
    from infrastructure.outbound import open_safe_client
    from infrastructure.processors.http import HttpProcessor
    from infrastructure.processors.registry import open_processors

    services = parts.services
    settings = services.settings
    base_url = callback_base_url(settings, roles)
    async with (
        open_safe_client(settings.allow_private_addresses) as outbound,
        open_processors(
            HttpProcessor(outbound, services.remote_steps, base_url, services.now),
            processes=settings.step_processes,
            memory=settings.step_memory,
        ) as processors,
    ):
        worker = Worker(
            postgres_queue(parts.database.url),
            PostgresRunnableUploads(parts.pool, parts.codec),
            parts.log,
            services.blobs,
            processors,
            services.settings,
            services.now,
            random,
        )
        status.worker = lambda: worker.id
        await worker.run()
