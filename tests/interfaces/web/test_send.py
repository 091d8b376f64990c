"""Sending files from the page, in a real browser: whole folders, cuts, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest
from playwright.async_api import Browser, CDPSession, Locator, Page, expect

from application.ports.auth import Scope
from domain.batch.events import BatchSealed
from domain.ids import upload_id_for
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.web.batch_fixture import BatchFixture
from tests.interfaces.web.browser import signed_in
from tests.support import free_port

MIB = 2**20
LARGE = 30 * MIB  # half a minute at a mebibyte a second: time to look at it on its way


def folder(path: Path, **sizes: int) -> Path:
    """Write files of these sizes with different content."""
    path.mkdir(parents=True)
    for name, size in sizes.items():
        (path / f"{name}.bin").write_bytes(name.encode() * (size // len(name)))
    return path


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("option").filter(has_text=name)


async def choose(page: Page, path: Path) -> None:
    await page.locator("input[webkitdirectory]").set_input_files(path)


async def drop(page: Page, *paths: Path) -> None:
    """Drop real files and folders on the page, as a user does with a mouse."""
    session = await page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 600, "y": 300, "data": data}
        await session.send("Input.dispatchDragEvent", event)


class Line:
    """The line between a browser and the server, whose speed can be chosen."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session

    @classmethod
    async def of(cls, page: Page) -> Line:
        session = await page.context.new_cdp_session(page)
        await session.send("Network.enable")
        return cls(session)

    async def carries(self, rate: int) -> None:
        """Limit the upload rate in bytes a second; -1 is unlimited."""
        limits = {"offline": False, "latency": 0, "downloadThroughput": -1}
        limits["uploadThroughput"] = rate
        await self._session.send("Network.emulateNetworkConditions", limits)


async def stored(feed: FeedHarness, batch: UUID, path: str) -> bytes:
    upload = await feed.log.upload(upload_id_for(batch, path, feed.log.id_secret))
    assert upload.blob is not None
    return b"".join([chunk async for chunk in feed.parts.services.blobs.read(upload.blob)])


async def batch_on(page: Page) -> UUID:
    link = page.get_by_role("link", name="View batch")
    return UUID((await link.get_attribute("href") or "").rpartition("/")[2])


