"""The history on the page, in a real browser: each event, and the state as of then."""

from __future__ import annotations

import asyncio
import re

from playwright.async_api import Browser, Page, expect

from domain.batch.events import BatchPaused, BatchRenamed
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.web.batch_fixture import BatchFixture
from tests.interfaces.web.browser import signed_in

SIZE = 1_000_000


async def shows(page: Page, event: str) -> None:
    """The event is the chosen one, in the list and to those who hear the slider."""
    chosen = page.locator(".event[aria-selected=true]")
    await expect(chosen).to_have_count(1)
    await expect(chosen).to_contain_text(event)
    slider = page.get_by_role("slider", name="Position")
    await expect(slider).to_have_attribute("aria-valuetext", re.compile(f"^{event}"))


async def test_the_keyboard_steps_through_a_batch_and_shows_its_state_as_of_each_event(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    photo = await scene.add("a.jpg", SIZE, tuple(scene.transferring(SIZE, 0.4)))
    await scene.progress()
    await scene.live(photo, *list(scene.completed(SIZE))[1:])
    await scene.finish(1)
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await page.get_by_role("link", name="History", exact=True).click()
        await shows(page, "Batch completed")
        then = page.get_by_role("complementary", name="State at this position")
        await expect(then).to_contain_text("Succeeded")

        slider = page.get_by_role("slider", name="Position")
        await slider.focus()
        for event in ("Sealed", "Counted", "Completed", "Attempt succeeded"):
            await page.keyboard.press("ArrowLeft")
            await shows(page, event)
        await expect(then).to_contain_text("Processing")
        await expect(then).to_contain_text("20 %")
        await expect(then.get_by_role("heading", name="a.jpg")).to_be_visible()
        await expect(then).to_contain_text("Processing")
        assert "?at=" in page.url

        await page.reload()
        await shows(page, "Attempt succeeded")
        await page.get_by_role("slider").focus()
        await page.keyboard.press("ArrowRight")
        await shows(page, "Completed")
        await page.get_by_role("button", name="First event").click()
        await shows(page, "Batch started")
        await expect(then).to_contain_text("Waiting for files")
        await expect(then.get_by_role("heading", name="a.jpg")).to_be_hidden()
        await page.get_by_role("option").filter(has_text="Progressed").click()
        await shows(page, "Progressed")
        await expect(then).to_contain_text("400 KB of 1.0 MB")
        await page.get_by_role("button", name="Now").click()
        await shows(page, "Batch completed")


async def test_new_events_are_added_and_move_only_a_page_that_shows_the_present(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    photo = await scene.add("a.jpg", SIZE, tuple(scene.transferring(SIZE, 0.4)))
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await page.get_by_role("option").filter(has_text="a.jpg").click()
        detail = page.get_by_role("complementary", name="Upload")
        await detail.get_by_role("link", name="History").click()
        await shows(page, "Progressed")
        await expect(page.get_by_role("status")).to_have_text("Live")
        await scene.live(photo, *list(scene.queued(SIZE))[1:])
        await shows(page, "Queued")
        await page.get_by_role("button", name="Earlier").click()
        await shows(page, "Received")
        await scene.live(photo, scene.attempt(1, 52))
        await expect(page.get_by_role("option")).to_have_count(5)
        await shows(page, "Received")
        then = page.get_by_role("complementary", name="State at this position")
        await expect(then).to_contain_text("Received")


async def test_a_rename_changes_the_name_on_the_page_and_is_in_the_history(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log)
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}")
        await expect(page.get_by_role("heading", name="Summer")).to_be_visible()
        await scene.record(scene.id, BatchRenamed(**scene.at(9), by="key:x", label="Winter"))
        await expect(page.get_by_role("heading", name="Winter")).to_be_visible()
        await page.get_by_role("link", name="History", exact=True).click()
        await shows(page, "Batch renamed")
        chosen = page.locator(".event[aria-selected=true]")
        await expect(chosen).to_contain_text("Winter")
        await page.get_by_role("button", name="First event").click()
        await shows(page, "Batch started")
        await expect(chosen.locator(".note")).to_have_text(re.compile("^Summer, pipeline "))


async def test_a_part_of_the_details_is_left_out_if_its_field_is_empty(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log, "")
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}/history")
        await shows(page, "Batch started")
        note = page.locator(".event[aria-selected=true] .note")
        await expect(note).to_have_text(re.compile("^pipeline "))


async def test_a_long_history_is_loaded_around_the_moment(
    feed: FeedHarness, browser: Browser
) -> None:
    scene = await BatchFixture.started(feed.log, "Many")
    await asyncio.gather(*(scene.add(f"{number:04}.bin", 10) for number in range(700)))
    why = "9 uploads failed"
    await scene.record(scene.id, BatchPaused(**scene.at(9), by="orchestrator", reason=why))
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(f"{feed.address}/#/batches/{scene.id}/history")
        await shows(page, "Paused")
        options = page.get_by_role("option")
        await expect(options.last).to_have_attribute("aria-setsize", "200")
        assert await options.count() < 60
        await page.get_by_role("slider").focus()
        await page.keyboard.press("Home")
        await page.keyboard.press("ArrowRight")
        await page.wait_for_url("**/history?at=2")
        await shows(page, "Registered")
        await page.keyboard.press("ArrowLeft")
        await shows(page, "Batch started")
        await page.get_by_role("listbox").focus()
        await page.keyboard.press("End")
        await expect(options.last).to_have_attribute("aria-setsize", "401")
        await page.get_by_role("slider").fill("350")
        await shows(page, "Registered")
        then = page.get_by_role("complementary", name="State at this position")
        await expect(then.locator("[data-position='350']")).to_have_count(2)
