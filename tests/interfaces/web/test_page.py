"""The page in a real browser: live changes, also through a restart of the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from domain.ids import upload_id_for
from domain.upload.events import AttemptSucceeded, UploadCompleted, UploadFailed
from interfaces.feed.connection import FeedLimits
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.web.batch_fixture import BY, WORKERS, BatchFixture
from tests.interfaces.web.browser import signed_in
from tests.support import free_port

SIZE = 1_000_000


async def test_a_batch_is_seen_to_begin_to_stumble_to_recover_and_to_survive_a_restart(
    database_url: str, tmp_path: Path, browser: Browser
) -> None:
    port = free_port()
    async with open_feed(database_url, tmp_path, port=port) as feed:
        # The context outlives this server: it is closed with the browser.
        visitor = signed_in(browser, feed)
        page = await visitor.__aenter__()
        frames = _frames_of(page)
        await page.goto(feed.address)
        await expect(page.get_by_text("No batches yet")).to_be_visible()

        scene = await BatchFixture.started(feed.log, minutes_ago=0.1)
        card = page.locator("li.card", has_text="Summer")
        await expect(card).to_contain_text("Waiting for files")
        photo = await scene.add("a.jpg", SIZE, tuple(scene.transferring(SIZE, 0.4)))
        await scene.progress()
        await expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "20")
        await expect(page.locator("#announcer")).to_contain_text("Summer: Receiving")

        await card.get_by_role("link", name="Summer").click()
        row = page.get_by_role("option").filter(has_text="a.jpg")
        await expect(row).to_contain_text("Transferring")
        await scene.live(photo, *list(scene.queued(SIZE))[1:], scene.attempt(1, 2))
        await expect(row).to_contain_text("Processing")
        await page.get_by_role("listbox").focus()
        await page.keyboard.press("ArrowDown")
        detail = page.get_by_role("complementary", name="Upload")
        await expect(detail).to_contain_text("Attempt 1 running")
        await scene.live(photo, scene.failure(1, 3, retry_in=60))
        await expect(row).to_contain_text("Retry scheduled")
        await expect(detail).to_contain_text("Attempt 1 failed")
        await expect(detail).to_contain_text("connection reset by peer")
        await expect(detail).to_contain_text("Next attempt")

    await expect(page.get_by_role("status")).to_contain_text("Reconnecting")
    async with open_feed(database_url, tmp_path, port=port) as feed:
        scene.log = feed.log
        done = AttemptSucceeded(**scene.at(9), by=WORKERS[0], number=2, duration=0.5)
        completed = UploadCompleted(**scene.at(9), by=WORKERS[0])
        await scene.live(photo, scene.attempt(2, 8), done, completed)
        await scene.finish(1)
        await expect(page.get_by_role("status")).to_have_text("Live")
        await expect(row).to_contain_text("Completed")
        await expect(detail).to_contain_text("Attempt 2 succeeded")
        await expect(page.locator(".heading")).to_contain_text("Succeeded")
        # It went on where it was cut: two subscriptions, no third snapshot.
        snapshots = [frame for frame in frames if frame["type"] == "snapshot"]
        assert len(snapshots) == 2
        await visitor.__aexit__(None, None, None)


async def test_thousands_of_uploads_are_a_few_elements(feed: FeedHarness, browser: Browser) -> None:
    scene = await BatchFixture.started(feed.log, "Many")
    await asyncio.gather(*(scene.add(f"{number:05}.bin", 10) for number in range(3000)))
    await scene.add("zz-broken.bin", SIZE, tuple(scene.failed(SIZE, 1)))
    await scene.progress()
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        options = page.get_by_role("option")
        await expect(page.get_by_role("button", name="All")).to_contain_text("3,001")
        await expect(options.first).to_contain_text("zz-broken.bin")
        assert await options.count() < 60

        listbox = page.get_by_role("listbox")
        await listbox.focus()
        await page.keyboard.press("End")
        await expect(options.filter(has_text="02999.bin")).to_be_visible()
        assert await options.count() < 60
        await page.get_by_role("button", name="SHA-256 differs").click()
        await expect(options).to_have_count(1)
        await page.get_by_role("button", name="Waiting").click()
        await expect(options.first).to_contain_text("00000.bin")
        for number in (17, 18):
            cut = UploadFailed(**scene.at(9), by=BY, step="thumbnail", message=f"cut {number}")
            path = f"{number:05}.bin"
            await scene.live(upload_id_for(scene.id, path, feed.log.id_secret), cut)
        await page.get_by_role("button", name="thumbnail: cut #").click()
        await expect(options).to_have_count(2)


async def test_an_anonymous_visitor_sees_how_to_sign_in(
    feed: FeedHarness, browser: Browser
) -> None:
    page = await browser.new_page()
    await page.goto(feed.address)
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await expect(page.get_by_role("status")).to_have_text("Not signed in")
    await expect(page.get_by_text("uptrail serve")).to_be_visible()
    await page.context.add_cookies(
        [{"name": "uptrail_session", "value": "stale", "url": feed.address}]
    )
    await page.reload()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.mark.options(limits=FeedLimits(credential_check_interval=0.1))
async def test_the_page_asks_to_sign_in_again_when_the_session_ends(
    feed: FeedHarness, browser: Browser
) -> None:
    async with signed_in(browser, feed) as page:
        await page.goto(feed.address)
        await expect(page.get_by_role("status")).to_have_text("Live")
        [cookie] = await page.context.cookies()
        await feed.hub.keys.close_session(cookie["value"])
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_batch_of_another_owner_is_not_shown(feed: FeedHarness, browser: Browser) -> None:
    scene = await BatchFixture.started(feed.log, "Secret", owner="rival")
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await expect(page.get_by_text("No such batch")).to_be_visible()
        assert "Secret" not in await page.content()


def _frames_of(page: Page) -> list[dict[str, Any]]:
    """Collect the frames that the WebSockets of the page receive from now on."""
    frames: list[dict[str, Any]] = []
    page.on(
        "websocket",
        lambda opened: opened.on("framereceived", lambda text: frames.append(json.loads(text))),
    )
    return frames