async def test_a_folder_is_sent_into_a_batch_of_its_own_and_sealed(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    album = folder(tmp_path / "album", lisbon=300_000, porto=0, faro=9)
    folder(album / "raw", sintra=2 * MIB)

    async with signed_in(browser, feed, scope=Scope.UPLOADER) as page:
        await page.goto(feed.address)
        await page.get_by_role("link", name="Upload", exact=True).click()
        await expect(page.get_by_role("button", name="Choose files")).to_be_visible()
        await drop(page, album)
        await expect(page.get_by_role("heading", name="4 files")).to_be_visible()
        await expect(page.get_by_label("Batch name")).to_have_value("album")
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(page.get_by_text("All files received")).to_be_visible()
        await expect(page.locator("#announcer")).to_contain_text("Sent: 4 files")
        batch = await batch_on(page)
        await page.get_by_role("link", name="View batch").click()
        await expect(page.get_by_role("heading", name="album")).to_be_visible()
        await expect(row(page, "sintra.bin")).to_contain_text("Received")
    assert await stored(feed, batch, "album/raw/sintra.bin") == b"sintra" * (2 * MIB // 6)
    assert await stored(feed, batch, "album/porto.bin") == b""
    sealed = [recorded.event for recorded in await feed.log.stream(batch)][-1]
    assert isinstance(sealed, BatchSealed)


async def test_files_join_an_open_batch_which_keeps_what_it_has(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    more = folder(tmp_path / "more", known=12, other=700, new=900)
    scene = await BatchFixture.started(feed.log)
    size = (more / "known.bin").stat().st_size
    await scene.add("known.bin", size, tuple(scene.completed(size)))
    await scene.add("other.bin", 3)
    await feed.projected()
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await page.get_by_role("link", name="Add files").click()
        await drop(page, *more.iterdir())
        await expect(page.get_by_label("Upload to")).to_have_value(str(scene.id))
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(row(page, "known.bin")).to_contain_text("Already uploaded")
        await expect(row(page, "new.bin")).to_contain_text("Sent")
        await expect(row(page, "other.bin")).to_contain_text("different file with this path")
        await expect(page.get_by_text("1 file rejected")).to_be_visible()
    assert await stored(feed, scene.id, "new.bin") == b"new" * 300
    assert (await feed.log.batch(scene.id)).state == "open"


async def test_a_reload_costs_nothing_that_had_arrived(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    album = folder(tmp_path / "album", lisbon=LARGE, porto=1000)
    async with signed_in(browser, feed, scope=Scope.UPLOADER) as page:
        offsets: list[int] = []
        page.on("request", lambda asked: _note_offset(asked.headers, offsets))
        await page.goto(f"{feed.address}/#/send")
        line = await Line.of(page)
        await line.carries(MIB)
        await choose(page, album)
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(row(page, "porto.bin")).to_contain_text("Sent")
        await expect(row(page, "lisbon.bin")).to_contain_text(re.compile(r"[1-9]\d*\.\d MB of"))
        batch = await batch_on(page)
        await page.reload()
        await line.carries(-1)
        await expect(page.get_by_text("was not finished")).to_be_visible()
        offsets.clear()
        await choose(page, album)
        await expect(page.get_by_label("Upload to")).to_have_value(str(batch))
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(row(page, "porto.bin")).to_contain_text("Already uploaded")
        await expect(page.get_by_text("All files received")).to_be_visible()
        await expect(row(page, "lisbon.bin")).to_contain_text("Sent")
        [offset] = offsets
        assert offset > 0
        await page.get_by_role("button", name="Upload more").click()
        await expect(page.get_by_role("button", name="Choose files")).to_be_visible()
        await expect(page.get_by_text("was not finished")).to_have_count(0)
    assert await stored(feed, batch, "album/lisbon.bin") == b"lisbon" * (LARGE // 6)


def _note_offset(headers: dict[str, str], offsets: list[int]) -> None:
    if "upload-offset" in headers:
        offsets.append(int(headers["upload-offset"]))


async def test_an_upload_resumes_after_a_pause_and_a_restart_of_the_server(
    database_url: str, tmp_path: Path, browser: Browser
) -> None:
    album = folder(tmp_path / "album", lisbon=LARGE)
    port = free_port()
    async with open_feed(database_url, tmp_path, port=port) as feed:
        # The context outlives this server: it is closed with the browser.
        visitor = signed_in(browser, feed, scope=Scope.UPLOADER)
        page = await visitor.__aenter__()
        await page.goto(f"{feed.address}/#/send")
        line = await Line.of(page)
        await line.carries(MIB)
        await choose(page, album)
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(row(page, "lisbon.bin")).to_contain_text(re.compile(r"\d MB of"))
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_text("paused. Received data is kept.")).to_be_visible()
        await page.get_by_role("button", name="Resume").click()
        await expect(row(page, "lisbon.bin")).to_contain_text("Sending")
    await expect(page.get_by_text("Retrying")).to_be_visible()
    await line.carries(-1)
    async with open_feed(database_url, tmp_path, port=port) as feed:
        await expect(page.get_by_text("All files received")).to_be_visible()
        batch = await batch_on(page)
        assert await stored(feed, batch, "album/lisbon.bin") == b"lisbon" * (LARGE // 6)
        await visitor.__aexit__(None, None, None)


@pytest.mark.options(max_file_size=1000)
async def test_files_refused_by_the_server_are_listed_with_the_reason(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    album = folder(tmp_path / "album", large=5000, small=500)
    async with signed_in(browser, feed, scope=Scope.UPLOADER) as page:
        await page.goto(f"{feed.address}/#/send")
        await choose(page, album)
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(row(page, "small.bin")).to_contain_text("Sent")
        await expect(row(page, "large.bin")).to_contain_text("1000")
        why = page.get_by_role("region", name="Rejected files by reason")
        await expect(why).to_contain_text("at most 1000 bytes")
        batch = await batch_on(page)
        assert (await feed.log.batch(batch)).state == "open"
        await page.get_by_role("button", name="Seal without rejected files").click()
        await expect(
            page.get_by_role("button", name="Seal without rejected files")
        ).to_be_disabled()
        feed.log.forget(batch)
        assert (await feed.log.batch(batch)).state == "sealed"


async def test_a_viewer_is_not_offered_to_upload_files(feed: FeedHarness, browser: Browser) -> None:
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/send")
        await expect(page.get_by_text("Your key cannot upload")).to_be_visible()
        ways = page.get_by_role("navigation")
        await expect(ways.get_by_role("link", name="Batches")).to_be_visible()
        await expect(ways.get_by_role("link")).to_have_count(1)


async def test_a_key_for_one_batch_sends_into_that_one(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    album = folder(tmp_path / "album", faro=900)
    scene = await BatchFixture.started(feed.log)
    await feed.projected()
    limited = signed_in(browser, feed, scope=Scope.UPLOADER, batch=scene.id)
    async with limited as page:
        await page.goto(f"{feed.address}/#/send")
        await choose(page, album)
        await expect(page.get_by_label("Upload to")).to_have_value(str(scene.id))
        assert await page.get_by_label("Upload to").locator("option").count() == 1
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(page.get_by_text("All files received")).to_be_visible()
    assert await stored(feed, scene.id, "album/faro.bin") == b"faro" * 225


@pytest.mark.options(max_file_size=1000)
async def test_the_page_reports_no_arrival_where_nothing_arrived(
    feed: FeedHarness, browser: Browser, tmp_path: Path
) -> None:
    album = folder(tmp_path / "album", large=5000)
    async with signed_in(browser, feed, scope=Scope.UPLOADER) as page:
        await page.goto(f"{feed.address}/#/send")
        await choose(page, album)
        await page.get_by_role("button", name="Upload", exact=True).click()
        await expect(page.get_by_text("1 file rejected; no files received")).to_be_visible()
        bar = page.get_by_role("progressbar", name="Sent")
        await expect(bar).to_have_attribute("aria-valuenow", "0")
        await expect(page.locator("body")).not_to_contain_text("All files received")
