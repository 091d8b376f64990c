"""Checks of recorded histories: nothing lost, nothing done twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import aiohttp

from tests.end_to_end.uploader import ask
from tests.support import eventually

Streams: TypeAlias = dict[str, list[dict[str, Any]]]


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


async def streams_of(client: aiohttp.ClientSession, batch: str) -> Streams:
    """The events of the batch and of its uploads, by stream."""
    events: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = await ask(client, "GET", f"{batch}/history?after={after}&limit=1000")
        events += page["items"]
        after = page["next"]
    return by_stream(events)


def check_complete(streams: Streams, uploads: int) -> None:
    """Each upload and the batch have a stream that is complete and has one end."""
    assert len(streams) == uploads + 1
    check_gapless(streams)
    for stream, events in streams.items():
        assert len(of_type(events, "upload.attempt_succeeded")) <= 1, stream
        assert len([e for e in events if e["type"].endswith(".completed")]) == 1, stream


def check_gapless(streams: Streams) -> None:
    """No version is missing, and no number of an attempt is missing or occurs twice."""
    for stream, events in streams.items():
        assert [event["version"] for event in events] == list(range(1, len(events) + 1)), stream
        numbers = numbers_of(events, "upload.attempt_started")
        assert numbers == list(range(1, len(numbers) + 1)), stream


def by_stream(events: Iterable[dict[str, Any]]) -> Streams:
    streams: Streams = {}
    for event in events:
        streams.setdefault(event["stream"], []).append(event)
    return streams


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == type]


def numbers_of(events: list[dict[str, Any]], type: str) -> list[int]:
    """The numbers of the attempts that these events are about."""
    return [event["data"]["number"] for event in of_type(events, type)]
