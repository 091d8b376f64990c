"""Follows one batch on the feed until it has its outcome."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from uuid import UUID

from application.activity import utc_now
from application.views import BatchView
from interfaces.cli.client import Client
from interfaces.cli.errors import CommandError
from interfaces.cli.feed import FeedEnded, Frame, follow
from interfaces.cli.screens import Screen

AGAIN = 5.0  # seconds until the server is asked again, where its clock is behind ours


async def until_outcome(client: Client, batch: UUID, screen: Screen) -> BatchView:
    """The batch as it ended; every change meanwhile is shown. Raises FeedEnded, Unreachable."""
    async with _Clock(client, screen) as clock:
        async for frame in follow(client, [batch]):
            screen.frame(frame)
            for row in frame.batches:
                if row.id != batch or frame.more:
                    continue
                if row.outcome is not None:
                    return row
                clock.set(row)
    raise FeedEnded("the feed ended before the batch did")


class _Clock:
    """Polling of a batch at `activity_until`, when its activity changes without a feed frame."""

    def __init__(self, client: Client, screen: Screen) -> None:
        self._client = client
        self._screen = screen
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def set(self, row: BatchView) -> None:
        self._stop()
        if row.activity_until is not None:
            self._task = asyncio.create_task(self._look(row), name="activity")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = None

    async def _look(self, row: BatchView) -> None:
        while row.activity_until is not None:
            left = (row.activity_until - utc_now()).total_seconds()
            await asyncio.sleep(left if left > 0 else AGAIN)
            try:
                row = await self._client.batch(row.id)
            except CommandError:  # the feed fails as well, and reports it
                return
            self._screen.frame(Frame(type="changes", batches=[row]))
