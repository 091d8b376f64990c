"""The head of a request is bounded, and a refusal names the limit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from interfaces.common.server import MAX_HEAD
from tests.interfaces.rest import server as api
from tests.interfaces.uploads.raw_http import Sender, header
from tests.interfaces.uploads.server import BYTES, serving

ONE = f"Upload-Concat: final;{'x' * (MAX_HEAD + 1000)}\r\n"
MANY = "".join(f"X-{number}: {'x' * 8000}\r\n" for number in range(100))


@pytest.mark.parametrize("headers", [ONE, MANY], ids=["one header", "many headers"])
async def test_a_head_beyond_the_limit_is_refused_by_name(
    headers: str, database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        # No more than shows that it is too much: unread bytes would reset the connection.
        request = f"POST /files/ HTTP/1.1\r\nHost: x\r\n{headers}".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for at in range(0, MAX_HEAD + 1, 8192):
            writer.write(request[at : at + 8192])
            await writer.drain()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        status = int(head.split()[1])
        assert status == 431
        assert header(head, "Content-Type") == "application/problem+json"
        problem = json.loads(await reader.readexactly(int(header(head, "Content-Length") or "0")))
        writer.close()
        assert problem["code"] == "head_too_large"
        assert str(MAX_HEAD) in problem["detail"]


async def test_bodies_and_many_requests_on_one_connection_are_no_large_head(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server, Sender(server) as sender:
        headers = {"Tus-Resumable": "1.0.0", "X-Padding": "x" * 50_000}
        for number in range(12):
            body = bytes(400_000 if number % 2 else 0)
            sent = {**headers, "Upload-Length": str(len(body)), "Content-Length": str(len(body))}
            if body:
                sent["Content-Type"] = "application/offset+octet-stream"
            await sender.begin("POST", "/files/", sent, body)
            status, head = await sender.answer()
            assert status == 201, (number, head)


async def test_a_body_received_before_its_request_is_handled_is_no_part_of_a_head(
    database_url: str, tmp_path: Path
) -> None:
    """A connection handles one request at a time, and receives the next meanwhile."""
    async with api.serving(database_url, tmp_path) as server:
        started = await server.batch("a")
        later = started.json["position"] + 1
        files = [{"path": f"folder/{number}.bin", "size": 10} for number in range(10_000)]
        body = json.dumps({"files": files}).encode()
        assert len(body) > MAX_HEAD
        fields = f"Host: x\r\nAuthorization: Bearer {server.key}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        # Answered once the position after it is projected: that of the request behind it at most.
        writer.write(f"GET /v1/batches?min_position={later} HTTP/1.1\r\n{fields}\r\n".encode())
        writer.write(f"POST /v1/batches HTTP/1.1\r\n{fields}".encode())
        writer.write(
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()
        await server.batch("b")
        for status in (b"200", b"201"):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            assert head.split()[1] == status, head
            await reader.readexactly(int(header(head, "Content-Length") or "0"))
        writer.close()


@pytest.mark.parametrize("coding", ["gzip, chunked", "GZIP,chunked", "identity, chunked"])
async def test_a_body_in_another_transfer_coding_is_refused_and_not_stored(
    coding: str, database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server, Sender(server) as sender:
        location = await server.create(5)
        headers = {**BYTES, "Upload-Offset": "0", "Transfer-Encoding": coding}
        await sender.begin("PATCH", location, headers, b"5\r\nhello\r\n0\r\n\r\n")
        status, _ = await sender.answer()
        assert status == 501
        assert await server.offset(location) == 0


def test_the_refusal_without_a_request_is_a_problem_document() -> None:
    from interfaces.common.server import _HEAD_TOO_LARGE

    head, _, body = _HEAD_TOO_LARGE.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["status"] == 431
