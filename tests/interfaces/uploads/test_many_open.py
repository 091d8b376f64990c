from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from tests.interfaces.uploads.server import TUS, Server, stored_files

OPEN = 10_000
SENDERS = 32
ROOM = 64 * 1024 * 1024  # bytes for all of them, the client's own memory included


async def _create(server: Server, count: int) -> list[str]:
    headers = {**TUS, "Upload-Length": "1000"}
    made = []
    for _ in range(count):
        answer = await server.ask("POST", "/v1/uploads", headers=headers)
        assert answer.status == 201
        made.append(answer.headers["Location"])
    return made


async def test_ten_thousand_open_uploads_cost_next_to_nothing(
    server: Server, tmp_path: Path
) -> None:
    """Open uploads are rows in a log, not objects in memory; any of them can be resumed."""

    await _create(server, 100)
    before = psutil.Process(os.getpid()).memory_info().rss
    shares = [_create(server, OPEN // SENDERS) for _ in range(SENDERS)]
    made = [location for share in await asyncio.gather(*shares) for location in share]
    grown = psutil.Process(os.getpid()).memory_info().rss - before

    assert len(set(made)) == OPEN // SENDERS * SENDERS
    assert grown < ROOM
    assert len(server.transfers.upload_locks) == 0
    assert stored_files(tmp_path) == []
    for location in made[:: len(made) // 50]:
        assert await server.offset(location) == 0
    assert await server.patch(made[0], 0, bytes(1000)) == 204
    assert await server.patch(made[-1], 0, bytes(1000)) == 204
