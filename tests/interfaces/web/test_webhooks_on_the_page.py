"""Webhooks on the page, in a real browser: how they fare, tests, and telling again."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Page, expect

from application.ports.auth import Scope
from application.webhooks.delivery import DELAYS
from tests.infrastructure.webhooks.harness import always, open_webhook_harness, receiving, thanks
from tests.interfaces.feed.harness import open_feed
from tests.interfaces.web.browser import chromium, opened_browser, signed_in


async def say(page: Page, button: str, yes: str, reason: str | None = None) -> None:
    await page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    if reason is not None:
        await dialog.get_by_role("textbox").fill(reason)
    await dialog.get_by_role("button", name=yes).click()


async def test_an_operator_tests_a_webhook_tells_it_again_and_turns_it_off_and_on(
    database_url: str, tmp_path: Path
) -> None:
    chromium()

    async with (
        open_feed(database_url, tmp_path, allow_private_addresses=True) as on,
        open_webhook_harness(database_url) as harness,
        receiving() as receiver,
        opened_browser() as browser,
        signed_in(browser, on, scope=Scope.OPERATOR) as page,
    ):
        await harness.open()
        await page.goto(f"{on.address}/#/webhooks")
        await expect(page.get_by_text("No deliveries")).to_be_visible()
        await harness.hook(receiver.url, "batch.completed", owner="default", description="album")
        await harness.hook("https://example.com/theirs", owner="rival")
        card = page.locator("li.card")
        await expect(card).to_have_count(1)
        await expect(card).to_contain_text("Enabled")
        await card.get_by_role("link").click()

        state = page.locator(".heading")
        deliveries = page.get_by_role("list", name="Deliveries").get_by_role("listitem")
        await page.get_by_role("button", name="Send a test").click()
        await expect(deliveries).to_contain_text("responded 204")
        await deliveries.get_by_role("button", name="Redeliver").dblclick()
        await expect(deliveries).to_contain_text("2 attempts")
        await expect(deliveries).to_contain_text("Delivered")

        receiver.answer = always(503, "not today")
        await harness.complete(await harness.batch(owner="default"))
        await expect(state).to_contain_text("Failing")
        await expect(deliveries.first).to_contain_text("Retrying")
        await expect(deliveries.first).to_contain_text("next attempt in")
        again = deliveries.first.get_by_role("button", name="Redeliver")
        await expect(again).to_be_disabled()  # in its place: it is pending already
        await deliveries.first.get_by_text("Response").click()
        await expect(page.get_by_text("not today")).to_be_visible()

        await say(page, "Disable", "Disable", "too loud")
        await expect(state).to_contain_text("Disabled")
        await expect(page.locator(".facts")).to_contain_text("too loud")
        receiver.answer = thanks
        await page.get_by_role("button", name="Enable").click()
        await expect(deliveries.first).to_contain_text("Delivered")
        await expect(state).to_contain_text("Enabled")


async def test_what_was_given_up_is_all_told_again(database_url: str, tmp_path: Path) -> None:
    chromium()

    async with (
        open_feed(database_url, tmp_path, allow_private_addresses=True) as on,
        open_webhook_harness(database_url) as harness,
        receiving(always(503)) as receiver,
        opened_browser() as browser,
        signed_in(browser, on, scope=Scope.OPERATOR) as page,
    ):
        await harness.open()
        hook = await harness.hook(receiver.url, "batch.started", owner="default")
        await harness.batch(owner="default")
        position = await on.log.head()
        for number, delay in enumerate(DELAYS, start=1):
            await harness.tried(hook, position, number)
            harness.skip(delay)
        await harness.ended(hook, position)
        receiver.answer = thanks
        await page.goto(f"{on.address}/#/webhooks/{hook.id}")
        deliveries = page.get_by_role("list", name="Deliveries").get_by_role("listitem")
        await expect(deliveries).to_contain_text("Failed")
        await say(page, "Redeliver failed", "Redeliver")
        await expect(deliveries).to_contain_text("Delivered")
        await expect(page.get_by_role("button", name="Redeliver failed")).to_be_disabled()
        await deliveries.get_by_role("link", name="View event").click()
        await expect(page.locator(".event[aria-selected=true]")).to_contain_text("started")
