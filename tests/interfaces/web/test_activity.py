"""The activity of a batch on the page, in a real browser, equals that of the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from application.ports.auth import Scope
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchPaused,
    BatchProgressed,
    BatchSealed,
)
from domain.batch.state import Outcome, percent_of
from domain.upload.state import UploadState
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.web.batch_fixture import BatchFixture
from tests.interfaces.web.browser import signed_in
from tests.support import eventually

SIZE = 1_000_000


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def counted(
    scene: BatchFixture,
    counts: dict[str, int],
    *,
    seconds_ago: float = 0,
    arrived: float | None = None,
) -> None:
    """The orchestrator's count of a batch whose files have this state."""
    states = {UploadState(state): count for state, count in counts.items()}
    received = SIZE // 2 if arrived is not None else 0
    event = BatchProgressed(
        at=ago(seconds_ago),
        by="orchestrator",
        counts=states,
        bytes_received=received,
        bytes_total=SIZE,
        percent=percent_of(states, received, SIZE),
        through=1,
        arrived_at=None if arrived is None else ago(arrived),
    )
    await scene.record(scene.id, event)


async def start_batch(feed: FeedHarness, label: str) -> BatchFixture:
    return await BatchFixture.started(feed.log, label, minutes_ago=30)


async def batches_of_every_kind(feed: FeedHarness) -> dict[str, UUID]:
    """Return one batch for each activity and a cancelled one, by their text on the page."""
    made = {}
    scene = await start_batch(feed, "gone sender")
    await counted(scene, {"transferring": 1, "registered": 9}, seconds_ago=900, arrived=900)
    made["Stalled"] = scene.id
    scene = await start_batch(feed, "none arrived")
    await counted(scene, {"registered": 100_000}, seconds_ago=900)
    made["Waiting for files"] = scene.id
    scene = await start_batch(feed, "not sealed")
    await counted(scene, {"completed": 5}, seconds_ago=900, arrived=900)
    made["Waiting for seal"] = scene.id
    scene = await start_batch(feed, "all retry")
    await counted(scene, {"retry_scheduled": 5}, seconds_ago=900, arrived=900)
    made["Waiting for retry"] = scene.id
    scene = await start_batch(feed, "at work")
    await counted(scene, {"processing": 1, "completed": 4}, seconds_ago=900, arrived=900)
    made["Processing"] = scene.id
    scene = await start_batch(feed, "arriving")
    await counted(scene, {"transferring": 2, "registered": 3}, arrived=0)
    made["Receiving"] = scene.id
    scene = await start_batch(feed, "held")
    await counted(scene, {"queued": 5}, arrived=0)
    await scene.record(scene.id, BatchPaused(at=ago(60), by="key:studio"))
    made["Paused"] = scene.id
    scene = await start_batch(feed, "called off")
    await counted(scene, {"registered": 20}, seconds_ago=99)
    ended = {UploadState.CANCELLED: 20}
    await scene.record(
        scene.id,
        BatchCancelled(at=ago(90), by="key:studio", reason="no"),
        BatchCompleted(
            at=ago(89), by="orchestrator", outcome=Outcome.CANCELLED, counts=ended, duration=9.0
        ),
    )
    made["Cancelled"] = scene.id
    return made


async def api(feed: FeedHarness, path: str) -> Any:
    key = await feed.key("default", Scope.VIEWER)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(feed.address, headers=headers) as session,
        session.get(path) as answer,
    ):
        assert answer.status == 200
        return await answer.json()


async def until_there(locator: Locator, *, seconds: float) -> bool:
    try:
        await expect(locator).to_be_visible(timeout=1000 * seconds)
    except AssertionError:
        return False
    return True


def card_of(page: Page, batch: UUID) -> Locator:
    return page.locator(f'[data-batch="{batch}"]')


async def test_every_batch_is_called_what_it_is_doing(feed: FeedHarness, browser: Browser) -> None:
    made = await batches_of_every_kind(feed)
    await feed.projected()
    async with signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await page.goto(feed.address)
        for word, batch in made.items():
            chip = card_of(page, batch).locator(".chip")
            await expect(chip).to_have_text(word)
        await expect(page.locator("body")).not_to_contain_text("Running")
        stalled = card_of(page, made["Stalled"])
        await expect(stalled).to_contain_text("last activity 15 min ago")

        for word, batch in made.items():
            shown = await api(feed, f"/v1/batches/{batch}")
            expected = None if word == "Cancelled" else word.lower().replace(" ", "_")
            assert shown["activity"] == expected
        await page.goto(f"{feed.address}/#/batches/{made['Stalled']}")
        await expect(page.locator(".heading .chip")).to_have_text("Stalled")
        await expect(page.get_by_text("No activity since")).to_be_visible()


async def test_a_cancelled_batch_is_no_full_green_bar(feed: FeedHarness, browser: Browser) -> None:
    batch = (await batches_of_every_kind(feed))["Cancelled"]
    await feed.projected()
    async with signed_in(browser, feed) as page:
        await page.goto(feed.address)
        card = card_of(page, batch)
        await expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "0")
        await expect(card.locator(".percent")).to_have_text("0 %")
        accent, fill = await page.evaluate(
            """(bar) => {
                      const probe = document.createElement("i");
                      probe.style.color = "var(--accent)";
                      document.body.append(probe);
                      return [getComputedStyle(probe).color,
                              getComputedStyle(bar.firstChild).backgroundColor];
                    }""",
            await card.get_by_role("progressbar").element_handle(),
        )
        assert fill != accent
    assert (await api(feed, f"/v1/batches/{batch}"))["percent"] == 0.0


async def test_a_transfer_that_stops_is_stalled_by_time_alone(
    feed: FeedHarness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.views.STALLED_AFTER", timedelta(seconds=8))
    scene = await start_batch(feed, "Summer")
    async with signed_in(browser, feed) as page:
        await page.goto(feed.address)
        chip = card_of(page, scene.id).locator(".chip")

        async def arrives() -> bool:
            """Retry if this machine showed the activity too late for it to hold."""
            await counted(scene, {"transferring": 1}, arrived=0)
            await feed.projected()
            shown = chip.filter(has_text="Receiving")
            return await until_there(shown, seconds=6)

        await eventually(arrives)
        head = await feed.log.head()

        await expect(chip).to_have_text("Stalled")

        assert await feed.log.head() == head
        shown = await api(feed, f"/v1/batches/{scene.id}")
        assert shown["activity"] == "stalled"
        assert shown["activity_since"] == shown["arrived_at"]
        then = await api(feed, f"/v1/batches/{scene.id}?at={head}")
        assert then["activity"] == "receiving"
        await counted(scene, {"completed": 1}, arrived=0)
        await expect(chip).to_have_text("Waiting for seal")
        await scene.record(scene.id, BatchSealed(at=ago(0), by="key:studio"))
        await expect(chip).to_have_text("Processing")
