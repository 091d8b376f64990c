"""A pipeline with a remote step, and the service that it calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web

from application.pipeline import Pipeline, Processor, Step
from infrastructure.outbound import open_safe_client
from infrastructure.processors.http import HttpProcessor, PostgresRemoteSteps
from tests.infrastructure.jobs.harness import PipelineHarness, now, open_harness
from tests.interfaces.rest.server import Server, serving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Data: TypeAlias = dict[str, Any]


@dataclass
class Service:
    """Answers every request as the test says, and remembers what it was asked."""

    answer: Callable[[Data], Awaitable[tuple[int, Any]]]
    url: str = ""
    asked: list[Data] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(request.headers)
        data = (await request.json())["data"]
        self.asked.append(data)
        status, said = await self.answer(data)
        return web.json_response(said, status=status)


@dataclass(frozen=True)
class RemoteStepHarness:
    """A worker and an API that share nothing but the database and the bytes."""

    harness: PipelineHarness
    server: Server
    processors: dict[str, Processor]
    service: Service

    def work(self) -> asyncio.Task[None]:
        return self.harness.work(self.processors)

    async def say(self, data: Data, **report: Any) -> int:
        """Send a callback of the service; return the status of the response."""
        answer = await self.server.post(data["callback_url"], key=None, json=report)
        return answer.status

    async def fetch(self, data: Data) -> tuple[int, bytes]:
        answer = await self.server.get(data["content_url"], key=None)
        return answer.status, answer.body

    async def asked(self, count: int) -> Data:
        """The request of that number, once it has arrived."""
        await self.harness.until(lambda: len(self.service.asked) >= count)
        return self.service.asked[count - 1]


@asynccontextmanager
async def open_remote_steps(
    url: str, folder: Path, service: Service, *, timeout: float = 60.0, **options: Any
) -> AsyncIterator[RemoteStepHarness]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        service.url = service.url or await enter(_listening(service))
        given = {"url": service.url, "secret": SECRET, **options}
        steps = (Step(processor="http", timeout=timeout, options=given),)
        harness = await enter(
            open_harness(
                url,
                folder,
                pipelines={"default": Pipeline(steps=steps)},
                step_progress_interval=0.01,
            )
        )
        server = await enter(serving(url, folder))
        outbound = await enter(open_safe_client(private=True))
        http = HttpProcessor(outbound, PostgresRemoteSteps(harness.pool), server.url, now)
        harness.orchestrate()
        yield RemoteStepHarness(harness, server, {"http": http}, service)
        await harness.stop()


@asynccontextmanager
async def _listening(service: Service) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/step", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/step"
    finally:
        await runner.cleanup()
