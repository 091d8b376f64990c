"""Event log, dispatchers and deliverers of webhooks, receivers, and a clock to set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from aiohttp import web
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook as Verifier

from application.append import Append, RecordedEvent, StreamAppend
from application.commands import AddWebhook, WebhookCommand
from application.handlers.execute import CommandContext, add_webhook, execute
from application.ports.webhooks import Delivery, DeliveryState
from application.webhooks.delivery import Deliverer
from application.webhooks.notifications import PayloadBuilder
from domain.batch.events import BatchCompleted
from domain.batch.state import Outcome
from domain.event import Event
from domain.ids import upload_id_for
from domain.upload.events import FileReceived, UploadCompleted
from domain.upload.state import UploadState
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookDisabled, WebhookFilter
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.outbound import open_safe_client
from infrastructure.postgres.listener import READ_MODEL, Listener
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.queries import PostgresQueries
from infrastructure.tasks import cancel_and_wait
from infrastructure.webhooks.delivery import DeliveryLoop, HttpSender
from infrastructure.webhooks.dispatcher import WebhookDispatcher, dispatcher_leadership
from infrastructure.webhooks.outbox import PostgresOutbox
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.bootstrap.tasks import supervise
from tests.builders import ALICE, registered, started
from tests.harness import open_log, open_test_container
from tests.support import eventually

DAY = 86400.0
PATIENCE = 120.0  # seconds, on a machine that has other things to do
ENDED = ("batch.completed", "upload.completed")

Answer: TypeAlias = Callable[["Request"], Awaitable[web.Response]]


class Clock:
    """The time plus what a test skips: hours and days."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def skip(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Request:
    """A request as a receiver got it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def position(self) -> int:
        return int(self.json["data"]["position"])

    def verify(self, secret: str) -> Any:
        """Verify with the reference library. Raises WebhookVerificationError."""
        return Verifier(secret).verify(self.body, self.headers)

    def signed_with(self, secret: str) -> bool:
        """Return whether one of the signatures is by this secret, whatever the time."""
        at = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        expected = Verifier(secret).sign(self.id, at, self.body.decode())
        return expected in self.headers["webhook-signature"].split()


async def thanks(_: Request) -> web.Response:
    return web.Response(status=204)


def always(status: int, text: str = "", **headers: str) -> Answer:
    async def answer(_: Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


def after(event: asyncio.Event) -> Answer:
    """Respond with success once the event is set."""

    async def answer(_: Request) -> web.Response:
        await event.wait()
        return web.Response()

    return answer


@dataclass
class Receiver:
    """Listens at `url`, remembers what came, and answers as the test says."""

    url: str = ""
    answer: Answer = thanks
    requests: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        heard = Request(request.path, headers, await request.read())
        self.requests.append(heard)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(heard)
        finally:
            self.at_once -= 1

    @property
    def positions(self) -> list[int]:
        return [request.position for request in self.requests]


@dataclass(frozen=True)
class Hook:
    """A webhook that was added, and its secret."""

    id: UUID
    secret: str


class WebhookHarness:
    """A log and what becomes of its webhooks. The test starts followers and deliverers."""

    def __init__(
        self,
        url: str,
        pool: Pool,
        listener: Listener,
        log: PostgresEventLog,
        teller: PayloadBuilder,
        codec: Codec = CODEC,
    ) -> None:
        self.url = url
        self.pool = pool
        self.log = log
        self.teller = teller
        self.webhooks = PostgresWebhooks(pool)
        self.clock = Clock()
        self.bell = asyncio.Event()
        self.timeout = PATIENCE  # a receiver that a test holds up is not given up
        self._listener = listener
        self._codec = codec
        self._stack = AsyncExitStack()
        self._roles: list[asyncio.Task[None]] = []

    # Roles.

    def follow(self, most: int = 100_000) -> asyncio.Task[None]:
        follower = WebhookDispatcher(
            dispatcher_leadership(self.url, self._codec),
            self._listener.wakeups(),
            self.bell,
            most=most,
            now=self.clock,
        )
        return self._start(supervise("webhooks", follower.run, essential=False))

    async def deliver(self, *, private: bool = True) -> asyncio.Task[None]:
        outbound = await self._stack.enter_async_context(open_safe_client(private))
        outbox = PostgresOutbox(self.pool, self.timeout)
        deliverer = Deliverer(
            outbox,
            HttpSender(outbound, self.timeout),
            self.teller,
            self.log,
            disable_after=5 * DAY,
            now=self.clock,
            random=lambda: 0.5,
        )
        deliveries = DeliveryLoop(outbox, deliverer, self.bell, retention=7 * DAY, now=self.clock)
        return self._start(deliveries.run())

    async def open(self, **settings: Any) -> None:
        """The usual: one follower and one deliverer."""
        self.follow(**settings)
        await self.deliver()

    def _start(self, running: Any) -> asyncio.Task[None]:
        role = asyncio.create_task(running)
        self._roles.append(role)
        return role

    async def stop(self, *roles: asyncio.Task[None]) -> None:
        await cancel_and_wait(*(roles or self._roles))
        if not roles:
            await self._stack.aclose()

    # Webhooks.

    async def hook(self, url: str, *events: str, owner: str = "acme", **more: Any) -> Hook:
        """Add a webhook for these events, by default for completed batches and uploads."""
        id = uuid4()
        secret = await self.webhooks.make_secret(id)
        subscription = WebhookFilter(url=url, events=events or ENDED, **more)
        command = AddWebhook(id=id, owner=owner, subscription=subscription, secret=secret.id)
        await add_webhook(self.log, command, self.context())
        return Hook(id, secret.text)

    async def deliver_to(self, url: str, *events: str, **more: Any) -> Hook:
        """Add a webhook, and start a dispatcher and a deliverer."""
        hook = await self.hook(url, *events, **more)
        await self.open()
        return hook

    async def rotate(self, hook: Hook) -> Hook:
        secret = await self.webhooks.make_secret(hook.id)
        command = WebhookCommand(hook.id, partial(Webhook.rotate, secret=secret.id))
        await self.followed((await execute(self.log, command, self.context())).position)
        return Hook(hook.id, secret.text)

    async def disable(self, hook: Hook) -> None:
        command = WebhookCommand(hook.id, Webhook.disable)
        await self.followed((await execute(self.log, command, self.context())).position)

    async def enable(self, hook: Hook) -> None:
        command = WebhookCommand(hook.id, Webhook.enable)
        await self.followed((await execute(self.log, command, self.context())).position)

    async def change(self, hook: Hook, url: str) -> None:
        """Change the URL of the webhook."""
        known = (await self.log.webhook(hook.id)).subscription
        command = WebhookCommand(
            hook.id, partial(Webhook.change, subscription=replace(known, url=url))
        )
        await self.followed((await execute(self.log, command, self.context())).position)

    async def remove(self, hook: Hook) -> None:
        command = WebhookCommand(hook.id, Webhook.remove)
        await self.followed((await execute(self.log, command, self.context())).position)

    async def test(self, hook: Hook) -> Delivery:
        """The delivery of a test, once it has ended."""
        command = WebhookCommand(hook.id, Webhook.request_test)
        position = (await execute(self.log, command, self.context())).position
        return await self.ended(hook, position)

    def context(self) -> CommandContext:
        return CommandContext(by=ALICE, at=self.clock())

    # Feeding.

    async def batch(self, owner: str = "acme", **more: Any) -> UUID:
        id = uuid4()
        await self.record(id, started(owner=owner, **more), after=0)
        return id

    async def upload(self, batch: UUID, path: str, owner: str = "acme") -> int:
        """Record a completed upload; return the position of its completion."""
        id = upload_id_for(batch, path, b"")
        begun = registered(batch=batch, owner=owner, path=path)
        arrived = FileReceived(at=begun.at, by=ALICE, size=100, blob=f"uploads/{id}")
        return await self.record(id, begun, arrived, UploadCompleted(at=begun.at, by=ALICE))

    async def many_uploads(self, batch: UUID, count: int) -> int:
        """Record this number of completed uploads in one append; return the last position."""
        writes = []
        for n in range(count):
            begun = registered(batch=batch, path=str(n))
            done = UploadCompleted(at=begun.at, by=ALICE)
            writes.append(StreamAppend(upload_id_for(batch, str(n), b""), 0, (begun, done)))
        return (await self.log.append(Append(tuple(writes)))).position

    async def complete(self, batch: UUID) -> int:
        ended = BatchCompleted(
            at=self.clock(),
            by="orchestrator",
            outcome=Outcome.SUCCEEDED,
            counts={UploadState.COMPLETED: 1},
            duration=1.5,
        )
        return await self.record(batch, ended, after=None)

    async def record(self, stream: UUID, *events: Event, after: int | None = 0) -> int:
        appended = await self.log.append(Append((StreamAppend(stream, after, events),)))
        return appended.position

    def skip(self, seconds: float) -> None:
        """Turns the clock on, and lets the deliverer look at it."""
        self.clock.skip(seconds)
        self.bell.set()

    # Looking.

    async def followed(self, position: int) -> None:
        async def reached() -> bool:
            return await self.webhooks.position() >= position

        await eventually(reached, PATIENCE)

    async def ended(self, hook: Hook, position: int) -> Delivery:
        async def over() -> Delivery | None:
            for delivery in await self.webhooks.deliveries(hook.id, before=position + 1, limit=1):
                if delivery.position == position and delivery.state is not DeliveryState.PENDING:
                    return delivery
            return None

        found: Delivery = await eventually(over, PATIENCE)
        return found

    async def tried(self, hook: Hook, position: int, attempts: int) -> Delivery:
        """The delivery, once it has been attempted so many times."""

        async def so_often() -> Delivery | None:
            delivery = await self.webhooks.delivery(hook.id, position)
            return delivery if delivery.attempts >= attempts else None

        await self.followed(position)
        found: Delivery = await eventually(so_often, PATIENCE)
        return found

    async def disabled(self, hook: Hook) -> WebhookDisabled:
        """The event that disabled it, once that has taken effect."""

        async def recorded() -> WebhookDisabled | None:
            for one in await self.events(hook):
                if isinstance(one.event, WebhookDisabled):
                    await self.followed(one.position)
                    return one.event
            return None

        found: WebhookDisabled = await eventually(recorded, PATIENCE)
        return found

    async def events(self, hook: Hook) -> Sequence[RecordedEvent]:
        return await self.log.stream(hook.id)

    async def fetch(self, query: Any, *parameters: object) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def execute(self, statement: Any) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(statement)


@asynccontextmanager
async def open_webhook_harness(
    url: str, data_dir: Path | None = None
) -> AsyncIterator[WebhookHarness]:
    """A harness for this database; with a data folder it reads what a server there encrypted."""
    async with AsyncExitStack() as stack:
        if data_dir is not None:
            container = await stack.enter_async_context(open_test_container(url, data_dir))
            pool, listener, log = container.pool, container.listener, container.log
            codec = container.codec
        else:
            codec = CODEC
            pool = await stack.enter_async_context(make_pool(url, name="test", max_size=6))
            listener = await stack.enter_async_context(Listener(url))
            log = await stack.enter_async_context(open_log(url, pool=pool))
        engine = make_engine(url)
        stack.push_async_callback(engine.dispose)
        queries = PostgresQueries(engine, listener.wakeups(READ_MODEL))
        harness = WebhookHarness(
            url, pool, listener, log, PayloadBuilder(log, queries, "https://up.example"), codec
        )
        stack.push_async_callback(harness.stop)
        yield harness


@asynccontextmanager
async def receiving(answer: Answer = thanks) -> AsyncIterator[Receiver]:
    receiver = Receiver(answer=answer)
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()
