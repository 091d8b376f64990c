"""Feed frames in JSON and in MessagePack carry the same values."""

from __future__ import annotations

import aiohttp
import msgspec
import pytest

from application.ports.read_model import ChangePage, FeedFilter
from interfaces.feed.connection import START, ClientPosition, advance
from interfaces.feed.hub import TickEncoder
from interfaces.feed.protocol import ENCODINGS, JSON
from tests.builders import attempt as attempted
from tests.builders import queued, received
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.feed.test_client_position import NOW, ONE, attempt, batch, upload

PACKED = ENCODINGS["uptrail.v1.msgpack"]


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 40, 70_000])
def test_both_encodings_have_the_same_content(rows: int) -> None:
    uploads = [upload(ONE, 2 + n) for n in range(min(rows, 40))]
    uploads = uploads * max(1, rows // 40) if rows > 40 else uploads
    changes = ChangePage(
        "e", 0, 0, 99, 99, False, [batch(ONE, 1)], uploads, [attempt(u, 3) for u in uploads[:1]]
    )
    following = FeedFilter("acme", frozenset({ONE}), frozenset({ONE}))
    for place in (START, ClientPosition("e", 0, 0, None)):
        head, _ = advance(place, changes)
        values = [
            encoding.frame(head, TickEncoder(changes, encoding).rows_for(following, place) or b"")
            for encoding in (JSON, PACKED)
        ]
        as_json, packed = msgspec.json.decode(values[0]), msgspec.msgpack.decode(values[1])
        assert packed == as_json
        assert len(as_json["uploads"]) == len(uploads)
        assert as_json["batches"][0]["started_at"] == NOW.isoformat().replace("+00:00", "Z")


async def test_a_message_pack_client_receives_message_pack(feed: FeedHarness) -> None:
    batch_id, key = await feed.batch(metadata={"trip": "Rome"}), await feed.key()
    upload_id = await feed.upload(batch_id, "ä.jpg")
    await feed.projected()
    packed = ("morse", "uptrail.v1.msgpack", "uptrail.v1.json")
    async with feed.viewer(key, protocols=packed) as one, feed.viewer(key) as two:
        assert one.socket.protocol == "uptrail.v1.msgpack"
        for viewer in (one, two):
            await viewer.subscribe([batch_id, "no-id"])
            await viewer.until_frame("snapshot")
        await feed.record(upload_id, received(), queued(), attempted())
        for viewer in (one, two):
            await viewer.until(lambda v: v.rows["attempts"])
        assert one.rows == two.rows
        assert one.of_type("error")[0]["code"] == "unknown_batch"

        await one.socket.send_str('{"type":"ping"}')
        await one.socket.send_bytes(b"\xc1")
        for _ in range(2):
            assert (await one.until_frame("error"))["code"] == "malformed"
        await one.say(type="ping")
        await one.until_frame("pong")


async def test_a_client_may_authenticate_in_message_pack(feed: FeedHarness) -> None:
    packed = {"protocols": ("uptrail.v1.msgpack",)}
    async with feed.viewer(None, **packed) as viewer:
        assert (await viewer.frame())["type"] == "authenticate"
        await viewer.say(type="authenticate", token=await feed.key())
        await viewer.until_frame("welcome")
    async with feed.viewer(None, **packed) as viewer:
        await viewer.socket.send_str('{"type":"authenticate","token":"up_x_y"}')
        assert await viewer.closed() == 4500


async def test_frames_are_not_compressed_although_a_client_asks_for_it(feed: FeedHarness) -> None:
    key, batch_id = await feed.key(), await feed.batch()
    for n in range(30):
        await feed.upload(batch_id, f"{n}.jpg")
    await feed.projected()
    async with feed.viewer(key, compress=15) as asks, feed.viewer(key) as plain:
        for viewer in (asks, plain):
            await viewer.subscribe([batch_id])
            await viewer.until_frame("snapshot")
        assert not asks.socket.compress
        assert not plain.socket.compress
        assert asks.rows == plain.rows


async def test_a_socket_that_is_asked_for_in_no_language_we_speak_is_refused(
    feed: FeedHarness,
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with feed.viewer(await feed.key(), protocols=("uptrail.v2.json",)):
            pass
    assert refused.value.status == 400
