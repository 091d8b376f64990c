"""The AsyncAPI description of the feed is complete and matches what is sent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from interfaces.feed.asyncapi import CLIENT_MESSAGES, STREAM_FRAMES, WEBSOCKET_FRAMES, asyncapi
from interfaces.feed.connection import FeedLimits
from interfaces.feed.protocol import ChangesHead, Frame, Message, SnapshotHead
from tests.builders import attempt, queued, received
from tests.clients.installed import HERE, require_node, require_package
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.feed.stream import streaming
from tests.interfaces.feed.test_credential_renewal import ends_in
from tests.interfaces.rest.test_operations import references


def test_every_frame_and_message_is_described_and_no_reference_leads_nowhere() -> None:
    document = asyncapi()
    for reference in references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    frames = {
        *Frame.__subclasses__(),
        *SnapshotHead.__subclasses__(),
        *ChangesHead.__subclasses__(),
    }
    assert frames - {SnapshotHead, ChangesHead} == {*WEBSOCKET_FRAMES, *STREAM_FRAMES}
    assert set(Message.__subclasses__()) == set(CLIENT_MESSAGES)
    assert "blob" not in document["components"]["schemas"]["Upload"]["properties"]
    assert all(message["summary"] for message in document["components"]["messages"].values())


async def test_the_description_is_asyncapi_and_what_is_sent_is_as_described(
    database_url: str, tmp_path: Path
) -> None:
    node = require_node()
    for package in ("@asyncapi/specs", "ajv", "ajv-formats"):
        require_package(package)

    limits = FeedLimits(credential_check_interval=0.05)
    async with open_feed(database_url, tmp_path, limits, feed_heartbeat=0.05) as feed:
        frames = [*await _told_on_a_socket(feed), *await _streamed(feed)]
        async with (
            aiohttp.ClientSession(feed.address) as session,
            session.get("/asyncapi.json") as answer,
        ):
            assert answer.status == 200
            document = await answer.json()
    assert document == json.loads(msgspec.json.encode(asyncapi()))

    messages = document["components"]["messages"]
    described = {
        messages[type.__name__]["name"]: type.__name__
        for type in (*WEBSOCKET_FRAMES, *STREAM_FRAMES)
    }
    assert {frame["type"] for frame in frames} == set(described)
    job = {"document": document, "frames": [_named(described, frame) for frame in frames]}
    assert await _wrong(node, job) == []
    job["frames"][0]["frame"]["type"] = "nonsense"
    document["channels"]["socket"]["messages"] = []
    assert len(await _wrong(node, job)) == 2


async def _told_on_a_socket(feed: FeedHarness) -> list[dict[str, Any]]:
    """Return a frame of every type that a socket receives."""
    batch, key = await feed.batch(), await feed.key(**ends_in(30))
    upload = await feed.upload(batch, "a.jpg")
    await feed.projected()
    async with feed.viewer(None) as viewer:
        await viewer.until_frame("authenticate")
        await viewer.say(type="authenticate", token=key)
        await viewer.until_frame("expiring")
        await viewer.subscribe([batch, "no-id"], after="never given out")
        await viewer.until_frame("snapshot")
        await feed.record(upload, received(), queued(), attempt())
        await viewer.until(lambda v: v.rows["attempts"])
        await viewer.say(type="ping")
        await viewer.until_frame("pong")
        await viewer.until_frame("ping")
        return viewer.frames


async def _streamed(feed: FeedHarness) -> list[dict[str, Any]]:
    async with streaming(feed, await feed.key()) as stream:
        await stream.until_frame("snapshot")
        closing = asyncio.create_task(feed.hub.close())
        await stream.ended()
        await closing
        return stream.frames


def _named(described: dict[str, str], frame: dict[str, Any]) -> dict[str, Any]:
    """The frame as it came, which the viewer has measured, and the name of its message."""
    sent = {name: value for name, value in frame.items() if name != "size"}
    return {"message": described[frame["type"]], "frame": sent}


async def _wrong(node: str, job: dict[str, Any]) -> list[Any]:
    process = await asyncio.create_subprocess_exec(
        node,
        str(HERE / "asyncapi.mjs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    described, complaint = await process.communicate(json.dumps(job).encode())
    assert process.returncode == 0, complaint.decode(errors="replace")
    wrong: list[Any] = json.loads(described)
    return wrong
