"""Requests that stall are ended at a deadline."""

from __future__ import annotations

import asyncio
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from application.ports.auth import Principal, Scope
from interfaces.common.deadlines import Deadlines, Fault, Sweep, TransferRate
from tests.interfaces.feed.harness import open_feed
from tests.interfaces.rest.server import Server, serving
from tests.support import eventually

SHORT = Deadlines(head=0.3, keep_alive=0.5, body=0.4, min_rate=1000)
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
FORM = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
TAR = tarfile.TarInfo("a.bin")
TAR.size = 1_000_000
TUS = "Tus-Resumable: 1.0.0\r\n"
BYTES = "Content-Type: application/offset+octet-stream\r\n"
IETF = "Upload-Draft-Interop-Version: 8\r\nUpload-Complete: ?1\r\n"

# A body that begins, by kind of route: method, path, headers and first bytes.
BODIES = {
    "login": ("POST", "/login", "Content-Type: application/json\r\n", b"{"),
    "json": ("POST", "/v1/batches", "Content-Type: application/json\r\n", b"{"),
    "command": ("POST", "{batch}/cancel", "Content-Type: application/json\r\n", b"{"),
    "ndjson": ("POST", "{batch}/uploads", "Content-Type: application/x-ndjson\r\n", b"{"),
    "tar": ("POST", "{batch}/uploads", "Content-Type: application/x-tar\r\n", TAR.tobuf()),
    "form": ("POST", "/v1/batches", "Content-Type: multipart/form-data; boundary=x\r\n", FORM),
    "tus": ("PATCH", "{upload}", f"{TUS}{BYTES}Upload-Offset: 0\r\n", b"x"),
    "creation": ("POST", "/v1/uploads", f"{TUS}{BYTES}Upload-Length: 200000\r\n", b"x"),
    "ietf": ("POST", "/v1/uploads", IETF, b"x"),
}


@pytest.mark.parametrize(
    "beginning", [b"", b"GET / HT", b"GET /v1/batches HTTP/1.1\r\nHost: x\r\nX-Slow: "]
)
@pytest.mark.options(deadlines=SHORT)
async def test_a_request_that_never_begins_is_not_waited_for(
    server: Server, beginning: bytes
) -> None:
    assert await everything_said(server, beginning) == b""


@pytest.mark.parametrize(
    "beginning",
    [HEAD, b"GET /v1/feed HTTP/1.1\r\nUpgrade: websocket\r\n", b"\r\nGET / HTTP/1.1\r\n"],
)
@pytest.mark.options(deadlines=Deadlines(head=0.3, keep_alive=600))
async def test_a_second_head_on_a_connection_has_the_same_deadline(
    server: Server, beginning: bytes
) -> None:
    async with connection_to(server) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b'"ok"}')
        writer.write(beginning + b"X")
        assert await dripping(reader, writer) == b""


@pytest.mark.options(deadlines=Deadlines(head=600, keep_alive=0.3))
async def test_an_idle_connection_is_closed(server: Server) -> None:
    async with connection_to(server) as (reader, writer):
        for _ in range(2):
            writer.write(HEAD + b"\r\n")
            await reader.readuntil(b'"ok"}')
        assert await asyncio.wait_for(reader.read(), 60) == b""


@pytest.mark.parametrize(
    ("kind", "framing"),
    [*((kind, "length") for kind in BODIES), ("tus", "chunked"), ("json", "chunked")],
)
@pytest.mark.options(deadlines=SHORT)
async def test_a_body_that_drips_is_refused_on_every_route(
    kind: str, framing: str, server: Server
) -> None:
    head, start = await begun(server, kind, framing)
    async with connection_to(server) as (reader, writer):
        writer.write(head + chunk(start, framing))
        answer = await dripping(reader, writer, chunk(b"x", framing), until=b"}")
        status = b"408" if kind in ("login", "json", "command", "ndjson") else b"503"
        assert b"HTTP/1.1 " + status in answer  # after 104, for an IETF client
        assert b'"code":"stalled"' in answer


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"", id="no-last-chunk"),
        pytest.param(b"5;", id="extensions-of-a-chunk"),
        pytest.param(b"0\r\nX: ", id="trailers"),
    ],
)
@pytest.mark.options(deadlines=SHORT)
async def test_a_chunked_body_that_never_ends_is_refused(rest: bytes, server: Server) -> None:
    head, _ = await begun(server, "json", "chunked")
    async with connection_to(server) as (reader, writer):
        writer.write(head + chunk(b"{}", "chunked") + rest)
        answer = await dripping(reader, writer, b"a" if rest else b"", until=b"}")
        assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400")), answer


@pytest.mark.options(transfer_idle_timeout=0.5)
async def test_a_stalled_body_is_not_recorded(server: Server) -> None:
    head, start = await begun(server, "ndjson", "length")
    before = await server.services.log.head()
    async with connection_to(server) as (reader, writer):
        writer.write(head + start)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 60)
    assert answer.startswith(b"HTTP/1.1 408")
    assert await server.services.log.head() == before


