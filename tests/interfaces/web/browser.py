"""A real Chromium for the page's tests, driven by Playwright; none is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from application.ports.auth import Scope
from tests.interfaces.feed.harness import FeedHarness

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")

PATIENCE = 60_000  # milliseconds for what is waited for, on a machine that is busy
expect.set_options(timeout=PATIENCE)


def chromium() -> str:
    """Return the path of Chromium. Skip the test without one, unless everything is required."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
        pytest.fail("no Chromium is installed")
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


@asynccontextmanager
async def open_browser(path: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def signed_in(
    browser: Browser,
    feed: FeedHarness,
    owner: str = "default",
    scope: Scope = Scope.VIEWER,
    refused: int = 409,
    batch: UUID | None = None,
) -> AsyncIterator[Page]:
    """A page of a signed-in user; whatever the browser complains about fails the test, but for
    an answer of the status `refused`. `batch` is the only one that the user's key is for."""
    principal = await feed.hub.keys.authenticate(await feed.key(owner, scope, batch=batch))
    assert principal is not None
    token = await feed.hub.keys.open_session(principal, lifetime=600)
    context = await browser.new_context(viewport={"width": 1240, "height": 900})
    await context.add_cookies(
        [{"name": "uptrail_session", "value": token, "url": feed.address, "httpOnly": True}]
    )
    page = await context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda said: _note(said.type, said.text, refused, broken))
    page.set_default_timeout(PATIENCE)
    try:
        yield page
        assert not broken, f"the browser says: {broken}"
    finally:
        await context.close()


def _note(kind: str, text: str, refused: int, broken: list[str]) -> None:
    """A server that is being restarted may be complained about, and an answer that says no."""
    expected = ("ERR_CONNECTION", "WebSocket", f"status of {refused}", "status of 503")
    if kind in ("error", "warning") and not any(words in text for words in expected):
        broken.append(text)
