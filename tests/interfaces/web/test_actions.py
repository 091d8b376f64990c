"""Actions of an operator on the page, in a real browser: those the state allows, and refusals."""

from __future__ import annotations

from uuid import UUID

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from application.ports.auth import Scope
from domain.batch.events import BatchCancelled, BatchPaused
from domain.event import topic_of
from domain.upload.events import UploadQuarantined
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.web.batch_fixture import BatchFixture
from tests.interfaces.web.browser import signed_in

SIZE = 1_000_000


async def answer(page: Page, yes: str, text: str | None = None) -> None:
    dialog = page.get_by_role("dialog")
    if text is not None:
        await dialog.get_by_role("textbox").fill(text)
    await dialog.get_by_role("button", name=yes).click()


async def test_an_operator_pauses_resumes_ranks_and_cancels_a_batch(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
    await scene.progress()
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        heading = page.locator(".heading")
        await page.get_by_role("button", name="Pause").click()
        await expect(heading).to_contain_text("Paused")
        await page.get_by_role("button", name="Resume").click()
        await expect(heading).to_contain_text("Waiting for seal")

        await page.get_by_role("button", name="Priority").click()
        priority = page.get_by_role("dialog").get_by_role("spinbutton")
        await expect(priority).to_have_value("0")
        await priority.fill("7")
        await answer(page, "Set priority")
        await expect(heading).to_contain_text("priority 7")
        await page.get_by_role("button", name="Priority").click()
        await answer(page, "Back")

        await page.get_by_role("button", name="Seal").click()
        await answer(page, "Seal")
        await expect(page.get_by_role("button", name="Seal")).to_be_disabled()
        await page.get_by_role("button", name="Cancel").click()
        await answer(page, "Cancel the batch", "sent by mistake")
        await expect(heading).to_contain_text("Cancelling")
        await expect(page.get_by_role("button", name="Pause")).to_be_disabled()
    *_, last = (recorded.event for recorded in await feed.log.read(0, limit=100))
    assert isinstance(last, BatchCancelled)
    assert last.reason == "sent by mistake"
    assert last.by.startswith("key:")


async def test_an_operator_retries_a_failed_upload_and_releases_a_quarantined_one(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    await scene.add("failed.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
    held = UploadQuarantined(**scene.at(54), by="worker:ember", step="antivirus", reason="Eicar")
    life = (*scene.queued(SIZE), scene.attempt(1, 52), held)
    await scene.add("held.jpg", SIZE, life)
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        detail = page.get_by_role("complementary", name="Upload")
        failed = page.get_by_role("option").filter(has_text="failed.jpg")
        await failed.click()
        await detail.get_by_role("button", name="Retry").click()
        await expect(failed).to_contain_text("Received")
        await expect(detail.get_by_role("button", name="Retry")).to_be_disabled()

        quarantined = page.get_by_role("option").filter(has_text="held.jpg")
        await quarantined.click()
        await detail.get_by_role("button", name="Release").click()
        await answer(page, "Release", "our own test file")
        await expect(quarantined).to_contain_text("Completed")


async def test_a_batch_paused_by_the_orchestrator_shows_the_reason(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    why = "9 uploads failed, more than 25% of those processed"
    await scene.record(scene.id, BatchPaused(**scene.at(60), by="orchestrator", reason=why))
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await expect(page.get_by_text(f"Paused: {why}")).to_be_visible()
        await page.get_by_role("button", name="Resume").click()
        await expect(page.get_by_text(why)).to_be_hidden()


async def test_a_refusal_of_the_server_is_shown_in_its_words(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        pause = page.get_by_role("button", name="Pause")
        await expect(pause).to_be_enabled()
        await feed.hold()  # the page does not hear of what comes now
        cancelled = BatchCancelled(**scene.at(60), by="key:other", reason="over")
        await scene.record(scene.id, cancelled)
        await pause.click()
        await expect(page.get_by_role("alert")).to_contain_text("the batch is cancelling")


async def test_a_viewer_sees_no_buttons_but_may_take_the_report(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
    await scene.progress()
    async with signed_in(browser, feed) as page:
        async with page.expect_response("**/v1/principal"):
            await page.goto(f"{feed.address}/#/batches/{scene.id}")
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Failed only (CSV)").click()
        report = await (await download.value).path()
        assert "a.jpg" in report.read_text()
        assert await page.get_by_role("button", name="Pause").count() == 0


async def double_click(page: Page, button: Locator) -> None:
    """Two clicks at the same place, as fast as a person's."""
    await expect(button).to_be_enabled()
    box = await button.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    await page.mouse.move(x, y)
    for _ in range(2):
        await page.mouse.down()
        await page.mouse.up()
        await page.wait_for_timeout(250)


async def places(page: Page) -> list[tuple[str, float, float]]:
    found = []
    for button in await page.locator(".actions button:visible").all():
        box = await button.bounding_box()
        assert box is not None
        found.append((await button.inner_text(), box["x"], box["y"]))
    return found


async def recorded_types(feed: FeedHarness, batch: UUID) -> list[str]:
    return [topic_of(event.event) for event in await feed.log.stream(batch)]


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("Retry failed", ["batch.reopened", "batch.retry_requested"]),
        ("Pause", ["batch.paused"]),
    ],
)
async def test_a_second_click_at_the_same_place_does_nothing_else(
    feed: FeedHarness, browser: Browser, name: str, recorded: list[str]
) -> None:
    scene = await BatchFixture.started(feed.log)
    await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
    if name == "Pause":
        await scene.progress()
    else:
        await scene.finish(1)
    before = await recorded_types(feed, scene.id)
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        button = page.get_by_role("button", name=name)
        await expect(button).to_be_enabled()
        at_first = await places(page)

        await double_click(page, button)

        other = "Resume" if name == "Pause" else "Pause"
        await expect(page.get_by_role("button", name=other)).to_be_enabled()
        await expect(page.locator(".buttons").first).not_to_have_attribute("aria-busy", "true")
        assert await places(page) == at_first
        added = (await recorded_types(feed, scene.id))[len(before) :]
        assert added[: len(recorded)] == recorded
        assert set(added) == set(recorded)  # a slow second click may ask once more


async def test_an_action_in_flight_is_disabled_where_it_is_until_the_page_shows_what_came_of_it(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    await scene.add("a.jpg", SIZE, tuple(scene.queued(SIZE)))
    await scene.progress()
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        pause = page.get_by_role("button", name="Pause")
        await expect(pause).to_be_enabled()
        at_first = await places(page)
        await feed.hold()  # the response arrives before the feed delivers the change
        async with page.expect_response("**/pause"):
            await pause.click()

        for button in await page.locator(".actions button:visible").all():
            await expect(button).to_be_disabled()
        assert await places(page) == at_first
        await feed.resume()
        await expect(page.get_by_role("button", name="Resume")).to_be_enabled()
        await expect(pause).to_be_disabled()
        assert await places(page) == at_first


async def test_the_buttons_of_an_upload_keep_their_places(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    upload = await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
    await scene.finish(1)
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await page.get_by_role("option").filter(has_text="a.jpg").click()
        detail = page.get_by_role("complementary", name="Upload")
        await expect(detail).to_contain_text("Error")
        retry = detail.get_by_role("button", name="Retry")
        at_first = await retry.bounding_box()

        await double_click(page, retry)

        await expect(detail).not_to_contain_text("Error")
        await expect(detail.get_by_role("button", name="Cancel")).to_be_enabled()
        assert await retry.bounding_box() == at_first
        assert await page.get_by_role("dialog").count() == 0
        types = await recorded_types(feed, upload)
        assert types.count("upload.retry_requested") == 1
        assert types[-1] == "upload.retry_requested"
