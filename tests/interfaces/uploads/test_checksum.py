from __future__ import annotations

from base64 import b64encode
from hashlib import md5, sha1, sha256, sha512
from pathlib import Path

import pytest
from google_crc32c import Checksum as Crc32c

from application.transfers.locks import upload_blob_name
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import BYTES, Server, stored_files, upload_in
from tests.support import eventually

DIGESTS = {
    "sha1": lambda data: sha1(data).digest(),
    "sha256": lambda data: sha256(data).digest(),
    "sha512": lambda data: sha512(data).digest(),
    "md5": lambda data: md5(data).digest(),
    "crc32c": lambda data: Crc32c(data).digest(),
}


def _said(data: bytes, algorithm: str = "sha1") -> dict[str, str]:
    digest = DIGESTS[algorithm](data)
    return {"Upload-Checksum": f"{algorithm} {b64encode(digest).decode()}"}


@pytest.mark.parametrize("algorithm", DIGESTS)
async def test_a_chunk_that_is_sound_counts_and_one_that_is_not_leaves_no_trace(
    algorithm: str, server: Server
) -> None:
    answer = await server.ask("OPTIONS", "/v1/uploads")
    assert algorithm in answer.headers["Tus-Checksum-Algorithm"].split(",")
    assert "checksum" in answer.headers["Tus-Extension"].split(",")
    location = await server.create(10)
    assert await server.patch(location, 0, b"01234", **_said(b"01234", algorithm)) == 204
    assert await server.patch(location, 5, b"56x89", **_said(b"56789", algorithm)) == 460
    assert await server.offset(location) == 5
    assert await server.patch(location, 5, b"567", **_said(b"567", algorithm)) == 204
    assert await server.patch(location, 8, b"xx", **_said(b"89", algorithm)) == 460
    assert await server.patch(location, 8, b"89") == 204
    assert await server.content(location) == b"0123456789"


@pytest.mark.options(progress_interval=0.001)
async def test_the_last_chunk_is_no_end_of_the_file_if_it_is_damaged(server: Server) -> None:
    body = bytes(900_000)
    location = await server.create(len(body))
    assert await server.patch(location, 0, body, **_said(b"other")) == 460
    assert await server.offset(location) == 0
    assert "upload.file_received" not in await server.topics(location)
    assert await server.patch(location, 0, body, **_said(body)) == 204
    assert await server.content(location) == body


@pytest.mark.options(progress_interval=0.01)
async def test_no_byte_is_recorded_before_the_checksum_of_its_body_is_verified(
    server: Server,
) -> None:
    checked, plain = await server.create(100), await server.create(100)
    blob = upload_blob_name(upload_in(checked))
    headers = {**BYTES, **_said(b"x" * 100), "Upload-Offset": "0", "Content-Length": "100"}
    async with Sender(server) as first, Sender(server) as second:
        await first.begin("PATCH", checked, headers, b"x" * 50)

        async def stored() -> bool:
            return await server.services.blobs.size(blob) == 50

        async def recorded() -> bool:
            return "upload.file_progressed" in await server.topics(plain)

        await eventually(stored)
        await second.begin_patch(plain, 0, 100, b"x" * 50)
        await eventually(recorded)  # by a checkpoint that was due after one of the first body

        assert "upload.file_progressed" not in await server.topics(checked)


async def test_a_truncated_body_with_a_checksum_does_not_count(server: Server) -> None:
    location = await server.create(100)
    headers = {**BYTES, **_said(b"x" * 100), "Upload-Offset": "0"}
    async with Sender(server) as sender:
        headers["Content-Length"] = "100"
        await sender.begin("PATCH", location, headers, b"x" * 30)
        await sender.half_close()

        async def interrupted() -> bool:
            return "upload.transfer_interrupted" in await server.topics(location)

        await eventually(interrupted)
    assert await server.offset(location) == 0
    assert await server.patch(location, 0, b"x" * 100, **_said(b"x" * 100)) == 204


async def test_a_damaged_file_that_came_whole_is_not_even_registered(
    server: Server, tmp_path: Path
) -> None:
    headers = {**BYTES, "Upload-Length": "5"}
    for body, said, status in (
        (b"hxllo", _said(b"hello"), 460),
        (b"hello", _said(b"hello"), 201),
    ):
        head = await server.services.log.head()
        answer = await server.ask("POST", "/v1/uploads", headers={**headers, **said}, data=body)
        assert answer.status == status
        if status == 460:
            assert await server.services.log.head() == head
            assert stored_files(tmp_path) == []


async def test_a_large_creation_with_a_wrong_checksum_names_its_upload(server: Server) -> None:
    body = bytes(300_000)
    headers = {**BYTES, **_said(b"other"), "Upload-Length": str(len(body))}
    answer = await server.ask("POST", "/v1/uploads", headers=headers, data=body)
    assert answer.status == 460
    location = answer.headers["Location"]
    assert await server.offset(location) == 0
    assert await server.patch(location, 0, body) == 204


@pytest.mark.parametrize("said", ["sha1", "sha1 !", "sha1 YQ==", "crc64 YQ==", ""])
async def test_an_invalid_checksum_header_is_refused(said: str, server: Server) -> None:
    location = await server.create(5)
    assert await server.patch(location, 0, b"hello", **{"Upload-Checksum": said}) == 400
    assert await server.offset(location) == 0
    headers = {**BYTES, "Upload-Length": "5", "Upload-Checksum": said}
    assert (await server.ask("POST", "/v1/uploads", headers=headers, data=b"hello")).status == 400
