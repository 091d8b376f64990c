"""Clients that vanish at any stage of a request leave no stack trace in the log."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest
from structlog.testing import capture_logs

from application.ports.auth import Principal
from tests.interfaces.rest.server import Server
from tests.support import eventually

HEAD = "Host: x\r\nAuthorization: Bearer {key}\r\n"
JSON = "POST /v1/batches HTTP/1.1\r\n" + HEAD + "Content-Type: application/json\r\n"

FORM = (
    "POST /v1/batches HTTP/1.1\r\nContent-Length: 1000\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\n" + HEAD
)
TAR = (
    "POST /v1/batches/{batch}/uploads HTTP/1.1\r\nContent-Length: 1000\r\n"
    "Content-Type: application/x-tar\r\n" + HEAD
)
TUS = (
    "POST /v1/uploads HTTP/1.1\r\nContent-Length: 1000\r\nTus-Resumable: 1.0.0\r\n"
    "Upload-Length: 1000\r\nContent-Type: application/offset+octet-stream\r\n" + HEAD
)
IETF = (
    "POST /v1/uploads HTTP/1.1\r\nContent-Length: 1000\r\nUpload-Complete: ?1\r\n"
    "Upload-Draft-Interop-Version: 8\r\n" + HEAD
)

# What a client sends before it vanishes; `|` is where it waits for the server to answer something.
STAGES = {
    "nothing": "",
    "half-a-head": "GET /v1/batches HTTP/1.1\r\nHo",
    "a-head": "GET /v1/batches HTTP/1.1\r\n" + HEAD + "\r\n",
    "half-a-body": JSON + "Content-Length: 100\r\n\r\n{",
    "half-a-chunk": JSON + "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    "a-bad-chunk": JSON + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "expect": JSON + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    "expect-and-continue": JSON + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n|{",
    "a-stream": "GET /v1/history?format=ndjson HTTP/1.1\r\n" + HEAD + "\r\n|",
    "an-export": "GET /v1/history/export HTTP/1.1\r\n" + HEAD + "\r\n|",
    "a-report": "GET /v1/batches/{batch}/report.csv HTTP/1.1\r\n" + HEAD + "\r\n",
    "a-form": FORM + "\r\n--x\r\nContent-Dispos",
    "a-form-before-its-body": FORM + "Expect: 100-continue\r\n\r\n",
    "a-tar": TAR + "\r\na",
    "a-tus-creation": TUS + "\r\nabc",
    "a-tus-creation-before-its-body": TUS + "Expect: 100-continue\r\n\r\n",
    "an-ietf-creation": IETF + "\r\nabc",
    "an-ietf-creation-before-its-body": IETF + "Expect: 100-continue\r\n\r\n",
    "a-login": "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_client_that_vanishes_leaves_no_stack_trace(
    stage: str, reset: bool, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    batch = (await server.batch("a.txt")).json["id"]
    hold_up(server)
    with capture_logs() as logs, caplog.at_level(logging.WARNING):
        for _ in range(3):
            said = STAGES[stage].replace("{key}", server.key)
            await vanish(server, said.replace("{batch}", batch), reset)
        await eventually(lambda: connections(server) == 1)  # that of the server's client
        assert (await server.get("/v1/batches")).status == 200
    assert not [log for log in logs if log["log_level"] in ("error", "critical")]
    assert not [log for log in logs if "exc_info" in log]
    assert not [log for log in logs if log["event"] == "unavailable"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def hold_up(server: Server) -> None:
    """Delay authentication until the client has disconnected."""
    authenticate = server.services.keys.authenticate

    async def later(text: str) -> Principal | None:
        await asyncio.sleep(0.05)
        return await authenticate(text)

    server.services.keys.authenticate = later  # type: ignore[method-assign]


def connections(server: Server) -> int:
    assert server.runner.server is not None
    return len(server.runner.server.connections)


async def vanish(server: Server, said: str, reset: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    if reset:
        line: socket.socket = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first, waits, rest = said.partition("|")
    writer.write(first.encode())
    await writer.drain()
    if waits:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.write(rest.encode())
        await writer.drain()
    await asyncio.sleep(0.01)  # the server has read it
    if reset:
        writer.transport.abort()
    else:
        writer.close()
