from __future__ import annotations

import asyncio
from pathlib import Path

from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import TUS, Server, serving, upload_in
from tests.support import eventually

CONTENT = bytes(range(256)) * 40


async def _arrived(server: Server, location: str, count: int) -> None:
    async def stored() -> bool:
        size = await server.services.blobs.size(upload_blob_name(upload_in(location)))
        return size == count

    await eventually(stored)


async def test_asking_for_the_offset_ends_a_running_transfer_and_counts_its_bytes(
    server: Server,
) -> None:
    async with Sender(server) as sender:
        location = await server.create(len(CONTENT))
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        await _arrived(server, location, 3000)

        assert await server.offset(location) == 3000
        assert (await sender.answer())[0] == 423


async def test_a_request_preempted_while_it_waits_keeps_the_bytes_it_brought(
    server: Server,
) -> None:
    async with Sender(server) as sender:
        location = await server.create(len(CONTENT))
        id = upload_in(location)
        async with server.transfers.upload_locks.acquire(id) as first:
            await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
            await eventually(lambda: first.is_preempted)  # now the PATCH waits for its turn
            asking = asyncio.create_task(server.transfers.current_upload(id, Actor("test")))
            await asyncio.sleep(0)  # and is overtaken

        assert (await asking).received == 3000
        assert (await sender.answer())[0] == 423
        assert await server.patch(location, 3000, CONTENT[3000:]) == 204
        assert await server.content(location) == CONTENT


async def test_two_patches_at_once_are_never_both_accepted(server: Server) -> None:
    async with Sender(server) as first, Sender(server) as second:
        location = await server.create(len(CONTENT))
        await first.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        await _arrived(server, location, 3000)
        await second.begin_patch(location, 0, len(CONTENT), CONTENT)

        assert (await first.answer())[0] == 423
        status, head = await second.answer()
        assert status == 409
        assert b"Upload-Offset: 3000" in head
        assert await server.patch(location, 3000, CONTENT[3000:]) == 204
        assert await server.content(location) == CONTENT


async def test_many_patches_from_the_same_offset_leave_the_file_as_one_of_them_sent_it(
    server: Server,
) -> None:
    location = await server.create(len(CONTENT))
    tries = (server.patch(location, 0, CONTENT) for _ in range(6))
    statuses = await asyncio.gather(*tries)
    if 204 not in statuses:
        offset = await server.offset(location)
        assert await server.patch(location, offset, CONTENT[offset:]) == 204

    assert set(statuses) <= {204, 409, 413, 423}
    assert await server.content(location) == CONTENT
    assert (await server.topics(location)).count("upload.file_received") == 1


async def test_terminating_ends_a_running_transfer_and_frees_its_bytes(server: Server) -> None:
    async with Sender(server) as sender:
        location = await server.create(len(CONTENT))
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        await _arrived(server, location, 3000)

        assert (await server.ask("DELETE", location, headers=TUS)).status == 204
        assert (await sender.answer())[0] == 423
        assert await server.services.blobs.size(upload_blob_name(upload_in(location))) == 0
        assert (await server.ask("HEAD", location, headers=TUS)).status == 410
        assert (await server.ask("GET", f"{location}/content")).status == 404
        assert await server.patch(location, 3000, b"x") == 410


async def test_one_of_many_terminations_succeeds_and_the_others_find_the_upload_gone(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as here, serving(database_url, tmp_path) as there:
        location = await here.create(len(CONTENT))
        assert await here.patch(location, 0, CONTENT[:3000]) == 204

        async def terminate(server: Server) -> int:
            answer = await server.ask("DELETE", location, headers=TUS)
            return answer.status

        statuses = await asyncio.gather(*(terminate(one) for one in [here, there] * 10))
        # 423 is for those who were still waiting when a newer one came.
        assert set(statuses) <= {204, 410, 423}
        assert statuses.count(204) == 1
        assert (await here.topics(location)).count("upload.cancelled") == 1
        assert [await terminate(here), await terminate(there)] == [410, 410]


async def test_the_newest_request_wins_on_another_process_too(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path) as here,
        serving(database_url, tmp_path) as there,
        Sender(here) as sender,
    ):
        location = await here.create(len(CONTENT))
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        await _arrived(here, location, 3000)

        assert await there.offset(location) == 3000
        assert (await sender.answer())[0] == 423
        assert await there.patch(location, 3000, CONTENT[3000:]) == 204
        assert await here.content(location) == CONTENT


async def test_bytes_received_by_another_process_survive_a_stale_cache(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as here, serving(database_url, tmp_path) as there:
        location = await here.create(len(CONTENT))
        assert await here.patch(location, 0, CONTENT[:1000]) == 204
        assert await there.patch(location, 1000, CONTENT[1000:3000]) == 204

        assert await here.patch(location, 1000, b"zombie") == 409
        assert await here.patch(location, 3000, CONTENT[3000:]) == 204
        assert await there.content(location) == CONTENT


async def test_an_upload_cancelled_by_another_process_stops_its_transfer(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path, progress_interval=0.01) as here,
        serving(database_url, tmp_path) as there,
        Sender(here) as sender,
    ):
        location = await here.create(len(CONTENT))
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        await _arrived(here, location, 3000)

        async with there.client.delete(location, headers=TUS) as answer:
            assert answer.status == 204
        assert (await sender.answer())[0] in (410, 403, 423)
        assert "upload.file_received" not in await here.topics(location)
