from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.interfaces.uploads.server import BYTES, TUS, stored_files
from tests.support import eventually, path_of

CONTENT = bytes(range(256)) * 400  # 100 KiB


@asynccontextmanager
async def _sending(
    client: aiohttp.ClientSession, url: str, body: bytes
) -> AsyncIterator[asyncio.Task[int]]:
    """A PATCH whose sender goes silent after these bytes."""
    silence = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield body
        await silence.wait()

    async def send() -> int:
        headers = {**BYTES, "Upload-Offset": "0"}
        async with client.patch(url, headers=headers, data=chunks()) as answer:
            return answer.status

    task = asyncio.create_task(send())
    try:
        yield task
    finally:
        silence.set()
        await asyncio.gather(task, return_exceptions=True)


async def _create(client: aiohttp.ClientSession, url: str) -> str:
    headers = {**TUS, "Upload-Length": str(len(CONTENT))}
    async with client.post(f"{url}/v1/uploads", headers=headers) as answer:
        assert answer.status == 201
        return path_of(answer.headers["Location"])


async def _offset(client: aiohttp.ClientSession, url: str) -> int:
    async with client.head(url, headers=TUS) as answer:
        assert answer.status == 200
        return int(answer.headers["Upload-Offset"])


async def test_the_newest_request_takes_the_upload_over_from_another_process(
    servers: tuple[str, str, str], tmp_path: Path
) -> None:
    here, there, key = servers

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        location = await _create(client, here)
        async with _sending(client, here + location, CONTENT[:30_000]) as stuck:
            await eventually(lambda: [f.stat().st_size for f in stored_files(tmp_path)] == [30_000])
            other = await _create(client, here)  # other uploads proceed beside the stuck one
            said = {**BYTES, "Upload-Offset": "0"}
            async with client.patch(here + other, headers=said, data=CONTENT) as answer:
                assert answer.status == 204

            assert await _offset(client, there + location) == 30_000
            assert await stuck == 423
        said = {**BYTES, "Upload-Offset": "30000"}
        async with client.patch(there + location, headers=said, data=CONTENT[30_000:]) as answer:
            assert answer.status == 204
        async with client.get(f"{here}{location}/content") as answer:
            assert await answer.read() == CONTENT


async def test_patches_to_both_processes_at_once_leave_the_file_as_it_was_sent(
    servers: tuple[str, str, str],
) -> None:
    here, there, key = servers

    async def patch(client: aiohttp.ClientSession, url: str) -> int:
        headers = {**BYTES, "Upload-Offset": "0"}
        async with client.patch(url, headers=headers, data=CONTENT) as answer:
            return answer.status

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        location = await _create(client, here)
        urls = [here + location, there + location] * 4
        statuses = await asyncio.gather(*(patch(client, url) for url in urls))
        assert set(statuses) <= {204, 409, 413, 423}
        offset = await _offset(client, there + location)
        if offset < len(CONTENT):
            said = {**BYTES, "Upload-Offset": str(offset)}
            async with client.patch(here + location, headers=said, data=CONTENT[offset:]) as a:
                assert a.status == 204
        async with client.get(f"{there}{location}/content") as answer:
            assert await answer.read() == CONTENT


async def test_an_upload_cancelled_at_one_process_stops_at_the_other(
    servers: tuple[str, str, str], tmp_path: Path
) -> None:
    here, there, key = servers

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        location = await _create(client, here)
        async with _sending(client, here + location, CONTENT[:30_000]) as stuck:
            await eventually(lambda: stored_files(tmp_path))
            async with client.delete(there + location, headers=TUS) as answer:
                assert answer.status == 204
            assert await stuck in (403, 410, 423)
        assert stored_files(tmp_path) == []
