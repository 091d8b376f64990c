"""Every wake-up has a fallback poll. Each of the two hides the loss of the other, so each test
switches one of them off and waits for what the other must bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from application.transfers import locks
from infrastructure.auth import sessions
from infrastructure.jobs import orchestrator
from infrastructure.postgres import listener
from infrastructure.postgres.listener import Listener
from infrastructure.webhooks import delivery
from interfaces.bootstrap.container import ALL_ROLES, Container
from interfaces.bootstrap.tasks import background_tasks, supervise
from interfaces.feed.connection import FeedLimits
from tests.blob_files import uploads_in
from tests.harness import open_test_container, running, serve_http
from tests.interfaces.feed.ws_client import FeedClient
from tests.support import eventually, path_of

NEVER = 86_400.0  # seconds: a poll of this interval brings nothing during a test
POLLS = [
    (listener, "POLL_INTERVAL"),
    (sessions, "POLL_INTERVAL"),
    (orchestrator, "CHECK_INTERVAL"),
    (delivery, "OUTBOX_POLL_INTERVAL"),
    (locks, "PREEMPTION_REPEAT_INTERVAL"),
]
LIMITS = FeedLimits(credential_check_interval=NEVER)
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
CONTENT = b"x" * 100_000


@pytest.fixture(params=["notifications alone", "polls alone"])
def channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Switch off the fallback polls, or every notification."""
    if request.param == "polls alone":
        monkeypatch.setattr(Listener, "_deliver", lambda *_: None)
    else:
        for module, name in POLLS:
            monkeypatch.setattr(module, name, NEVER)
    return str(request.param)


@dataclass
class WebhookReceiver:
    """HTTP server that records the types of the events that it is sent."""

    url: str = ""
    types: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.types.append((await request.json())["type"])
        return web.Response(status=204)


@dataclass(frozen=True)
class Pair:
    """Two processes on one database and one folder of blobs; the first has every role."""

    container: Container
    first: aiohttp.ClientSession
    second: aiohttp.ClientSession
    receiver: WebhookReceiver
    folder: Path

    async def post(self, url: str, body: Any) -> Any:
        async with self.first.post(url, json=body) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()


@asynccontextmanager
async def open_pair(database_url: str, tmp_path: Path, **options: Any) -> AsyncIterator[Pair]:
    receiver = WebhookReceiver()
    options["allow_private_addresses"] = True
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(receiving(receiver))
        containers = [
            await stack.enter_async_context(open_test_container(database_url, tmp_path, **options))
            for _ in range(2)
        ]
        key = await containers[0].keys.create(owner="acme", scope="admin")
        clients = []
        for container in containers:
            server = await stack.enter_async_context(serve_http(container, limits=LIMITS))
            headers = {"Authorization": f"Bearer {key[1]}"}
            client = aiohttp.ClientSession(server.url, headers=headers)
            clients.append(await stack.enter_async_context(client))
        for name, work in background_tasks(containers[0], ALL_ROLES).items():
            await stack.enter_async_context(running(supervise(name, work)))
        yield Pair(containers[0], *clients, receiver, tmp_path)


@asynccontextmanager
async def receiving(receiver: WebhookReceiver) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_post("/", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        yield
    finally:
        await runner.cleanup()


async def test_one_event_at_rest_reaches_rows_feed_webhook_and_orchestrator(
    channel: str, database_url: str, tmp_path: Path
) -> None:
    """No later event of the test could bring an earlier one along."""
    async with open_pair(database_url, tmp_path) as pair:
        await pair.post(
            "/v1/webhooks",
            {
                "url": pair.receiver.url,
                "events": ["batch.started", "batch.renamed", "batch.completed"],
            },
        )
        batch = (await pair.post("/v1/batches", {"label": "scans"}))["id"]
        async with pair.second.ws_connect("/v1/feed") as socket:
            viewer = FeedClient(socket)
            await viewer.subscribe([batch])

            def has(**fields: Any) -> Callable[[FeedClient], bool]:
                return lambda seen: fields.items() <= seen.rows["batches"].get(batch, {}).items()

            await viewer.until(has(label="scans"))
            await eventually(lambda: "batch.started" in pair.receiver.types)
            async with pair.first.patch(f"/v1/batches/{batch}", json={"label": "photos"}) as answer:
                assert answer.status == 202

            await viewer.until(has(label="photos"))
            await eventually(lambda: "batch.renamed" in pair.receiver.types)

            await pair.post(f"/v1/batches/{batch}/seal", None)

            await viewer.until(has(outcome="succeeded"))
            await eventually(lambda: "batch.completed" in pair.receiver.types)


async def test_a_read_that_waits_for_a_position_is_woken_in_every_process(
    channel: str, database_url: str, tmp_path: Path
) -> None:
    async with open_pair(database_url, tmp_path) as pair:
        for client in (pair.first, pair.second):
            started = await pair.post("/v1/batches", {"label": "scans"})

            query = {"min_position": str(started["position"])}
            async with client.get(f"/v1/batches/{started['id']}", params=query) as answer:
                assert answer.status == 200


async def test_a_waiting_transfer_preempts_one_of_another_process(
    channel: str, database_url: str, tmp_path: Path
) -> None:
    """Without notifications a silent transfer keeps the upload until its idle timeout."""
    timeout = 1.0 if channel == "polls alone" else NEVER
    async with open_pair(database_url, tmp_path, transfer_idle_timeout=timeout) as pair:
        headers = {**TUS, "Upload-Length": str(len(CONTENT))}
        async with pair.first.post("/v1/uploads", headers=headers) as answer:
            location = path_of(answer.headers["Location"])
        async with sending(pair.first, location, CONTENT[:30_000]) as transfer:
            await eventually(lambda: [f.stat().st_size for f in uploads_in(pair.folder).values()])

            async with pair.second.head(location, headers=TUS) as answer:
                assert answer.headers["Upload-Offset"] == "30000"
            assert await transfer in (423, 503)


@asynccontextmanager
async def sending(
    client: aiohttp.ClientSession, location: str, start: bytes
) -> AsyncIterator[asyncio.Task[int]]:
    """A PATCH whose body stops after `start`; its task returns the status."""
    stalled = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield start
        await stalled.wait()

    async def patch() -> int:
        headers = {**BYTES, "Upload-Offset": "0"}
        async with client.patch(location, data=body(), headers=headers) as answer:
            return answer.status

    task = asyncio.create_task(patch())
    try:
        yield task
    finally:
        stalled.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_revoked_key_ends_a_stream_of_another_process(
    channel: str, database_url: str, tmp_path: Path
) -> None:
    async with open_pair(database_url, tmp_path) as pair:
        made = await pair.post("/v1/keys", {"scope": "viewer", "owner": "acme"})
        headers = {"Authorization": f"Bearer {made['text']}"}
        async with pair.second.ws_connect("/v1/feed", headers=headers) as socket:
            await socket.send_json({"type": "subscribe", "batches": "*"})
            await socket.receive()

            async with pair.first.delete(f"/v1/keys/{made['key']['id']}") as answer:
                assert answer.status == 200

            assert await FeedClient(socket).closed() == 4501
