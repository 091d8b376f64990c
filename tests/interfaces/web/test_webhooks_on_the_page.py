"""Webhooks on the page, in a real browser: health, tests and redelivery."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from application.ports.auth import Scope
from application.webhooks.delivery import DELAYS
from tests.infrastructure.webhooks.harness import always, open_webhook_harness, receiving, thanks
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.web.browser import signed_in


async def say(page: Page, button: str, yes: str, reason: str | None = None) -> None:
    await page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    if reason is not None:
        await dialog.get_by_role("textbox").fill(reason)
    await dialog.get_by_role("button", name=yes).click()


@pytest.mark.options(allow_private_addresses=True)
async def test_an_operator_tests_a_webhook_redelivers_to_it_disables_and_enables_it(
    database_url: str, feed: FeedHarness, browser: Browser
) -> None:
    async with (
        open_webhook_harness(database_url) as harness,
        receiving() as receiver,
        signed_in(browser, feed, scope=Scope.OPERATOR) as page,
    ):
        await harness.open()
        await page.goto(f"{feed.address}/#/webhooks")
        await expect(page.get_by_text("No webhooks")).to_be_visible()
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


@pytest.mark.options(allow_private_addresses=True)
async def test_every_failed_delivery_is_sent_again(
    database_url: str, feed: FeedHarness, browser: Browser
) -> None:
    async with (
        open_webhook_harness(database_url) as harness,
        receiving(always(503)) as receiver,
        signed_in(browser, feed, scope=Scope.OPERATOR) as page,
    ):
        await harness.open()
        hook = await harness.hook(receiver.url, "batch.started", owner="default")
        await harness.batch(owner="default")
        position = await feed.log.head()
        for number, delay in enumerate(DELAYS, start=1):
            await harness.tried(hook, position, number)
            harness.skip(delay)
        await harness.ended(hook, position)
        receiver.answer = thanks
        await page.goto(f"{feed.address}/#/webhooks/{hook.id}")
        deliveries = page.get_by_role("list", name="Deliveries").get_by_role("listitem")
        await expect(deliveries).to_contain_text("Failed")
        await say(page, "Redeliver failed", "Redeliver")
        await expect(deliveries).to_contain_text("Delivered")
        await expect(page.get_by_role("button", name="Redeliver failed")).to_be_disabled()
        await deliveries.get_by_role("link", name="View event").click()
        await expect(page.locator(".event[aria-selected=true]")).to_contain_text("started")
