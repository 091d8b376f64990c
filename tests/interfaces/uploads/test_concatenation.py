from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import aiohttp
import pytest

from application.commands import BatchCommand
from application.handlers.execute import CommandContext, execute
from application.ports.auth import Scope
from domain.batch.aggregate import Batch
from domain.file import FileDeclaration
from tests.interfaces.conftest import LiveServer
from tests.interfaces.uploads.server import (
    BYTES,
    TUS,
    Server,
    filename,
    stored_files,
    upload_in,
)
from tests.interfaces.uploads.test_sweeper import _age, _clear_all, _sweeper
from tests.support import eventually


async def _part(server: Server, body: bytes, path: str = "/v1/uploads") -> str:
    headers = {**BYTES, "Upload-Length": str(len(body)), "Upload-Concat": "partial"}
    answer = await server.ask("POST", path, headers=headers, data=body)
    assert answer.status == 201, answer.text
    assert answer.headers["Upload-Offset"] == str(len(body))
    return answer.headers["Location"]


async def _join(
    server: Server, *parts: str, path: str = "/v1/uploads", **headers: str
) -> tuple[int, str]:
    said = {**TUS, "Upload-Concat": f"final;{' '.join(parts)}", **headers}
    answer = await server.ask("POST", path, headers=said)
    return answer.status, answer.headers.get("Location", "")


async def test_parts_are_made_one_upload_in_the_order_named(server: Server, tmp_path: Path) -> None:
    first, second = await _part(server, b"01234"), await _part(server, b"56789")
    status, location = await _join(server, second, first, **filename("a.bin"))

    assert status == 201
    assert await server.content(location) == b"5678901234"
    upload = await server.services.log.upload(upload_in(location))
    assert (upload.path, upload.size) == ("a.bin", 10)
    answer = await server.ask("HEAD", location, headers=TUS)
    assert answer.headers["Upload-Concat"] == f"final;{second} {first}"
    assert answer.headers["Upload-Length"] == "10"
    assert answer.headers["Upload-Metadata"] == filename("a.bin")["Upload-Metadata"]
    assert await server.patch(location, 10, b"") == 403
    assert len(stored_files(tmp_path)) == 1
    assert await server.topics(first) == [
        "upload.registered",
        "upload.file_progressed",
        "upload.file_received",
        "upload.completed",
    ]


async def test_a_part_grows_and_resumes_like_an_upload(server: Server) -> None:
    part = await server.create(10, **{"Upload-Concat": "partial", **filename("x")})
    assert await server.patch(part, 0, b"01234") == 204
    answer = await server.ask("HEAD", part, headers=TUS)
    assert answer.headers["Upload-Concat"] == "partial"
    assert answer.headers["Upload-Offset"] == "5"
    assert answer.headers["Upload-Metadata"] == filename("x")["Upload-Metadata"]
    assert "Upload-Expires" in answer.headers
    assert (await _join(server, part))[0] == 400
    assert await server.patch(part, 5, b"56789") == 204
    status, location = await _join(server, f"http://elsewhere/prefix{part}")
    assert status == 201
    assert await server.content(location) == b"0123456789"


async def test_joining_again_finds_the_upload_that_is_there(server: Server, tmp_path: Path) -> None:
    parts = [await _part(server, bytes([n]) * 1000) for n in range(3)]
    answers = await asyncio.gather(*(_join(server, *parts) for _ in range(4)))
    location = next(where for status, where in answers if status == 201)

    assert {status for status, _ in answers} <= {201, 400, 409}
    assert await _join(server, *parts) == (201, location)
    assert await server.content(location) == b"".join(bytes([n]) * 1000 for n in range(3))
    assert len(stored_files(tmp_path)) == 1
    assert (await _join(server, *parts[:2]))[0] == 400


async def test_an_upload_of_a_batch_is_joined_from_parts_of_that_batch(server: Server) -> None:
    batch = await server.start_batch(FileDeclaration(path="a.bin", size=10))
    path = f"/v1/batches/{batch}/uploads"
    parts = [await _part(server, body, path) for body in (b"01234", b"56789")]
    alien = await _part(server, b"alone")
    assert (await _join(server, *parts))[0] == 400
    assert (await _join(server, alien, path=path, **filename("b.bin")))[0] == 400
    assert (await _join(server, parts[0], path=path, **filename("a.bin")))[0] == 403
    status, location = await _join(server, *parts, path=path, **filename("a.bin"))

    assert status == 201
    assert await server.content(location) == b"0123456789"
    assert (await server.services.log.upload(upload_in(location))).batch == batch
    assert await _join(server, *parts, path=path, **filename("a.bin")) == (201, location)
    assert (await _join(server, parts[0], path=path, **filename("a.bin")))[0] == 400
    context = CommandContext("key:test", server.services.now())
    await execute(server.services.log, BatchCommand(batch, Batch.seal), context)
    late = {**TUS, "Upload-Length": "5", "Upload-Concat": "partial"}
    assert (await server.ask("POST", path, headers=late)).status == 403


async def test_parts_of_another_owner_do_not_exist(server: Server) -> None:
    part = await _part(server, b"01234")
    rival = server.as_(await server.key_with(Scope.UPLOADER, owner="rival"))
    assert (await _join(server, part, **rival))[0] == 400
    assert (await server.ask("HEAD", part, headers={**TUS, **rival})).status == 404


