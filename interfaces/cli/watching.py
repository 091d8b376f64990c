"""Follows one batch on the feed until it has its outcome."""

from __future__ import annotations

from uuid import UUID

from application.views import BatchView
from interfaces.cli.client import Client
from interfaces.cli.feed import FeedEnded, follow
from interfaces.cli.screens import Screen


async def until_outcome(client: Client, batch: UUID, screen: Screen) -> BatchView:
    """The batch as it ended; every change meanwhile is shown. Raises FeedEnded, Unreachable."""
    async for frame in follow(client, [batch]):
        screen.frame(frame)
        for row in frame.batches:
            if row.id == batch and row.outcome is not None and not frame.more:
                return row
    raise FeedEnded("the feed ended before the batch did")
