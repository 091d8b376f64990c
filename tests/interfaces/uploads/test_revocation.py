"""A revoked, expired or signed-out credential ends its running requests in every process."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from application.ports.auth import Scope
from domain.ids import upload_id_for
from infrastructure.read_model.projector import catch_up
from tests.end_to_end.test_seams import Gate
from tests.interfaces.uploads.server import BYTES, TUS, Server, stored_files
from tests.support import eventually

PATIENCE = 60.0  # seconds; a revocation takes effect within one, on a machine that is not busy
FORM = "multipart/form-data; boundary=x"


@asynccontextmanager
async def _endless(
    client: aiohttp.ClientSession, method: str, url: str, start: bytes, **headers: str
) -> AsyncIterator[asyncio.Task[tuple[int, Any]]]:
    """A request whose body begins with `start` and goes on for ever, a byte a moment."""

    async def body() -> AsyncIterator[bytes]:
        yield start
        while True:
            await asyncio.sleep(0.02)
            yield b"x"

    async def send() -> tuple[int, Any]:
        async with client.request(method, url, data=body(), headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    task = asyncio.create_task(send())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _new_key(client: aiohttp.ClientSession, url: str, **fields: Any) -> tuple[str, str]:
    async with client.post(f"{url}/v1/keys", json={"scope": "operator", **fields}) as answer:
        made = await answer.json()
        return made["key"]["id"], made["text"]


async def test_a_key_revoked_in_one_process_ends_streams_and_transfers_in_the_other(
    servers: tuple[str, str, str], tmp_path: Path
) -> None:
    here, there, admin = servers

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {admin}"}) as root:
        id, text = await _new_key(root, here)
        _, other = await _new_key(root, here)
        with_key = {"Authorization": f"Bearer {text}"}
        async with aiohttp.ClientSession(headers=with_key) as client:
            headers = {**TUS, "Upload-Length": "1000000"}
            async with client.post(f"{there}/v1/uploads", headers=headers) as answer:
                location = answer.headers["Location"]
            stream = await client.get(f"{there}/v1/feed", headers={"Accept": "text/event-stream"})
            socket = await client.ws_connect(f"{there}/v1/feed")
            kept = await client.ws_connect(
                f"{there}/v1/feed", headers={"Authorization": f"Bearer {other}"}
            )
            headers = {**BYTES, "Upload-Offset": "0"}
            url = location
            async with _endless(client, "PATCH", url, b"x" * 30_000, **headers) as patch:
                await eventually(
                    lambda: any(f.stat().st_size >= 30_000 for f in stored_files(tmp_path))
                )
                async with root.delete(f"{here}/v1/keys/{id}") as answer:
                    assert answer.status == 200

                async with asyncio.timeout(PATIENCE):
                    status, problem = await patch
                    assert (status, problem["code"]) == (401, "unauthenticated")
                    assert b'"code":4501' in await stream.content.read()
                    while not socket.closed:
                        await socket.receive()
                    assert socket.close_code == 4501
            assert not kept.closed
            await kept.close()
        async with root.head(location, headers=TUS) as answer:
            assert int(answer.headers["Upload-Offset"]) >= 30_000


def _archive_start() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("first.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"whole"))
        large = tarfile.TarInfo("second.bin")
        large.size = 10_000_000
        start = buffer.getvalue()[:1024]
        return start + large.tobuf()


@pytest.mark.parametrize("kind", ["tus", "bundle", "form", "json", "ndjson", "resumable", "whole"])
async def test_every_kind_of_body_is_answered_401_once_its_key_is_revoked(
    server: Server, kind: str
) -> None:
    keys = server.services.keys
    key, text = await keys.create(owner="acme", scope=Scope.UPLOADER)
    auth = {"Authorization": f"Bearer {text}"}
    answer = await server.ask("POST", "/v1/batches", json={}, headers=auth)
    batch = answer.json["id"]
    files = f"/v1/batches/{batch}/uploads"
    tus = {**TUS, "Content-Type": BYTES["Content-Type"]}
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.bin"\r\n\r\n'
    method, path, start, headers = {
        "tus": ("PATCH", await server.create(1_000_000), b"x" * 9000, BYTES),
        "bundle": ("POST", files, _archive_start(), {"Content-Type": "application/x-tar"}),
        "form": ("POST", "/v1/batches", part, {"Content-Type": FORM}),
        "json": ("POST", "/v1/batches", b"{", {"Content-Type": "application/json"}),
        "ndjson": (
            "POST",
            files,
            b'{"path": "n", "size": 1}\n',
            {"Content-Type": "application/x-ndjson"},
        ),
        "resumable": (
            "POST",
            "/v1/uploads",
            b"x" * 9000,
            {"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1"},
        ),
        "whole": ("POST", files, b"x" * 90, {**tus, "Upload-Length": "900"}),
    }[kind]
    headers = {**headers, **auth, **({"Upload-Offset": "0"} if kind == "tus" else {})}
    running = server.running
    async with _endless(server.client, method, path, start, **headers) as request:
        await eventually(lambda: len(running) == 1)
        await asyncio.sleep(0)
        await keys.revoke(key.id, owner=None)
        async with asyncio.timeout(PATIENCE):
            status, problem = await request
    assert (status, problem["code"]) == (401, "unauthenticated")
    if kind == "bundle":
        upload = await server.services.log.upload(
            upload_id_for(UUID(batch), "first.txt", server.services.log.id_secret)
        )
        assert upload.received == 5


async def test_an_expired_key_and_a_closed_session_end_their_transfers(server: Server) -> None:
    keys = server.services.keys
    key, text = await keys.create(owner="acme", scope=Scope.UPLOADER)
    principal = await keys.authenticate(text)
    assert principal is not None
    token = await keys.open_session(principal, lifetime=3600)
    session = {"Cookie": f"uptrail_session={token}", "Origin": server.url}
    locations = [await server.create(1_000_000) for _ in range(2)]
    async with (
        aiohttp.ClientSession(server.url) as client,
        _patching(client, locations[0], **server.as_(text)) as by_key,
        _patching(client, locations[1], **session) as by_session,
    ):
        await eventually(lambda: len(server.running) == 2)
        await keys.close_session(token)
        async with asyncio.timeout(PATIENCE):
            assert (await by_session)[0] == 401
        assert not by_key.done()
        async with server.pool.connection() as connection:
            past = "UPDATE api_keys SET expires_at = now() WHERE id = %s"
            await connection.execute(past, (key.id,))
        async with asyncio.timeout(PATIENCE):
            assert (await by_key)[0] == 401


async def test_the_transfers_of_a_session_end_with_the_key_it_was_made_from(
    server: Server,
) -> None:
    keys = server.services.keys
    key, text = await keys.create(owner="acme", scope=Scope.UPLOADER)
    principal = await keys.authenticate(text)
    assert principal is not None
    token = await keys.open_session(principal, lifetime=3600)
    session = {"Cookie": f"uptrail_session={token}", "Origin": server.url}
    location = await server.create(1_000_000)
    async with (
        aiohttp.ClientSession(server.url) as client,
        _patching(client, location, **session) as request,
    ):
        await eventually(lambda: len(server.running) == 1)
        await keys.revoke(key.id, owner=None)
        async with asyncio.timeout(PATIENCE):
            assert (await request)[0] == 401


async def test_a_download_is_cut_off_once_its_key_is_revoked(server: Server) -> None:
    size = 32 * 1024 * 1024
    location = await server.create(size)
    assert await server.patch(location, 0, io.BytesIO(bytes(size))) == 204
    key, text = await server.services.keys.create(owner="acme", scope=Scope.VIEWER)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(
        f"GET {location}/content HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {text}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    await server.services.keys.revoke(key.id, owner=None)
    received = 0
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            await eventually(lambda: len(server.running) == 0)
            while chunk := await reader.read(65536):
                received += len(chunk)
    writer.close()
    assert received < size


async def test_a_read_under_way_is_answered_401_once_its_key_is_revoked(
    database_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = await server.create(5)
    await catch_up(database_url, server.services.log)
    key, text = await server.services.keys.create(owner="acme", scope=Scope.VIEWER)
    assert (await server.ask("GET", location, headers=server.as_(text))).status == 200
    gate = Gate(monkeypatch, server.services.queries, "upload")
    asking = asyncio.create_task(server.ask("GET", location, headers=server.as_(text)))
    await gate.reached()
    await server.services.keys.revoke(key.id, owner=None)
    await server.running.check()
    gate.open()

    answer = await asking
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


async def test_a_lost_notification_is_made_up_for_by_the_next_look(server: Server) -> None:
    key, text = await server.services.keys.create(owner="acme", scope=Scope.UPLOADER)
    location = await server.create(1_000_000)
    async with _patching(server.client, location, **server.as_(text)) as request:
        await eventually(lambda: len(server.running) == 1)
        async with server.pool.connection() as connection:
            # As if the listener's connection had been lost just now.
            await connection.execute("ALTER TABLE api_keys DISABLE TRIGGER USER")
            query = "UPDATE api_keys SET revoked_at = now() WHERE id = %s"
            await connection.execute(query, (key.id,))
        async with asyncio.timeout(PATIENCE):
            assert (await request)[0] == 401


def _patching(client: aiohttp.ClientSession, location: str, **headers: str) -> Any:
    said = {**BYTES, "Upload-Offset": "0", **headers}
    return _endless(client, "PATCH", location, b"x" * 9000, **said)
