from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import aiotus
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError
from tusclient.request import TusRequest

from tests.interfaces.uploads.server import Server, serving, stored_files, upload_in

CONTENT = bytes(range(256)) * 3000
CHUNK = 100_000


def _uploader(server: Server, **more: Any) -> Any:
    client = TusClient(f"{server.url}/v1/uploads", headers=server.as_(server.key))
    return client.uploader(
        file_stream=io.BytesIO(CONTENT), chunk_size=CHUNK, upload_checksum=True, **more
    )


async def test_tuspy_sends_a_checksum_with_every_chunk(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path) as server:
        uploader = _uploader(server, metadata={"filename": "film.bin"})
        await asyncio.to_thread(uploader.upload)
        assert await server.content(uploader.url.removeprefix(server.url)) == CONTENT


async def test_a_chunk_that_tuspy_sees_corrupted_does_not_count(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TusRequest.add_checksum

    def corrupting(self: TusRequest, chunk: bytes) -> None:
        honest(self, bytes([chunk[0] ^ 1]) + chunk[1:])  # type: ignore[no-untyped-call]

    async with serving(database_url, tmp_path) as server:
        uploader = _uploader(server, metadata={"filename": "film.bin"})
        await asyncio.to_thread(uploader.upload_chunk)
        location = uploader.url.removeprefix(server.url)
        with monkeypatch.context() as patch:
            patch.setattr(TusRequest, "add_checksum", corrupting)
            with pytest.raises(TusCommunicationError) as refused:
                await asyncio.to_thread(uploader.upload_chunk)
        assert refused.value.status_code == 460
        assert await server.offset(location) == CHUNK

        again = await asyncio.to_thread(_uploader, server, url=uploader.url)
        await asyncio.to_thread(again.upload)
        assert await server.content(location) == CONTENT


async def test_aiotus_sends_one_file(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path) as server:
        url = await aiotus.upload(
            f"{server.url}/v1/uploads",
            io.BytesIO(CONTENT),
            {"filename": b"film.bin", "flag": None},
            headers=server.as_(server.key),
        )
        assert url is not None
        assert await server.content(url.path) == CONTENT
        said = await aiotus.metadata(str(url), headers=server.as_(server.key))
        assert said == {"filename": b"film.bin", "flag": None}


async def test_aiotus_makes_one_upload_of_several_files(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path) as server:
        parts = [CONTENT[:1000], CONTENT[1000:400_000], CONTENT[400_000:]]
        url = await aiotus.upload_multiple(
            f"{server.url}/v1/uploads",
            [io.BytesIO(part) for part in parts],
            {"filename": b"film.bin"},
            headers=server.as_(server.key),
            chunksize=CHUNK,
        )
        assert url is not None
        assert await server.content(url.path) == CONTENT
        assert (await server.services.log.upload(upload_in(url.path))).path == "film.bin"
        assert len(stored_files(tmp_path)) == 1


async def test_tuspy_and_aiotus_with_their_defaults_send_to_the_tus_endpoint(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)

    async with serving(database_url, tmp_path / "data") as server:
        headers = server.as_(server.key)
        client = TusClient(f"{server.url}/files/", headers=headers)
        uploader = client.uploader(file_stream=io.BytesIO(CONTENT))
        await asyncio.to_thread(uploader.upload)
        with file.open("rb") as opened:
            url = await aiotus.upload(f"{server.url}/files/", opened, headers=headers)
        for location in (str(uploader.url), str(url)):
            assert location.startswith(f"{server.url}/files/")
            answer = await server.ask("GET", location)
            assert answer.body == CONTENT
