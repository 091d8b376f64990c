"""What the log of a batch must say, whatever the machines went through."""

from __future__ import annotations

from typing import Any

import aiohttp

from tests.machines.site import ask
from tests.support import eventually


async def completed(client: aiohttp.ClientSession, batch: str) -> dict[str, Any]:
    """The batch, once it has an outcome."""

    async def done() -> dict[str, Any] | None:
        try:
            view = await ask(client, "GET", batch)
        except aiohttp.ClientError:
            return None
        return view if view["outcome"] else None

    view: dict[str, Any] = await eventually(done, 90)
    return view


async def streams_of(client: aiohttp.ClientSession, batch: str) -> dict[str, list[dict[str, Any]]]:
    """The events of the batch and of its uploads, by stream."""
    streams: dict[str, list[dict[str, Any]]] = {}
    after: int | None = 0
    while after is not None:
        page = await ask(client, "GET", f"{batch}/history?after={after}&limit=1000")
        for event in page["items"]:
            streams.setdefault(event["stream"], []).append(event)
        after = page["next"]
    return streams


def check(streams: dict[str, list[dict[str, Any]]], uploads: int) -> None:
    """Nothing lost, nothing twice: versions without a gap, attempts numbered once, one end each."""
    assert len(streams) == uploads + 1
    for stream, events in streams.items():
        assert [event["version"] for event in events] == list(range(1, len(events) + 1)), stream
        numbers = numbers_of(events, "upload.attempt_started")
        assert numbers == list(range(1, len(numbers) + 1)), stream
        assert len(of_type(events, "upload.attempt_succeeded")) <= 1, stream
        assert len([e for e in events if e["type"].endswith(".completed")]) == 1, stream


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == type]


def numbers_of(events: list[dict[str, Any]], type: str) -> list[int]:
    """The numbers of the attempts that these events are about."""
    return [event["data"]["number"] for event in of_type(events, type)]
