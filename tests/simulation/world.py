"""The processes of a simulated installation: what a server of each role runs, on memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from application.errors import Unavailable
from application.pipeline import Pipeline, Step
from application.ports.event_log import EventLog
from application.ports.webhooks import DeliveryError, HttpReply
from application.sweeper import Sweeper
from application.transfers.creation import UploadCreator
from application.transfers.quotas import Quotas
from application.transfers.transfers import TransferLimits, Transfers
from application.webhooks.delivery import Deliverer
from application.webhooks.notifications import PayloadBuilder
from infrastructure.jobs.orchestrator import Orchestrator
from infrastructure.jobs.worker import Worker
from infrastructure.read_model import projector
from infrastructure.settings import Settings
from infrastructure.sweeper import sweep
from infrastructure.webhooks.delivery import DeliveryLoop
from infrastructure.webhooks.dispatcher import WebhookDispatcher
from interfaces.bootstrap.tasks import supervise
from interfaces.feed.hub import FeedHub
from tests.fakes import InProcessTransferLimiter
from tests.memory.blobs import Disk, MemoryBlobStore
from tests.memory.database import EPOCH, Client, MemoryDatabase, MemoryListener, Session
from tests.memory.event_log import memory_event_log
from tests.memory.job_queue import memory_queue
from tests.memory.limits import MemoryPreemption
from tests.memory.locks import memory_leadership
from tests.memory.read_model import (
    MemoryFeed,
    MemoryQueries,
    MemoryRows,
    MemoryUploadStatusLookup,
    MemoryUsage,
)
from tests.memory.rounds import MemoryRounds, MemoryRunnableUploads
from tests.memory.webhooks import MemoryDispatcherStore, MemoryOutbox
from tests.simulation.event_loop import Process, SimulatedLoop
from tests.simulation.faults import FaultRates, FaultyDiskWire, FaultyWire

T = TypeVar("T")

PIPELINE = Pipeline(steps=(Step(processor="check"), Step(processor="work", timeout=20.0)))


class Clock:
    """Clock of one process; a step of it is what an administrator or NTP does."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.skew = 0.0
        self._loop = loop

    def __call__(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time() + self.skew)


class World:
    """What all processes share, and what the seed has decided."""

    def __init__(self, seed: int, loop: SimulatedLoop, rates: FaultRates) -> None:
        self.loop = loop
        self.rates = rates
        self.database = MemoryDatabase(seed=seed)
        self.disk = Disk(loop.time)
        self.random = Random(seed + 1)
        self.receiver: Receiver = Receiver(self)
        self.story: list[str] = []
        self.has_ended = False
        self.machines: list[Machine] = []
        self.processors: dict[str, Any] = {}
        self.settings = draw_settings(self.random)
        self.poll_interval = 1.0
        if self.random.random() < 0.3:  # every wake-up must come: nothing polls
            self.poll_interval = 1e6
            rates.lost_notification = 0.0

    def tell(self, line: str) -> None:
        """Add a line to the story, until that has ended."""
        if not self.has_ended:
            self.story.append(f"{self.loop.time():10.4f}  {line}")

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)


def draw_settings(random: Random) -> Settings:
    """Return settings in which windows, expiries and silences matter within a minute."""
    return Settings(
        min_free_bytes=0,
        pipelines={"default": PIPELINE},
        worker_concurrency=random.choice((1, 2, 4)),
        uploads_per_job=random.choice((1, 3, 50)),
        worker_heartbeat=1.0,
        worker_dead_after=random.choice((4.0, 8.0)),
        max_worker_losses=random.choice((2, 3, 5)),
        step_progress_interval=random.choice((0.1, 0.5)),
        batch_progress_interval=random.choice((0.1, 0.25, 1.0)),
        in_flight_per_batch=random.choice((1, 3, 1000)),
        in_flight_per_owner=random.choice((2, 6, 1000)),
        upload_expiry=random.choice((30.0, 3600.0)),
        batch_expiry=random.choice((60.0, 3600.0)),
        progress_interval=random.choice((0.05, 0.5)),
        shutdown_grace=1.0,
        feed_tick=random.choice((0.05, 0.5)),
        feed_heartbeat=5.0,
        feed_buffer=random.choice((2000, 1 << 20)),
        webhook_timeout=5.0,
        webhook_disable_after=random.choice((20.0, 3600.0)),
    )


