"""What an operator does on the page, in a real browser: what fits the state, and refusals."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Page, expect

from application.ports.keys import Scope
from domain.batch.events import BatchCancelled, BatchPaused
from domain.upload.events import UploadQuarantined
from tests.interfaces.feed.stage import stage
from tests.interfaces.web.browser import chromium, opened_browser, signed_in
from tests.interfaces.web.scenes import Scene
from tests.support import run

SIZE = 1_000_000


async def answer(page: Page, yes: str, text: str | None = None) -> None:
    dialog = page.get_by_role("dialog")
    if text is not None:
        await dialog.get_by_role("textbox").fill(text)
    await dialog.get_by_role("button", name=yes).click()


def test_an_operator_pauses_resumes_ranks_and_cancels_a_batch(
    database_url: str, tmp_path: Path
) -> None:
    chromium()

    async def story() -> None:
        async with stage(database_url, tmp_path) as on, opened_browser() as browser:
            scene = Scene(on.log, "Summer", minutes_ago=1)
            await scene.start()
            await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
            await scene.progress()
            async with signed_in(browser, on, scope=Scope.OPERATOR) as page:
                await page.goto(f"{on.address}/#/batches/{scene.id}")
                heading = page.locator(".heading")
                await page.get_by_role("button", name="Pause").click()
                await expect(heading).to_contain_text("Paused")
                await page.get_by_role("button", name="Resume").click()
                await expect(heading).to_contain_text("Running")

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
                await expect(page.get_by_role("button", name="Seal")).to_have_count(0)
                await page.get_by_role("button", name="Cancel").click()
                await answer(page, "Cancel the batch", "sent by mistake")
                await expect(heading).to_contain_text("Cancelling")
                await expect(page.get_by_role("button", name="Pause")).to_have_count(0)
            *_, last = (recorded.event for recorded in await on.log.read(0, limit=100))
            assert isinstance(last, BatchCancelled)
            assert last.reason == "sent by mistake"
            assert last.by.startswith("key:")

    run(story())


def test_an_operator_retries_a_failed_upload_and_releases_a_quarantined_one(
    database_url: str, tmp_path: Path
) -> None:
    chromium()

    async def story() -> None:
        async with stage(database_url, tmp_path) as on, opened_browser() as browser:
            scene = Scene(on.log, "Summer", minutes_ago=1)
            await scene.start()
            await scene.add("failed.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
            held = UploadQuarantined(
                **scene.at(54), by="worker:ember", step="antivirus", reason="Eicar"
            )
            life = (*scene.queued(SIZE), scene.attempt(1, 52), held)
            await scene.add("held.jpg", SIZE, life)
            async with signed_in(browser, on, scope=Scope.OPERATOR) as page:
                await page.goto(f"{on.address}/#/batches/{scene.id}")
                detail = page.get_by_role("complementary", name="Upload")
                failed = page.get_by_role("option").filter(has_text="failed.jpg")
                await failed.click()
                await detail.get_by_role("button", name="Retry").click()
                await expect(failed).to_contain_text("Received")
                await expect(detail.get_by_role("button", name="Retry")).to_have_count(0)

                quarantined = page.get_by_role("option").filter(has_text="held.jpg")
                await quarantined.click()
                await detail.get_by_role("button", name="Release").click()
                await answer(page, "Release", "our own test file")
                await expect(quarantined).to_contain_text("Completed")

    run(story())


def test_a_batch_that_the_orchestrator_paused_says_why(database_url: str, tmp_path: Path) -> None:
    chromium()

    async def story() -> None:
        async with stage(database_url, tmp_path) as on, opened_browser() as browser:
            scene = Scene(on.log, "Summer", minutes_ago=1)
            await scene.start()
            why = "9 uploads failed, more than 25% of those processed"
            await scene.record(scene.id, BatchPaused(**scene.at(60), by="orchestrator", reason=why))
            async with signed_in(browser, on, scope=Scope.OPERATOR) as page:
                await page.goto(f"{on.address}/#/batches/{scene.id}")
                await expect(page.get_by_text(f"Paused: {why}")).to_be_visible()
                await page.get_by_role("button", name="Resume").click()
                await expect(page.get_by_text(why)).to_be_hidden()

    run(story())


def test_what_the_server_refuses_is_said_in_its_words(database_url: str, tmp_path: Path) -> None:
    chromium()

    async def story() -> None:
        async with stage(database_url, tmp_path) as on, opened_browser() as browser:
            scene = Scene(on.log, "Summer", minutes_ago=1)
            await scene.start()
            async with signed_in(browser, on, scope=Scope.OPERATOR) as page:
                await page.goto(f"{on.address}/#/batches/{scene.id}")
                pause = page.get_by_role("button", name="Pause")
                await expect(pause).to_be_visible()
                await on.hold()  # the page does not hear of what comes now
                cancelled = BatchCancelled(**scene.at(60), by="key:other", reason="over")
                await scene.record(scene.id, cancelled)
                await pause.click()
                await expect(page.get_by_role("alert")).to_contain_text("the batch is cancelling")

    run(story())


def test_a_viewer_sees_no_buttons_but_may_take_the_report(
    database_url: str, tmp_path: Path
) -> None:
    chromium()

    async def story() -> None:
        async with stage(database_url, tmp_path) as on, opened_browser() as browser:
            scene = Scene(on.log, "Summer", minutes_ago=1)
            await scene.start()
            await scene.add("a.jpg", SIZE, tuple(scene.failed(SIZE, 1)))
            await scene.progress()
            async with signed_in(browser, on) as page:
                async with page.expect_response("**/v1/principal"):
                    await page.goto(f"{on.address}/#/batches/{scene.id}")
                async with page.expect_download() as download:
                    await page.get_by_role("link", name="Failed only (CSV)").click()
                report = await (await download.value).path()
                assert "a.jpg" in report.read_text()
                assert await page.get_by_role("button", name="Pause").count() == 0

    run(story())
