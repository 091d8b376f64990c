"""Clients that do not read their responses cost little memory, for a limited time."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs

from application.ports.auth import Scope
from interfaces.common.deadlines import Deadlines
from interfaces.common.responses import MAX_CONCURRENT, STREAMS, Stream
from interfaces.feed.connection import FeedLimits
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.rest.server import Server
from tests.support import eventually

MIB = 1024 * 1024
PER_READER = 512 * 1024  # bytes
LONG = "/".join(["x" * 200] * 4)
FILES = 4000  # of which the history is larger than what sockets buffer
IMPATIENT = Deadlines(response=0.5, min_rate=1000)


async def large_batch(server: Server) -> str:
    """A batch whose history, report and exports have many megabytes."""
    files = [
        {"path": f"{number:05}/{LONG}", "size": 1, "metadata": {"note": "y" * 2000}}
        for number in range(FILES)
    ]
    body = io.BytesIO(json.dumps({"files": files}).encode())
    headers = {"Content-Type": "application/json"}
    answer = await server.post("/v1/batches", data=body, headers=headers)
    assert answer.status == 201, answer.body
    batch, position = answer.json["id"], answer.json["position"]
    shown = await server.get(f"/v1/batches/{batch}?min_position={position}")
    assert shown.status == 200
    return str(batch)


async def large_file(server: Server) -> str:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(16 * MIB)}
    created = await server.post("/v1/uploads", headers=headers)
    location = created.headers["Location"]
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }
    sent = await server.ask("PATCH", location, data=io.BytesIO(bytes(16 * MIB)), headers=headers)
    assert sent.status == 204
    return str(location)


@asynccontextmanager
async def reader_of(
    server: Server, path: str, key: str = ""
) -> AsyncIterator[tuple[asyncio.StreamReader, bytes]]:
    """A client with small buffers that has read the head of the response, and no more."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=opened, limit=8192)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key or server.key}\r\n\r\n"
    writer.write(head.encode())
    try:
        yield reader, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("kind", ["history", "export", "report", "download", "page"])
@pytest.mark.options(deadlines=IMPATIENT)
async def test_a_client_that_does_not_read_is_cut_off(kind: str, server: Server) -> None:
    if kind == "download":
        path = f"{await large_file(server)}/content"
    else:
        batch = f"/v1/batches/{await large_batch(server)}"
        path = {
            "history": f"{batch}/history?format=ndjson",
            "export": f"{batch}/history/export",
            "report": f"{batch}/report.ndjson",
            "page": f"{batch}/uploads?limit=1000",
        }[kind]
    with capture_logs() as logs:
        async with reader_of(server, path) as (_, head):
            assert b" 200 " in head.splitlines()[0]

            def cut() -> bool:
                assert server.unsent <= PER_READER + (6 * MIB if kind == "page" else 0)
                return any(log["event"] == "response_too_slow" for log in logs)

            if kind != "page" or server.unsent:  # a page may fit into the sockets
                await eventually(cut)
        await eventually(lambda: len(server.app[STREAMS]) == 0)
    assert not any("exc_info" in log for log in logs)


@pytest.mark.options(deadlines=IMPATIENT)
async def test_a_client_that_reads_slowly_gets_all_of_its_response(server: Server) -> None:
    location = await large_file(server)
    async with reader_of(server, f"{location}/content") as (reader, _):
        received = 0
        while received < 16 * MIB:
            received += len(await reader.read(8192))
            if received < 200_000:
                await asyncio.sleep(0.05)


async def test_one_principal_reads_so_many_streams_at_once_and_no_more(server: Server) -> None:
    async with AsyncExitStack() as stack:
        path = f"/v1/batches/{await large_batch(server)}/history?format=ndjson"
        other = await server.key_for(Scope.VIEWER)
        for key in ("", other):
            for number in range(MAX_CONCURRENT[Stream.HISTORY]):
                _, head = await stack.enter_async_context(reader_of(server, path, key))
                assert b" 200 " in head.splitlines()[0], number
        refused = await server.get(path)
        assert (refused.status, refused.code) == (429, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await server.get(path.partition("?")[0])).status == 200  # a page still is read

        assert server.unsent <= 2 * MAX_CONCURRENT[Stream.HISTORY] * PER_READER
        await stack.aclose()
        await eventually(lambda: len(server.app[STREAMS]) == 0)
        assert (await server.get(f"{path}&limit=1")).status == 200


async def test_a_page_of_a_history_is_bounded_in_bytes_and_leads_to_the_next(
    server: Server,
) -> None:
    path = f"/v1/batches/{await large_batch(server)}/history?limit=1000"
    forward: list[int] = []
    after = 0
    while after is not None:
        answer = await server.get(f"{path}&after={after}")
        assert len(answer.body) < 400 * 1024
        forward += [item["position"] for item in answer.json["items"]]
        after = answer.json["next"]
    backward: list[int] = []
    before = 2**60
    while before is not None:
        answer = await server.get(f"{path}&before={before}")
        assert len(answer.body) < 400 * 1024
        backward = [item["position"] for item in answer.json["items"]] + backward
        before = answer.json["next"]
    assert len(forward) > FILES
    assert forward == sorted(set(forward)) == backward


@pytest.mark.options(limits=FeedLimits(max_principal_buffer=200_000))
async def test_feed_clients_of_one_principal_share_a_buffer(feed: FeedHarness) -> None:
    key = await feed.key()
    for sockets in (1, 4):
        async with AsyncExitStack() as stack:
            for _ in range(sockets):
                await stack.enter_async_context(feed.viewer(key))
            await eventually(lambda: len(feed.hub.registry.clients) == sockets)  # noqa: B023
            (client, *_) = feed.hub.registry.clients
            assert feed.hub.registry.buffer_limit(client, 1 << 20) == 200_000 // sockets
            assert feed.hub.registry.buffer_limit(client, 1000) == 1000
        await eventually(lambda: not feed.hub.registry.clients)
