from __future__ import annotations

import asyncio
import os
from pathlib import Path
from shutil import which

import pytest

from tests.interfaces.uploads.server import Server, serving, upload_in

CONTENT = bytes(range(256)) * 3000


def _send(server: Server, file: Path, *, url: str | None, everything: bool) -> str:
    """Sends one chunk, or all that is missing, and returns the upload's address."""
    from tusclient.client import TusClient

    client = TusClient(f"{server.url}/v1/uploads", headers=server.as_(server.key))
    with file.open("rb") as stream:
        uploader = client.uploader(
            file_stream=stream, url=url, chunk_size=100_000, metadata={"filename": file.name}
        )
        uploader.upload() if everything else uploader.upload_chunk()  # type: ignore[no-untyped-call]
        return str(uploader.url)


async def _curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--fail-with-body", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode(errors="replace")


async def test_a_tus_client_uploads_and_goes_on_after_a_pause(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)

    async with serving(database_url, tmp_path / "data") as server:
        url = await asyncio.to_thread(_send, server, file, url=None, everything=False)
        location = url.removeprefix(server.url)
        assert await server.offset(location) == 100_000
        await asyncio.to_thread(_send, server, file, url=url, everything=True)

        assert await server.content(location) == CONTENT
        assert (await server.services.log.upload(upload_in(location))).path == "film.bin"


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
async def test_curl_alone_can_upload(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)

    async with serving(database_url, tmp_path / "data") as server:
        tus = ["-H", f"Authorization: Bearer {server.key}", "-H", "Tus-Resumable: 1.0.0"]
        head = await _curl(
            *tus, "-i", "-X", "POST", "-H", f"Upload-Length: {len(CONTENT)}",
            f"{server.url}/v1/uploads",
        )  # fmt: skip
        location = next(line[10:] for line in head.splitlines() if line.startswith("Location"))
        await _curl(
            *tus, "-X", "PATCH", "-H", "Upload-Offset: 0",
            "-H", "Content-Type: application/offset+octet-stream",
            "-T", str(file), location,
        )  # fmt: skip

        assert await server.content(location) == CONTENT


async def test_memory_does_not_grow_with_the_file(database_url: str, tmp_path: Path) -> None:
    """The client is another process: only what the server keeps counts."""
    psutil = pytest.importorskip("psutil")
    size = 200 * 1024 * 1024
    file = tmp_path / "film.bin"
    with file.open("wb") as hollow:
        hollow.truncate(size)

    async with serving(database_url, tmp_path / "data") as server:
        location = await server.create(size)
        before = psutil.Process(os.getpid()).memory_info().rss
        await _curl(
            "-H", f"Authorization: Bearer {server.key}", "-H", "Tus-Resumable: 1.0.0",
            "-H", "Content-Type: application/offset+octet-stream", "-H", "Upload-Offset: 0",
            "-X", "PATCH", "-T", str(file), f"{server.url}{location}",
        )  # fmt: skip
        grown = psutil.Process(os.getpid()).memory_info().rss - before

        assert await server.offset(location) == size
        assert grown < 50 * 1024 * 1024