async def test_a_sender_that_waits_for_100_continue_is_not_silent(
    database_url: str, tmp_path: Path
) -> None:
    deadlines = Deadlines(body=0.3)

    async with (
        serving(database_url, tmp_path, deadlines=deadlines) as server,
        connection_to(server) as (reader, writer),
    ):
        authenticate = server.services.keys.authenticate

        async def slowly(text: str) -> Principal | None:
            await asyncio.sleep(4 * deadlines.body)  # nothing was asked of the client so far
            return await authenticate(text)

        server.services.keys.authenticate = slowly  # type: ignore[method-assign]
        writer.write(
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 201")


async def test_a_socket_of_the_feed_outlives_the_deadlines_of_requests(
    database_url: str, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"transfer_idle_timeout": 0.2, "keep_alive_timeout": 0.2}

    async with (
        open_feed(database_url, tmp_path, **short) as feed,
        feed.viewer(await feed.key(scope=Scope.VIEWER)) as viewer,
    ):
        await viewer.until_frame("welcome")
        for _ in range(5):
            await asyncio.sleep(0.2)
            await viewer.say(type="ping")
            await viewer.until_frame("pong")


def test_progress_is_judged_by_windows() -> None:
    steady, silent, slow = TransferRate(), TransferRate(), TransferRate()
    for second in range(61):
        is_over = second == 60
        assert steady.fault(second, 128 * second, 60.0, 128) is None
        assert silent.fault(second, 5000, 60.0, 0) is (Fault.SILENT if is_over else None)
        assert slow.fault(second, 127 * second, 60.0, 128) is (Fault.SLOW if is_over else None)
    for second in range(61, 121):  # the next window is measured by itself
        is_over = second == 120
        total = 128 * 60 + second
        assert steady.fault(second, total, 60.0, 128) is (Fault.SLOW if is_over else None)


def test_time_without_reads_by_the_server_does_not_count_as_silence() -> None:
    progress = TransferRate()
    assert progress.fault(0, 10, 60.0, 128) is None
    progress.restart()
    assert progress.fault(100, 10, 60.0, 128) is None
    assert progress.fault(159, 10, 60.0, 128) is None


async def test_the_clock_of_the_deadlines_stands_while_the_loop_is_blocked() -> None:
    class Blocking:
        looks = 0

        def check_deadlines(self, now: float) -> None:
            self.looks += 1
            if self.looks == 2:
                time.sleep(0.5)

    blocking = Blocking()
    sweep = Sweep(0.02, lambda: [blocking])
    sweep.wake()
    await eventually(lambda: blocking.looks == 2)
    blocked_at = sweep.now
    await eventually(lambda: blocking.looks == 3)
    assert sweep.now - blocked_at < 0.1
    sweep.close()


async def test_malformed_requests_log_no_stack_traces(server: Server) -> None:
    with structlog.testing.capture_logs() as logs:
        said = await everything_said(server, b"\x16\x03\x01 this is TLS\r\n\r\n")
        said += await everything_said(server, b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n")

    assert said.count(b"HTTP/1.0 400") == 2
    assert [log["log_level"] for log in logs] == ["info", "info"]
    assert not any("exc_info" in log for log in logs)


@asynccontextmanager
async def connection_to(
    server: Server,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def everything_said(server: Server, beginning: bytes) -> bytes:
    """Return the response before the server closes the connection."""
    async with connection_to(server) as (reader, writer):
        writer.write(beginning)
        return await asyncio.wait_for(reader.read(), 60)


async def dripping(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    drip: bytes = b"x",
    until: bytes = b"",
) -> bytes:
    """Return the response to a client that sends a little, again and again.

    To the end of the connection, or up to `until`.
    """

    async def send() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.02)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(60):
            return await (reader.readuntil(until) if until else reader.read())
    except ConnectionResetError:
        return b""
    finally:
        sending.cancel()


def chunk(content: bytes, framing: str) -> bytes:
    return content if framing == "length" else b"%x\r\n%b\r\n" % (len(content), content)


async def begun(server: Server, kind: str, framing: str) -> tuple[bytes, bytes]:
    """The head of a request of this kind, and the first bytes of its body."""
    method, path, headers, start = BODIES[kind]
    batch = (await server.post("/v1/batches", json={})).json["id"]
    created = await server.post(
        "/v1/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "100000"}
    )
    upload = urlsplit(created.headers["Location"]).path
    path = path.replace("{batch}", f"/v1/batches/{batch}").replace("{upload}", upload)
    size = 1000 if kind == "login" else 100_000
    length = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {size}"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"{headers}{length}\r\n\r\n"
    )
    return head.encode(), start
