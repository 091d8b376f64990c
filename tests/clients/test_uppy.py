from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Page

from application.commands import StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext
from domain.upload.state import UploadState
from infrastructure.read_model.projector import catch_up
from tests.clients.installed import HERE, require_package
from tests.interfaces.uploads.server import OWNER, Server, serving, upload_in
from tests.interfaces.web.browser import PATIENCE, chromium, open_browser
from tests.support import eventually


@asynccontextmanager
async def _site() -> AsyncIterator[str]:
    """The origin of a page that has nothing to do with ours."""
    bundle = require_package("uppy") / "dist" / "uppy.min.js"

    async def page(request: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / "uppy.html")

    async def script(request: web.Request) -> web.FileResponse:
        return web.FileResponse(bundle)

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/uppy.min.js", script)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Page]:
    async with open_browser(chromium()) as browser:
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE)
        await page.goto(url)
        yield page


async def _batch(server: Server) -> str:
    services = server.services
    command = StartBatch(id=services.new_id(), owner=OWNER)
    await start_batch(services.log, command, CommandContext("key:test", services.now()))
    return str(command.id)


async def _begin(page: Page, server: Server, batch: str, **more: Any) -> None:
    endpoint = f"{server.url}/v1/batches/{batch}/uploads"
    await page.evaluate("begin", {"endpoint": endpoint, "key": server.key, **more})


def _content(size: int, seed: int) -> bytes:
    return bytes((index * 31 + seed) & 255 for index in range(size))


async def test_a_folder_of_200_files_and_an_empty_one_joins_a_batch(
    database_url: str, tmp_path: Path
) -> None:
    sizes = {f"holiday/day {n % 7}/photo {n}.txt": 500 + 13 * n for n in range(200)}
    sizes["holiday/empty.txt"] = 0

    async with (
        _site() as origin,
        serving(database_url, tmp_path, allowed_origins=(origin,)) as server,
        _opened(origin) as page,
    ):
        batch = await _batch(server)
        await _begin(page, server, batch)
        files = [[path, size, seed] for seed, (path, size) in enumerate(sizes.items())]
        await page.evaluate("files => files.forEach((file) => add(...file))", files)
        result = await page.evaluate("send()")

        assert result["failed"] == []
        assert len(set(result["successful"])) == len(sizes)
        await catch_up(database_url, server.services.log)
        queries, found = server.services.queries, {}
        cursor = None
        while True:
            rows = await queries.uploads(
                upload_in(f"/{batch}"), owner=OWNER, cursor=cursor, limit=100
            )
            found |= {row.path: row for row in rows.items}
            if (cursor := rows.next) is None:
                break
        assert {path: row.size for path, row in found.items()} == sizes
        assert {row.state for row in found.values()} == {UploadState.RECEIVED}
        for seed in (0, 77, 200):
            path = list(sizes)[seed]
            sent = await server.content(f"/v1/uploads/{found[path].id}")
            assert sent == _content(sizes[path], seed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parallelUploads": 3},
        {
            "chunkSize": 100_000,
            "uploadDataDuringCreation": True,
            "removeFingerprintOnSuccess": True,
        },
        {"chunkSize": 100_000, "overridePatchMethod": True, "addRequestId": True},
        {"headers": {"X-Custom": "1", "X-CSRF-Token": "2", "Baggage": "a=b", "Tracestate": "c=d"}},
        {"allowedMetaFields": ["name"], "limit": 1, "retryDelays": [], "chunkSize": 150_000},
    ],
    ids=str,
)
async def test_a_page_with_documented_options_sends_to_the_tus_endpoint(
    options: dict[str, Any], database_url: str, tmp_path: Path
) -> None:
    async with (
        _site() as origin,
        serving(database_url, tmp_path, allowed_origins=(origin,)) as server,
        _opened(origin) as page,
    ):
        begun = {"endpoint": f"{server.url}/files/", "key": server.key, "tus": options}
        await page.evaluate("begin", begun)
        for number in range(3):
            await page.evaluate(f"add('photo {number}.txt', 300000, {number})")
        result = await page.evaluate("send()")

        assert result["failed"] == []
        found = {}
        for url in result["successful"]:
            assert url.startswith(f"{server.url}/files/")
            upload = await server.services.log.upload(upload_in(url))
            found[upload.path] = await server.content(f"/v1/uploads/{upload.id}")
        expected = {f"photo {number}.txt": _content(300_000, number) for number in range(3)}
        assert found == expected


async def test_an_upload_left_by_a_closed_page_resumes_when_it_is_opened_again(
    database_url: str, tmp_path: Path
) -> None:
    size = 3_000_000

    async with (
        _site() as origin,
        serving(database_url, tmp_path, allowed_origins=(origin,)) as server,
        _opened(origin) as page,
    ):
        batch = await _batch(server)
        await _begin(page, server, batch, tus={"chunkSize": 200_000})
        await page.evaluate("add('holiday/film.txt', 3000000, 5)")
        await page.evaluate("void send()")

        async def begun() -> str | None:
            events = await server.services.log.read(0, limit=1000)
            moved = [e for e in events if type(e.event).__name__ == "FileProgressed"]
            return str(moved[-1].stream) if moved else None

        id = await eventually(begun)
        await page.reload()
        location = f"/v1/uploads/{id}"
        kept = await server.offset(location)
        assert 0 < kept < size
        await _begin(page, server, batch, tus={"chunkSize": 200_000})
        await page.evaluate("add('holiday/film.txt', 3000000, 5)")
        result = await page.evaluate("send()")

        assert result["failed"] == []
        assert result["successful"] == [f"{server.url}{location}"]
        assert await server.content(location) == await asyncio.to_thread(_content, size, 5)


async def test_a_page_of_an_origin_that_is_not_allowed_gets_nowhere(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        _site() as origin,
        serving(database_url, tmp_path, allowed_origins=("https://other.example",)) as server,
        _opened(origin) as page,
    ):
        await _begin(page, server, await _batch(server), tus={"retryDelays": []})
        head = await server.services.log.head()
        await page.evaluate("add('a.txt', 10, 1)")
        result = await page.evaluate("send()")

        assert result["successful"] == []
        assert len(result["failed"]) == 1
        assert await server.services.log.head() == head
