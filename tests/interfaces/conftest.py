"""Whole servers for one test: every role, a real database, a real socket."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from playwright.async_api import Browser

from infrastructure.settings import Settings
from infrastructure.telemetry import configure_logging
from interfaces.bootstrap.container import ALL_ROLES
from interfaces.bootstrap.listen import Ready
from interfaces.bootstrap.server import serve
from interfaces.common import requests
from interfaces.rest import webhooks
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.web.browser import chromium, open_browser
from tests.support import run

PATIENCE = 120.0  # seconds for a server to come up or to end


@dataclass(frozen=True)
class LiveServer:
    """A server that answers at `url`; `key` is its admin key, `data_dir` where commands find it."""

    url: str
    key: str
    data_dir: Path
    settings: Settings
    login: str


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reads of own writes wait as long as a slow machine takes."""
    monkeypatch.setattr(requests, "MAX_POSITION_WAIT", PATIENCE)
    monkeypatch.setattr(webhooks, "MAX_POSITION_WAIT", PATIENCE)
    monkeypatch.setattr(webhooks, "VISIBLE_TIMEOUT", PATIENCE)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server on a fresh database, on any free port."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url, port=0)


@pytest.fixture
def live_server(settings: Settings) -> Iterator[LiveServer]:
    """A server with all roles, in a thread of this process."""
    with serving(settings) as live:
        yield live


@pytest.fixture
def feed(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[FeedHarness]:
    """A server with its feed, in the loop of the test."""
    return open_feed(database_url, tmp_path, **marked_options)


@pytest.fixture
def browser() -> AbstractAsyncContextManager[Browser]:
    """Skips the test without Chromium, unless everything is required."""
    return open_browser(chromium())


@contextmanager
def serving(settings: Settings) -> Iterator[LiveServer]:
    """Run a server with these settings in a thread."""
    with _logging_to(settings.data_dir / "server.log"):
        yield from _served(settings)


def _served(settings: Settings) -> Iterator[LiveServer]:
    stop, up = _Stop(), _Up()
    thread = threading.Thread(target=lambda: up.watch(lambda: _serve(settings, stop, up)))
    thread.start()
    try:
        ready = up.wait()
        assert ready.url is not None
        assert ready.login is not None
        key = settings.admin_key_file.read_text().strip()
        yield LiveServer(ready.url, key, settings.data_dir, settings, ready.login)
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """The server's log lines go there, and not among what a test captures."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handlers = logging.getLogger().handlers[:]
    with file.open("a") as stream:
        configure_logging("json", "info", stream)
        try:
            yield
        finally:
            structlog.reset_defaults()
            logging.getLogger().handlers[:] = handlers


def _serve(settings: Settings, stop: _Stop, up: _Up) -> None:
    async def main() -> None:
        stopping = asyncio.Event()
        stop.bind(asyncio.get_running_loop(), stopping)
        await serve(settings, ALL_ROLES, up.came, stopping)

    run(main())


class _Stop:
    """Sets an asyncio event from another thread."""

    def __init__(self) -> None:
        self._set: Callable[[], object] = lambda: None

    def bind(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        self._set = lambda: loop.call_soon_threadsafe(event.set)

    def set(self) -> None:
        self._set()


class _Up:
    """Hands `Ready`, or what kept it from coming, to the thread that waits."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._ready: Ready | None = None
        self._error: BaseException | None = None

    def came(self, ready: Ready) -> None:
        self._ready = ready
        self._event.set()

    def watch(self, main: Callable[[], None]) -> None:
        try:
            main()
        except BaseException as error:
            self._error = error
        self._event.set()

    def wait(self) -> Ready:
        assert self._event.wait(PATIENCE), "the server did not come up"
        if self._ready is None:
            raise self._error or AssertionError("the server ended before it was ready")
        return self._ready
