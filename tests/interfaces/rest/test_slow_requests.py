"""Senders that begin and do not go on: none of them holds a connection for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from interfaces.rest.server import Connection
from tests.interfaces.rest.server import Server, serving
from tests.support import run


@pytest.mark.parametrize(
    "beginning", [b"", b"GET / HT", b"GET /v1/batches HTTP/1.1\r\nHost: x\r\nX-Slow: "]
)
def test_a_request_that_never_begins_is_not_waited_for(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(Connection, "patience", 0.2)

    async def story() -> None:
        async with serving(database_url, tmp_path) as server:
            assert await everything_said(server, beginning) == b""

    run(story())


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
def test_a_body_that_does_not_go_on_is_not_waited_for(
    database_url: str, tmp_path: Path, media_type: str
) -> None:
    async def story() -> None:
        async with serving(database_url, tmp_path, transfer_idle_timeout=0.5) as server:
            batch = (await server.post("/v1/batches", json={})).json["id"]
            before = await server.services.log.head()
            path = f"/v1/batches/{batch}/uploads"
            request = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
                f"Content-Type: {media_type}\r\nContent-Length: 100\r\n\r\n["
            )
            said = await everything_said(server, request.encode())

            assert said.startswith(b"HTTP/1.1 408")
            assert b"request_timeout" in said
            assert await server.services.log.head() == before

    run(story())


def test_what_a_stranger_sends_fills_no_log_with_stack_traces(
    database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with serving(database_url, tmp_path) as server:
            with structlog.testing.capture_logs() as logs:
                said = await everything_said(server, b"\x16\x03\x01 this is TLS\r\n\r\n")
                said += await everything_said(server, b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n")

            assert said.count(b"HTTP/1.0 400") == 2
            assert [log["log_level"] for log in logs] == ["info", "info"]
            assert not any("exc_info" in log for log in logs)

    run(story())


async def everything_said(server: Server, beginning: bytes) -> bytes:
    """What the server answers before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(beginning)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        await writer.wait_closed()