class Machine:
    """One process with a role, which is started again after each kill."""

    def __init__(self, world: World, name: str, run: Callable[[Parts], Awaitable[None]]) -> None:
        self.world = world
        self.name = name
        self._run = run
        self.parts: Parts | None = None
        world.machines.append(self)

    def start(self) -> None:
        """Begin a process, with empty memory."""
        self.world.tell(f"{self.name} starts")
        process = Process(self.name, self.world.loop)
        self.parts = parts = process.context().run(Parts, self.world, process)
        parts.main = process.start(self._begin(parts), self.name)

    async def _begin(self, parts: Parts) -> None:
        while True:
            try:
                await parts.open()
                break
            except Exception:
                await asyncio.sleep(0.2)
        parts.is_ready = True
        await self._run(parts)

    async def stop(self) -> None:
        """Ask the process to end, and kill it after a while."""
        if (parts := self.parts) is not None:
            self.world.tell(f"{self.name} is asked to end")
            parts.main.cancel()
            await asyncio.wait((parts.main,), timeout=5.0)
            if self.parts is parts:
                self.kill()

    def kill(self) -> None:
        """Kill the process at whatever await it is."""
        assert self.parts is not None
        self.world.tell(f"{self.name} is killed")
        self.parts.process.kill()
        self.parts = None

    async def request(self, work: Callable[[Parts], Coroutine[Any, Any, T]]) -> T:
        """Have the process do this. Raises ConnectionError if it is down, or dies meanwhile."""
        parts = self.parts
        if parts is None or not parts.is_ready:
            raise ConnectionError(f"{self.name} is down")
        task = parts.process.start(work(parts), "request")
        try:
            await asyncio.wait(
                (task, asyncio.ensure_future(_wait(parts.process.died))),
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            raise ConnectionError(f"{self.name} died")
        return task.result()


async def _wait(future: asyncio.Future[None]) -> None:
    await asyncio.shield(future)


class Parts:
    """What one process has open, as `interfaces.bootstrap.container` opens it."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.is_ready = False
        self.main: asyncio.Task[None]
        random = Random(world.random.getrandbits(64))
        self.random = random

        def fault(name: str) -> None:
            world.tell(f"{process.name}: {name}")

        self.wire = FaultyWire(random, world.rates, fault)
        self.disk_wire = FaultyDiskWire(random, world.rates, fault)
        self.now = Clock(world.loop)
        self.client = Client(world.database, self.wire)
        self.listener = MemoryListener(world.database, self.wire)
        process.on_death(self.listener.close)
        self.sessions: list[Session] = []
        self.log: EventLog = memory_event_log(world.database, self.wire, self.open_session)
        self.blobs = MemoryBlobStore(world.disk, self.disk_wire)
        process.on_death(self._lose_power)
        process.on_death(self._end_sessions)
        self.queries = MemoryQueries(self.client, self.listener.wakeups("uptrail_read_model"))
        self.preemption = MemoryPreemption(
            self.client, self.listener, f"{process.name}-{random.getrandbits(32):x}"
        )

    async def open(self) -> None:
        await self.log.__aenter__()  # type: ignore[attr-defined]

    def open_session(self) -> Session:
        session = Session(self.world.database)
        self.sessions = [known for known in self.sessions if not known.is_terminated]
        self.sessions.append(session)
        return session

    def transfers(self) -> Transfers:
        settings, clock = self.world.settings, self.world.loop.time
        return Transfers(
            self.log,
            self.blobs,
            self.preemption,
            quotas=Quotas(MemoryUsage(self.client), clock, slots=InProcessTransferLimiter()),
            limits=TransferLimits(
                max_file_size=10**6, min_free_bytes=0, progress_interval=settings.progress_interval
            ),
            now=self.now,
            clock=clock,
        )

    def _end_sessions(self) -> None:
        for session in self.sessions:
            session.terminate()

    def _lose_power(self) -> None:
        """Half of the time, bytes that were not synced are lost with the process."""
        loses = self.random.random() < 0.5

        def keep(durable: int, size: int) -> int:
            return self.random.randint(durable, size) if loses else size

        self.blobs.lose_power(keep)


# What the processes of each role run.


async def run_api(parts: Parts) -> None:
    """Answer requests: what they need is made once for the process."""
    parts.receiving = parts.transfers()  # type: ignore[attr-defined]
    parts.creator = UploadCreator(parts.receiving, parts.world.new_id)  # type: ignore[attr-defined]
    settings = parts.world.settings
    feed, wakeups = MemoryFeed(parts.client), parts.listener.wakeups("uptrail_read_model")
    keys: Any = NoExpiringKeys()
    parts.hub = FeedHub(feed, wakeups, keys, settings, parts.now)  # type: ignore[attr-defined]
    await supervise("feed", parts.hub.run, essential=False)  # type: ignore[attr-defined]


class NoExpiringKeys:
    """The part of the port `Keys` that the feed uses: no credential ends."""

    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def ended(self, credentials: Any) -> frozenset[Any]:
        return frozenset()

    async def authenticate(self, text: str) -> None:
        raise Unavailable("keys cannot be looked up")


async def run_orchestrator(parts: Parts) -> None:
    """Run the components that one process leads, and the deliveries of webhooks."""
    world, settings = parts.world, parts.world.settings
    elect = partial(
        memory_leadership, world.database, wire=parts.wire, open_session=parts.open_session
    )
    added = asyncio.Event()
    orchestrator = Orchestrator(
        elect("orchestrator", lambda client: MemoryRounds(client, settings)),
        parts.log,
        parts.listener.wakeups(),
        settings,
        parts.now,
    )
    sweeper = Sweeper(
        parts.log,
        parts.blobs,
        parts.blobs,
        MemoryUploadStatusLookup(parts.client),
        parts.preemption,
        expiry=settings.upload_expiry,
        orphan_age=120.0,
        now=parts.now,
    )
    dispatcher = WebhookDispatcher(
        elect("webhooks", MemoryDispatcherStore),
        parts.listener.wakeups(),
        added,
        most=1000,
        now=parts.now,
    )
    outbox = MemoryOutbox(parts.client, settings.webhook_timeout)
    deliverer = Deliverer(
        outbox,
        world.receiver,
        PayloadBuilder(parts.log, parts.queries, ""),
        parts.log,
        disable_after=settings.webhook_disable_after,
        now=parts.now,
        random=parts.random.random,
    )
    deliveries = DeliveryLoop(outbox, deliverer, added, retention=7 * 86400.0, now=parts.now)
    works: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = (
        ("orchestrator", orchestrator.run),
        (
            "projector",
            lambda: projector.follow(
                elect("projector", MemoryRows), parts.log, parts.listener.wakeups()
            ),
        ),
        ("sweeper", lambda: sweep(elect("sweeper", MemorySweeperRecords), sweeper)),
        ("webhooks", dispatcher.run),
        ("deliveries", deliveries.run),
    )
    await asyncio.gather(*(supervise(name, work, essential=False) for name, work in works))


async def run_worker(parts: Parts) -> None:
    """Work on jobs."""
    world = parts.world
    worker = Worker(
        memory_queue(world.database, parts.wire),
        MemoryRunnableUploads(parts.client),
        parts.log,
        parts.blobs,
        world.processors,
        world.settings,
        parts.now,
        parts.random.random,
    )
    await supervise("worker", worker.run, essential=False)


class MemorySweeperRecords:
    """The port `SweeperRecords` in memory."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def position(self) -> int:
        positions = self._client.database.positions
        return int(await self._client.call("sweeper", lambda: positions.get("sweeper", 0)))

    async def save_position(self, position: int) -> None:
        positions = self._client.database.positions
        await self._client.call("sweeper", lambda: positions.update(sweeper=position))

    async def delete_old_idempotency_records(self) -> bool:
        return False


class Receiver:
    """The receiver of all webhooks: the port `Sender`. Remembers what it has accepted."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.accepted: list[tuple[str, str]] = []  # URL and id of each message, in order
        self.fails = 0.0

    async def send(
        self, url: str, secrets: Sequence[str], id: str, at: datetime, body: bytes
    ) -> HttpReply:
        random = self._world.random
        await asyncio.sleep(random.expovariate(1 / 0.02))
        chance = random.random()
        if chance < self.fails / 2:
            raise DeliveryError("it cannot be reached")
        if chance < self.fails:
            return HttpReply(status=503)
        self.accepted.append((url, id))
        self._world.tell(f"receiver: accepts {id[-12:]} at {url}")
        await asyncio.sleep(random.expovariate(1 / 0.02))
        if chance < self.fails * 1.5:
            raise DeliveryError("its answer is lost")
        return HttpReply(status=200)
