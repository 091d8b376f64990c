"""Clients of a simulation: senders that try again, and operators that interfere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from application.commands import (
    AddWebhook,
    BatchCommand,
    DecisionFunction,
    StartBatch,
    UploadCommand,
    WebhookCommand,
    release_upload,
    retry_upload,
)
from application.errors import ApplicationError, Conflict, NotFound
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext, add_webhook, execute
from application.pipeline import PermanentError, Quarantine, StepContext, StepInput
from application.transfers.creation import BatchTarget
from application.transfers.errors import NotAcceptingBytes, TransferAborted
from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor, AppendRequest
from domain.batch.aggregate import Batch
from domain.errors import CommandRejected
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook
from domain.webhook.events import DELIVERED_TOPICS, WebhookFilter
from tests.memory.database import ID_SECRET
from tests.memory.webhooks import MemoryWebhooks
from tests.simulation.laws import LawBroken
from tests.simulation.world import Machine, Parts, World

T = TypeVar("T")

GIVE_UP = (CommandRejected, NotFound, NotAcceptingBytes)
TRY_AGAIN = (ApplicationError, TransferAborted, ConnectionError, TimeoutError)


def content_of(path: str, size: int) -> bytes:
    """Return the bytes of a file, which follow from its path."""
    seed = sha256(path.encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Clients:
    """Everything that the outside does to the API processes."""

    def __init__(self, world: World, apis: list[Machine], random: Random) -> None:
        self.world = world
        self.batches: list[UUID] = []
        self.webhooks: list[UUID] = []
        self.on_batch: Callable[[str, UUID], None] = lambda owner, id: None
        self._apis = apis
        self._random = random
        self.acknowledged: list[int] = []

    async def ask(self, name: str, work: Callable[[Parts], Coroutine[Any, Any, T]]) -> T | None:
        """Ask some API process until it answers; None if it refuses."""
        pause = 0.05
        while True:
            api = self._random.choice(self._apis)
            try:
                async with asyncio.timeout(20.0):
                    return await api.request(work)
            except GIVE_UP as error:
                self.world.tell(f"client: {name} is refused: {error}")
                return None
            except TRY_AGAIN as error:
                self.world.tell(f"client: {name} at {api.name} failed: {error!r}")
            await asyncio.sleep(pause * self._random.random())
            pause = min(2 * pause, 2.0)

    async def send_batch(self, owner: str, number: int) -> None:
        """Start a batch, send its files, seal it."""
        random, id = self._random, self.world.new_id()
        files = random.randint(1, 6)
        paths = [f"{owner}/{number}/{file}.bin" for file in range(files)]
        sizes = [random.choice((1, 10, 200)) for _ in paths]
        declared = random.random() < 0.5
        command = StartBatch(
            id=id,
            owner=owner,
            label=f"batch {number}",
            priority=random.randint(-1, 1),
            retry_policy=RetryPolicy(
                attempts=random.choice((1, 3)), first_delay=0.5, longest_delay=3.0
            ),
            failure_threshold=random.choice((None, None, 0.5)),
            fingerprint=str(id),
            files=tuple(
                FileDeclaration(path=path, size=size)
                for path, size in zip(paths, sizes, strict=True)
            )
            if declared
            else (),
            seal=declared and random.random() < 0.5,
        )
        started = await self.ask(
            "start", lambda parts: start_batch(parts.log, command, self._context(parts))
        )
        if started is None:
            raise LawBroken(f"the start of {id} was refused")
        self._acknowledge(started.position)
        self.batches.append(id)
        self.on_batch(owner, id)
        await asyncio.gather(
            *(self._send_file(id, path, size) for path, size in zip(paths, sizes, strict=True))
        )
        if not command.seal:
            await self.command(BatchCommand(id, Batch.seal), "seal")

    async def _send_file(self, batch: UUID, path: str, size: int) -> None:
        random, target = self._random, BatchTarget(batch=batch, owner=path.partition("/")[0])
        await asyncio.sleep(random.random() * 5)
        file = FileDeclaration(path=path, size=size)
        actor = Actor("key:sender")
        content = content_of(path, size)
        if random.random() < 0.3:

            async def read() -> bytes:
                await asyncio.sleep(random.random() * 0.1)
                return content

            created = await self.ask(
                f"create {path}",
                lambda parts: parts.creator.create_with_content(  # type: ignore[attr-defined]
                    target, file, read, actor
                ),
            )
            if created is not None:
                self._acknowledge(created.position)
            if created is None or created.upload.received == size:
                return
        else:
            registered = await self.ask(
                f"register {path}",
                lambda parts: parts.creator.register(target, file, actor),  # type: ignore[attr-defined]
            )
            if registered is None:
                return
            self._acknowledge(registered.position)
        await self._send_bytes(upload_id_for(batch, path, ID_SECRET), content, actor)

    async def _send_bytes(self, upload: UUID, content: bytes, actor: Actor) -> None:
        """Send from the offset that the server has, until it has every byte."""
        random, acknowledged = self._random, 0
        while True:
            current = await self.ask("head", partial(_current, upload, actor))
            if current is None or current.state not in ("registered", "transferring"):
                return
            offset = current.received
            if offset < acknowledged:
                raise LawBroken(f"{upload} is at {offset}, after {acknowledged} was acknowledged")
            left = len(content) - offset
            length = random.randint(min(1, left), left)
            piece = content[offset : offset + length]
            request = AppendRequest(upload=upload, offset=offset, length=len(piece))
            work = partial(_receive, request, partial(self._chunks, piece), actor)
            api = random.choice(self._apis)
            try:
                async with asyncio.timeout(random.choice((0.2, 20.0))):
                    received: Upload = await api.request(work)
            except GIVE_UP:
                return
            except (*TRY_AGAIN, Exception) as error:
                if isinstance(error, LawBroken):
                    raise
                self.world.tell(f"client: bytes of {str(upload)[-6:]} failed: {error!r}")
                await asyncio.sleep(random.random())
                continue
            acknowledged = received.received
            self._check_durable(upload, acknowledged)
            if acknowledged == len(content):
                return

    def _check_durable(self, upload: UUID, acknowledged: int) -> None:
        blob = self.world.disk.blobs.get(upload_blob_name(upload))
        if blob is not None and blob.durable < acknowledged:
            raise LawBroken(f"{acknowledged} of {upload} are acknowledged, {blob.durable} durable")

    async def _chunks(self, piece: bytes) -> AsyncIterator[bytes]:
        while piece:
            length = self._random.randint(1, len(piece))
            yield piece[:length]
            piece = piece[length:]
            await asyncio.sleep(self._random.random() * 0.2)

    async def add_webhook(self, owner: str) -> None:
        """Add a webhook for some of the events of an owner."""
        random, id = self._random, self.world.new_id()
        topics = tuple(random.sample(DELIVERED_TOPICS, random.randint(1, 4)))
        chosen = WebhookFilter(
            url=f"https://{owner}.example/{len(self.webhooks)}",
            events=topics,
            label=random.choice((None, None, "batch 0", "renamed 1")),
        )

        async def add(parts: Parts) -> int:
            secret = await MemoryWebhooks(parts.client).make_secret(id)
            command = AddWebhook(id=id, owner=owner, subscription=chosen, secret=secret.id)
            try:
                return (await add_webhook(parts.log, command, self._context(parts))).position
            except Conflict:  # an answer was lost
                return 0

        self._acknowledge(await self.ask("add webhook", add) or 0)
        self.webhooks.append(id)

    async def interfere(self) -> None:
        """Do something to some batch, again and again, until cancelled."""
        random = self._random
        while True:
            await asyncio.sleep(random.expovariate(1 / 1.0))
            if self.webhooks and random.random() < 0.2:
                webhook = random.choice(self.webhooks)
                name, change = random.choice(
                    (
                        ("test", Webhook.request_test),
                        ("enable", Webhook.enable),
                        ("disable", partial(Webhook.disable, "on a whim")),
                    )
                )
                await self.command(WebhookCommand(webhook, change), f"{name} webhook")
            if not self.batches:
                continue
            id = random.choice(self.batches)
            decisions: tuple[tuple[str, DecisionFunction[Batch]], ...] = (
                ("pause", Batch.pause),
                ("resume", Batch.resume),
                ("resume", Batch.resume),
                ("retry", Batch.request_retry),
                ("prioritize", partial(Batch.prioritize, random.randint(-2, 2))),
                ("rename", partial(Batch.rename, label=f"renamed {random.randint(0, 99)}")),
                ("seal", Batch.seal),
                ("cancel", partial(Batch.cancel, "changed my mind")),
            )
            if random.random() < 0.7:
                name, decision = random.choice(decisions)
                await self.command(BatchCommand(id, decision), name)
                continue
            uploads = [
                member for member, row in self.world.database.members.items() if row["batch"] == id
            ]
            if uploads:
                upload = random.choice(uploads)
                command: UploadCommand = random.choice(
                    (
                        UploadCommand(upload, partial(Upload.cancel, "not this one")),
                        retry_upload(upload),
                        release_upload(upload, "it is harmless"),
                    )
                )
                await self.command(command, f"command to {str(upload)[-6:]}")

    async def finish(self) -> None:
        """Resume and seal every batch, and enable every webhook: nothing is left to wait for."""
        for webhook in self.webhooks:
            await self.command(WebhookCommand(webhook, Webhook.enable), "enable webhook")
        for id in self.batches:
            for name, decision in (("resume", Batch.resume), ("seal", Batch.seal)):
                await self.command(BatchCommand(id, decision), name)

    async def command(self, command: Any, name: str) -> None:
        done = await self.ask(
            f"{name} {str(command.id)[-6:]}",
            lambda parts: execute(parts.log, command, self._context(parts)),
        )
        if done is not None:
            self._acknowledge(done.position)

    def _context(self, parts: Parts) -> CommandContext:
        return CommandContext(by="key:operator", at=parts.now())

    def _acknowledge(self, position: int) -> None:
        if position:
            self.acknowledged.append(position)


async def _current(upload: UUID, actor: Actor, parts: Parts) -> Upload:
    parts.log.forget(upload)
    return await parts.receiving.current_upload(upload, actor)  # type: ignore[attr-defined, no-any-return]


async def _receive(
    request: AppendRequest, chunks: Callable[[], AsyncIterator[bytes]], actor: Actor, parts: Parts
) -> Upload:
    result = await parts.receiving.receive(request, chunks(), actor)  # type: ignore[attr-defined]
    return result.aggregate  # type: ignore[no-any-return]


class Steps:
    """Processors of the simulation: they check the bytes they get, and fail as the seed says."""

    def __init__(self, world: World, fail: Callable[[str], None]) -> None:
        self._world = world
        self._fail = fail
        self._random = Random(world.random.getrandbits(64))
        self.rate = 0.3
        world.processors = {"check": self.check, "work": self.work}

    async def check(
        self, subject: StepInput, context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Read every byte: those are there that were acknowledged."""
        content = b"".join([chunk async for chunk in context.read()])
        if content != content_of(subject.path, subject.size):
            self._fail(f"{subject.path} has {len(content)} other bytes than were acknowledged")
        return {"size": len(content)}

    async def work(
        self, subject: StepInput, context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        random = self._random
        for done in range(random.randint(0, 4)):
            await asyncio.sleep(random.expovariate(1 / 0.3))
            await context.progress(done, 4)
        await context.attach("made.txt", subject.path.encode())
        if random.random() < self.rate:
            match random.randrange(6):
                case 0:
                    raise PermanentError("the file is broken")
                case 1:
                    raise Quarantine("the file is dangerous")
                case _:
                    raise RuntimeError("try again")
        return {}


async def wait_until(condition: Callable[[], bool], *, within: float) -> bool:
    """Return whether the condition holds within so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while not condition():
        if loop.time() > end:
            return False
        await asyncio.sleep(0.5)
    return True


Work = Callable[[], Awaitable[None]]
