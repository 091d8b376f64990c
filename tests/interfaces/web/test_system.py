"""The system page in a real browser: processes, leaders and lag."""

from __future__ import annotations

from playwright.async_api import Browser, expect

from application.ports.auth import Scope
from infrastructure.jobs.heartbeat import ProcessHeartbeat, ProcessStatus
from tests.harness import running
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.web.browser import signed_in

GONE = """INSERT INTO orchestration.processes (id, machine, pid, roles, version, leads, seen_at)
VALUES (gen_random_uuid(), 'willow', 7, '{worker}', '0.0.1', false, now() - interval '60 s')
RETURNING machine"""


async def test_the_system_page_shows_processes_leaders_and_lag(
    feed: FeedHarness, browser: Browser
) -> None:
    status = ProcessStatus()
    status.leads = lambda: True
    here = ProcessHeartbeat(feed.parts.pool, ("api", "orchestrator"), status, 0.1)
    async with running(here.run()), signed_in(browser, feed, scope=Scope.OPERATOR) as page:
        await feed.rows(GONE)
        await page.goto(feed.address)
        await page.get_by_role("link", name="System").click()
        processes = page.get_by_role("region", name="Processes").get_by_role("row")
        alive = processes.filter(has_text="api, orchestrator")
        await expect(alive).to_contain_text("Alive")
        await expect(alive).to_contain_text("Leader")
        await expect(processes.filter(has_text="willow")).to_contain_text("No heartbeat")
        await expect(page.get_by_text("1 process alive")).to_contain_text("leader: ")
        await expect(page.get_by_text("No workers: received files wait")).to_be_visible()
        room = page.locator(".tile").filter(has_text="Free disk space")
        await expect(room).to_contain_text("GB")

        follower = page.locator(".tile").filter(has_text="Read model")
        await expect(follower).to_contain_text("Up to date")
        await feed.hold()
        await feed.batch()
        await expect(follower).to_contain_text("1 behind")
        await feed.resume()
        await expect(follower).to_contain_text("Up to date")


async def test_a_viewer_of_the_system_page_sees_the_required_scope(
    feed: FeedHarness, browser: Browser
) -> None:
    async with signed_in(browser, feed, refused=403) as page:
        await page.goto(f"{feed.address}/#/system")
        await expect(page.get_by_role("alert")).to_contain_text("the scope operator")
