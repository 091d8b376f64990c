"""A client of the feed's Server-Sent Events, which reads them as the HTML standard says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.feed.ws_client import FeedClient


class StreamViewer(FeedClient):
    """`last_id` is what an EventSource would send as Last-Event-ID after a cut."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self.retry = 0
        self.comments = 0
        super().__init__(socket=None)  # type: ignore[arg-type]

    def go_on_from(self, before: FeedClient) -> None:
        super().go_on_from(before)
        assert isinstance(before, StreamViewer)
        self.last_id = before.last_id

    async def frame(self, deadline: float = 60.0) -> dict[str, Any]:
        async with asyncio.timeout(deadline):
            frame = await self._event()
        self.take(frame)
        return frame

    async def ended(self) -> dict[str, Any]:
        """Reads to the end of the stream, and returns the last frame."""
        async with asyncio.timeout(60):
            try:
                while True:
                    self.take(await self._event())
            except (EOFError, aiohttp.ClientPayloadError):
                return self.frames[-1] if self.frames else {}

    async def _event(self) -> dict[str, Any]:
        """The next event that has data. Raises EOFError at the end of the stream."""
        data: list[str] = []
        size, id = 0, self.last_id
        while line := await self.response.content.readuntil(b"\n"):
            size += len(line)
            name, _, value = line.decode().rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            match name:
                case "data":
                    data.append(value)
                case "id":
                    id = value
                case "retry":
                    self.retry = int(value)
                case "" if line != b"\n":
                    self.comments += 1
                case "" if data:
                    self.last_id = id  # not sooner: what was cut is no event
                    frame: dict[str, Any] = {**json.loads("\n".join(data)), "size": size}
                    return frame
        raise EOFError


@asynccontextmanager
async def streaming(
    feed: FeedHarness, key: str | None, query: str = "", **headers: str
) -> AsyncIterator[StreamViewer]:
    """A stream of the feed; AssertionError with the problem where there is none."""
    sent = {"Accept": "text/event-stream", **headers}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(feed.address, timeout=timeout, read_bufsize=2**24) as session,
        session.get(f"/v1/feed{query}", headers=sent) as response,
    ):
        assert response.status == 200, (response.status, await response.text())
        assert response.content_type == "text/event-stream"
        yield StreamViewer(response)
