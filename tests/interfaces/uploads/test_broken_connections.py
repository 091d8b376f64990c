from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from application.transfers.locks import upload_blob_name
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import BYTES, TUS, Server, serving, upload_in
from tests.support import eventually

CONTENT = bytes(range(256)) * 40


async def _interrupted(server: Server, location: str) -> None:
    async def recorded() -> bool:
        return "upload.transfer_interrupted" in await server.topics(location)

    await eventually(recorded)


async def _arrived(server: Server, location: str, count: int) -> None:
    blob = upload_blob_name(upload_in(location))

    async def stored() -> bool:
        return await server.services.blobs.size(blob) == count

    await eventually(stored)


async def _recorded(server: Server, location: str, count: int) -> bool:
    return (await server.services.log.upload(upload_in(location))).received == count


@pytest.mark.parametrize("end", ["leaves", "half closes", "resets"])
async def test_bytes_that_arrived_before_a_cut_are_kept(end: str, server: Server) -> None:
    location = await server.create(len(CONTENT))
    async with Sender(server) as sender:
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
        if end == "leaves":
            await sender.leave()
        elif end == "half closes":
            await sender.half_close()
        else:  # what the other side has not read yet, a reset throws away
            await _arrived(server, location, 3000)
            sender.reset()
        await _interrupted(server, location)

    assert await server.offset(location) == 3000
    assert await server.patch(location, 3000, CONTENT[3000:]) == 204
    assert await server.content(location) == CONTENT


