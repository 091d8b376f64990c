"""The read buffers of many concurrent senders stay small in total."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import StreamReader, web

from infrastructure.settings import Settings
from interfaces.common.server import MAX_READ, MAX_TOTAL_READ, MIN_READ, ReadBufferPool, Runner
from tests.support import eventually

SENDERS = 50
BODY = bytes(range(256)) * 8 * 1024  # 2 MiB
READ_BUFFER = Settings().read_buffer

Handler = Callable[[web.Request], Any]


async def test_unread_bodies_are_not_read_ahead() -> None:
    taken, gate = list[web.Request](), asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        taken.append(request)
        await gate.wait()
        return web.Response(text=str(await request.content.read() == BODY))

    async with listening(handle) as (port, bodies):
        sending = [asyncio.create_task(send(port, BODY)) for _ in range(SENDERS)]
        await eventually(
            lambda: len([r for r in taken if r.content.total_bytes > 2 * READ_BUFFER]) == SENDERS
        )

        assert len(bodies) == SENDERS
        assert max(r.content.total_bytes for r in taken) <= 2 * READ_BUFFER + MIN_READ
        gate.set()
        answers = await asyncio.gather(*sending)

        assert all(answer.endswith(b"True") for answer in answers)
        assert len(bodies) == 0


@pytest.mark.parametrize("abort", [False, True], ids=["closed", "reset"])
async def test_a_sender_that_is_gone_takes_no_share(abort: bool) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.content.read())))

    async with listening(handle) as (port, bodies):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(100) + b"some of it")
        await eventually(lambda: len(bodies) == 1)
        writer.transport.abort() if abort else writer.close()

        await eventually(lambda: len(bodies) == 0)


async def test_the_pieces_shrink_as_senders_come_and_grow_as_they_go() -> None:
    loop, bodies = asyncio.get_running_loop(), ReadBufferPool()
    server = web.Server(web.Response)  # type: ignore[arg-type]
    stranger, *connections = [server() for _ in range(2_000)]
    for one in connections:
        bodies.begin(one, StreamReader(one, 1, loop=loop))
        piece = len(bodies.buffer_for(one))
        assert piece * len(bodies) <= MAX_TOTAL_READ or piece == MIN_READ

    assert len(bodies.buffer_for(connections[0])) == MIN_READ
    for one in connections[1:]:
        bodies.end(one)
    assert len(bodies.buffer_for(connections[0])) == MAX_READ
    assert len(bodies.buffer_for(stranger)) == MIN_READ


def head(size: int) -> bytes:
    return f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


async def send(port: int, body: bytes) -> bytes:
    """The answer to a request with this body, which ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head(len(body)).replace(b"Host", b"Connection: close\r\nHost") + body)
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def listening(handle: Handler) -> AsyncIterator[tuple[int, ReadBufferPool]]:
    app = web.Application()
    app.router.add_put("/", handle)
    runner = Runner(app, read_bufsize=READ_BUFFER, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        assert runner.server is not None
        yield runner.addresses[0][1], runner.server.bodies
    finally:
        await runner.cleanup()
