"""Feed frames in JSON and in MessagePack carry the same values."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import msgspec
import pytest

from application.ports.read_model import ChangePage, FeedFilter
from interfaces.feed.connection import START, ClientPosition, advance
from interfaces.feed.hub import TickEncoder
from interfaces.feed.protocol import ENCODINGS, JSON
from tests.interfaces.feed.harness import open_feed
from tests.interfaces.feed.test_place import NOW, ONE, attempt, batch, upload
from tests.stories import attempt as attempted
from tests.stories import queued, received

PACKED = ENCODINGS["uptrail.v1.msgpack"]


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 40, 70_000])
def test_both_encodings_say_the_same(rows: int) -> None:
    uploads = [upload(ONE, 2 + n) for n in range(min(rows, 40))]
    uploads = uploads * max(1, rows // 40) if rows > 40 else uploads
    changes = ChangePage(
        "e", 0, 0, 99, 99, False, [batch(ONE, 1)], uploads, [attempt(u, 3) for u in uploads[:1]]
    )
    following = FeedFilter("acme", frozenset({ONE}), frozenset({ONE}))
    for place in (START, ClientPosition("e", 0, 0, None)):
        head, _ = advance(place, changes)
        told = [
            encoding.frame(head, TickEncoder(changes, encoding).rows_for(following, place) or b"")
            for encoding in (JSON, PACKED)
        ]
        as_json, packed = msgspec.json.decode(told[0]), msgspec.msgpack.decode(told[1])
        assert packed == as_json
        assert len(as_json["uploads"]) == len(uploads)
        assert as_json["batches"][0]["started_at"] == NOW.isoformat().replace("+00:00", "Z")


async def test_a_client_that_speaks_message_pack_is_told_in_it(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path) as on:
        batch_id, key = await on.batch(metadata={"trip": "Rome"}), await on.key()
        upload_id = await on.upload(batch_id, "ä.jpg")
        await on.projected()
        packed = ("morse", "uptrail.v1.msgpack", "uptrail.v1.json")
        async with on.viewer(key, protocols=packed) as one, on.viewer(key) as two:
            assert one.socket.protocol == "uptrail.v1.msgpack"
            for viewer in (one, two):
                await viewer.subscribe([batch_id, "no-id"])
                await viewer.until_frame("snapshot")
            await on.record(upload_id, received(), queued(), attempted())
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


async def test_a_stranger_may_say_who_it_is_in_message_pack(
    database_url: str, tmp_path: Path
) -> None:
    packed = {"protocols": ("uptrail.v1.msgpack",)}
    async with open_feed(database_url, tmp_path) as on:
        async with on.viewer(None, **packed) as viewer:
            assert (await viewer.frame())["type"] == "authenticate"
            await viewer.say(type="authenticate", token=await on.key())
            await viewer.until_frame("welcome")
        async with on.viewer(None, **packed) as viewer:
            await viewer.socket.send_str('{"type":"authenticate","token":"up_x_y"}')
            assert await viewer.closed() == 4500


async def test_frames_are_not_compressed_although_a_client_asks_for_it(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path) as on:
        key, batch_id = await on.key(), await on.batch()
        for n in range(30):
            await on.upload(batch_id, f"{n}.jpg")
        await on.projected()
        async with on.viewer(key, compress=15) as asks, on.viewer(key) as plain:
            for viewer in (asks, plain):
                await viewer.subscribe([batch_id])
                await viewer.until_frame("snapshot")
            assert not asks.socket.compress
            assert not plain.socket.compress
            assert asks.rows == plain.rows


async def test_a_socket_that_is_asked_for_in_no_language_we_speak_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path) as on:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with on.viewer(await on.key(), protocols=("uptrail.v2.json",)):
                pass
        assert refused.value.status == 400