@pytest.mark.parametrize(
    "concat",
    ["", "final", "final;", "final; /v1/uploads/x", "final;/etc/passwd", "half", "final;{0} {0}"],
)
async def test_an_invalid_list_of_parts_is_refused(concat: str, server: Server) -> None:
    part = await _part(server, b"01234")
    head = await server.services.log.head()
    headers = {**TUS, "Upload-Concat": concat.format(part)}
    assert (await server.ask("POST", "/v1/uploads", headers=headers)).status == 400
    assert await server.services.log.head() == head


@pytest.mark.options(max_file_size=8)
async def test_a_final_upload_has_the_size_limit_of_a_file(server: Server) -> None:
    parts = [await _part(server, body) for body in (b"01234", b"56789")]
    assert (await _join(server, *parts))[0] == 413


async def test_unused_parts_expire_and_concatenated_parts_leave_no_bytes(
    database_url: str, tmp_path: Path, server: Server
) -> None:
    waiting, joined = await _part(server, b"01234"), await _part(server, b"56789")
    content = stored_files(tmp_path)[0].read_bytes()
    assert (await _join(server, joined))[0] == 201
    blob = f"uploads/{upload_in(joined)}"
    await server.services.blobs.put(blob, content)  # as a crash would have left it
    async with _sweeper(server, database_url) as sweeper:
        _age(tmp_path, 1800)
        assert await _clear_all(sweeper) == ([], [])
        _age(tmp_path)
        assert await _clear_all(sweeper) == ([blob], [])
        await sweeper.free_ended(0)
    assert (await server.ask("HEAD", waiting, headers=TUS)).status == 410
    assert len(stored_files(tmp_path)) == 1


async def test_parts_are_counted_and_processed_nowhere(live_server: LiveServer) -> None:
    headers = {"Authorization": f"Bearer {live_server.key}"}

    async with aiohttp.ClientSession(live_server.url, headers=headers) as client:
        async with client.post("/v1/batches", json={}) as answer:
            batch = answer.headers["Location"]
        parts = []
        for body in (b"01234", b"56789"):
            said = {**BYTES, "Upload-Length": "5", "Upload-Concat": "partial"}
            async with client.post(f"{batch}/uploads", headers=said, data=body) as answer:
                parts.append(answer.headers["Location"])
        said = {**TUS, "Upload-Concat": f"final;{' '.join(parts)}", **filename("a.txt")}
        async with client.post(f"{batch}/uploads", headers=said) as answer:
            assert answer.status == 201
            location = answer.headers["Location"]
        await client.post(f"{batch}/seal")

        async def completed() -> dict[str, object] | None:
            async with client.get(batch) as answer:
                row: dict[str, object] = await answer.json()
                return row if row["state"] == "completed" else None

        row = await eventually(completed)
        assert (row["outcome"], row["uploads"], row["bytes_total"]) == ("succeeded", 1, 10)
        async with client.get(f"{location}/content") as answer:
            assert await answer.read() == b"0123456789"
        async with client.get(parts[0]) as answer:
            assert answer.status == 404


@pytest.mark.options(public_url="https://uploads.example.com/some/prefix")
async def test_a_thousand_parts_by_their_whole_urls_are_one_upload(
    server: Server, tmp_path: Path
) -> None:
    texts = [b"%d," % number for number in range(1000)]

    parts = [""] * len(texts)
    numbers = iter(range(len(texts)))

    async def announce_some() -> None:
        for number in numbers:
            parts[number] = await _part(server, texts[number])

    await asyncio.gather(*(announce_some() for _ in range(16)))
    status, location = await _join(server, *parts, **filename("joined.bin"))
    assert status == 201
    path = f"/v1/uploads/{upload_in(location)}"
    assert await server.content(path) == b"".join(texts)
    assert len(stored_files(tmp_path)) == 1

    # The header comes back as it was sent, and again from the events alone.
    url, headers = f"{server.url}{path}", {**TUS, **server.as_(server.key)}
    async with aiohttp.ClientSession(max_field_size=1 << 20) as client:
        for _ in range(2):
            async with client.head(url, headers=headers) as answer:
                assert answer.headers["Upload-Concat"] == f"final;{' '.join(parts)}"
            server.services.log.forget(upload_in(location))
    assert (await _join(server, *parts, **filename("joined.bin")))[0] == 201


async def test_more_parts_than_one_header_may_name_are_refused_by_number(server: Server) -> None:
    parts = [f"/files/{UUID(int=number)}" for number in range(2501)]
    headers = {**TUS, "Upload-Concat": f"final;{' '.join(parts)}"}
    answer = await server.ask("POST", "/v1/uploads", headers=headers)
    assert answer.status == 400
    assert "at most 2500 parts, not 2501" in answer.json["detail"]


@pytest.mark.parametrize("key", ["tus-concat", "other"])
async def test_metadata_of_a_manifest_is_bounded_whatever_its_keys_are(
    key: str, server: Server
) -> None:
    batch = await server.start_batch()
    values = {"many;x": "added", "x" * 70_000: "rejected"}
    for number, (value, status) in enumerate(values.items()):
        file = {"path": f"{number}.bin", "size": 5, "metadata": {key: value}}
        made = await server.ask("POST", f"/v1/batches/{batch}/uploads", json=[file])
        answer = made.json
        assert answer["files"][0]["status"] == status
        if status == "added":
            upload = f"/v1/uploads/{answer['files'][0]['upload']}"
            assert (await server.ask("HEAD", upload, headers=TUS)).status == 200