@pytest.mark.parametrize(
    "rest",
    [b"zz\r\nabc\r\n", b"5\r\nhelloX\r\n", b"-1\r\n", b"0\r\nno trailer\r\n\r\n"],
    ids=["no size", "no line end", "negative", "trailer"],
)
async def test_a_body_that_stops_being_http_ends_at_once_and_what_came_before_is_kept(
    rest: bytes, server: Server
) -> None:
    location = await server.create(len(CONTENT))
    async with Sender(server) as sender:
        headers = {**BYTES, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
        await sender.begin("PATCH", location, headers, b"5\r\n" + CONTENT[:5] + b"\r\n")
        await _arrived(server, location, 5)
        await sender.send(rest)
        # Far below the 60 s after which a silent sender is given up.
        status, _ = await asyncio.wait_for(sender.answer(), 30)
        assert status == 400
    offset = await server.offset(location)
    assert 5 <= offset <= 10
    assert await server.patch(location, offset, CONTENT[offset:]) == 204


async def test_a_list_that_stops_being_http_is_refused_at_once(server: Server) -> None:
    async with Sender(server) as sender:
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        await sender.begin("POST", "/v1/batches", headers, b"1\r\n{\r\n")
        await asyncio.sleep(0)
        await sender.send(b"zz\r\n}\r\n")
        status, _ = await asyncio.wait_for(sender.answer(), 30)
        assert status == 400


async def test_a_body_that_arrived_whole_counts_although_its_sender_is_gone(server: Server) -> None:
    location = await server.create(len(CONTENT))
    async with Sender(server) as sender:
        await sender.begin_patch(location, 0, len(CONTENT), CONTENT)
        await sender.half_close()

    async def received() -> bool:
        return "upload.file_received" in await server.topics(location)

    await eventually(received)
    assert await server.content(location) == CONTENT


@pytest.mark.parametrize("end", ["leaves", "half closes", "resets", "stays"])
async def test_received_bytes_count_in_an_offset_asked_for_at_once(
    end: str, server: Server
) -> None:
    """Each question ends the transfer, or has overtaken it before it had its turn."""

    async def ask(location: str) -> None:
        answer = await server.ask("HEAD", location, headers=TUS)
        assert answer.status in (200, 423)

    async def send_and_ask() -> int:
        location = await server.create(len(CONTENT))
        async with Sender(server) as sender:
            asked = [asyncio.create_task(ask(location)) for _ in range(2)]
            await sender.begin_patch(location, 0, len(CONTENT), CONTENT[:3000])
            asked += [asyncio.create_task(ask(location)) for _ in range(2)]
            if end == "leaves":
                await sender.leave()
            elif end == "half closes":
                await sender.half_close()
            elif end == "resets":
                await _arrived(server, location, 3000)
                sender.reset()
            await asyncio.gather(*asked)
            await _arrived(server, location, 3000)
            return await server.offset(location)

    assert await asyncio.gather(*(send_and_ask() for _ in range(20))) == [3000] * 20


async def test_bytes_before_a_malformed_chunk_are_kept(server: Server) -> None:
    location = await server.create(100)
    headers = {**BYTES, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
    async with Sender(server) as sender:
        await sender.begin("PATCH", location, headers, b"5\r\nhello\r\n")
        await _arrived(server, location, 5)
        await sender.send(b"not a length\r\n")

    assert await server.offset(location) == 5
    assert "upload.transfer_interrupted" in await server.topics(location)


@pytest.mark.options(transfer_idle_timeout=0.5)
async def test_a_silent_sender_is_given_up_and_its_bytes_are_kept(server: Server) -> None:
    location = await server.create(100)
    async with Sender(server) as sender:
        await sender.begin_patch(location, 0, 100, b"x" * 30)
        assert (await sender.answer())[0] == 503

    assert await server.offset(location) == 30


async def test_a_server_that_stops_commits_what_is_under_way(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        location = await server.create(100)
        sender = Sender(server)
        await sender.__aenter__()
        await sender.begin_patch(location, 0, 100, b"x" * 30)
        await _arrived(server, location, 30)
    try:
        status, head = await sender.answer()
        assert status == 503
        assert b"Retry-After" in head
    finally:
        await sender.leave()
    async with serving(database_url, tmp_path) as server:
        assert await server.offset(location) == 30
        assert "upload.transfer_interrupted" in await server.topics(location)


@pytest.mark.options(shutdown_grace=20.0)
async def test_a_transfer_may_come_to_its_end_while_the_server_stops(server: Server) -> None:
    location = await server.create(100)
    async with Sender(server) as sender:
        await sender.begin_patch(location, 0, 100, b"x" * 30)
        await _arrived(server, location, 30)
        closing = asyncio.create_task(server.transfers.close(20.0))
        await asyncio.sleep(0)
        assert await server.patch(await server.create(5), 0, b"hello") == 503
        await sender.send(b"x" * 70)
        assert (await sender.answer())[0] == 204
        await closing


@pytest.mark.options(progress_interval=0.01)
async def test_a_piece_is_recorded_although_silence_follows(server: Server) -> None:
    location = await server.create(100)
    async with Sender(server) as sender:
        for sent in (30, 60):
            if sent == 30:
                await sender.begin_patch(location, 0, 100, b"x" * 30)
            else:
                await sender.send(b"x" * 30)
            await eventually(partial(_recorded, server, location, sent))
        assert "upload.transfer_interrupted" not in await server.topics(location)
        assert await server.offset(location) == 60


@pytest.mark.options(progress_interval=0.01)
async def test_the_last_byte_is_on_record_only_once_the_body_has_ended(server: Server) -> None:
    """Should more follow, the body is refused: it must not look complete meanwhile."""

    location = await server.create(5)
    headers = {**BYTES, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
    async with Sender(server) as sender:
        await sender.begin("PATCH", location, headers, b"5\r\nhello\r\n")
        await eventually(partial(_recorded, server, location, 4))
        await sender.send(b"1\r\n!\r\n0\r\n\r\n")
        assert (await sender.answer())[0] == 413
    assert await server.offset(location) == 4
    assert await server.patch(location, 4, b"o") == 204
    assert await server.content(location) == b"hello"


@pytest.mark.options(progress_interval=0.01)
async def test_progress_is_recorded_while_bytes_arrive(server: Server) -> None:
    location = await server.create(100)
    async with Sender(server) as sender:
        await sender.begin_patch(location, 0, 100, b"")

        async def recorded() -> bool:
            await sender.send(b"x")
            return "upload.file_progressed" in await server.topics(location)

        await eventually(recorded)
        await sender.leave()
        await _interrupted(server, location)
