"""The feed over real sockets: a snapshot, then every change that the client may see."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from application.ports.auth import Scope
from domain.upload.events import FileProgressed
from tests.builders import ALICE, NOON, attempt, queued, received
from tests.end_to_end.test_seams import Gate
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.late_projector import delay_projector
from tests.support import eventually


def progress(done: int) -> FileProgressed:
    return FileProgressed(
        at=NOON, by=ALICE, phase="transfer", done=done, total=100, percent=float(done)
    )


async def test_a_snapshot_then_each_change(feed: FeedHarness) -> None:
    batch = await feed.batch(label="Summer")
    upload = await feed.upload(batch, "a.jpg")
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        snapshot = await viewer.until_frame("snapshot")
        assert snapshot["more"] is False
        assert [row["label"] for row in snapshot["batches"]] == ["Summer"]
        assert [row["state"] for row in snapshot["uploads"]] == ["registered"]
        assert "blob" not in snapshot["uploads"][0]
        assert snapshot["uploads"][0]["registered_at"] == "2026-01-01T12:00:00Z"

        await feed.record(upload, progress(40))
        changes = await viewer.until_frame("changes")
        assert changes["from"] == snapshot["position"] < changes["to"]
        assert changes["uploads"][0]["received"] == 40

        await feed.record(upload, received(), queued(), attempt())
        await viewer.until(lambda v: v.rows["attempts"])
        assert viewer.rows["attempts"][str(upload), 1]["worker"] == "worker:one"
        assert viewer.rows["uploads"][str(upload)]["state"] == "processing"
        assert viewer.positions() == await feed.positions(batch)


async def test_a_star_follows_batch_rows_of_the_owner_old_and_new(feed: FeedHarness) -> None:
    old = await feed.batch()
    await feed.batch(owner="rival")
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe("*")
        await viewer.until_frame("snapshot")
        assert list(viewer.rows["batches"]) == [str(old)]

        await feed.batch(owner="rival")
        new = await feed.batch()
        await feed.upload(new, "a.jpg")
        await viewer.until(lambda v: str(new) in v.rows["batches"])
        assert set(viewer.rows["batches"]) == {str(old), str(new)}
        assert viewer.rows["uploads"] == {}


async def test_a_batch_of_another_owner_looks_like_one_that_does_not_exist(
    feed: FeedHarness,
) -> None:
    mine, theirs, nobodys = await feed.batch(), await feed.batch(owner="rival"), uuid4()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([mine, theirs, nobodys, "no-id"])
        await viewer.until_frame("snapshot")
        errors = {error["batch"]: error for error in viewer.of_type("error")}
        assert set(errors) == {str(theirs), str(nobodys), "no-id"}
        assert len({(e["code"], e["message"]) for e in errors.values()}) == 1
        assert list(viewer.rows["batches"]) == [str(mine)]

        hidden = await feed.upload(theirs, "secret.txt", owner="rival")
        await feed.record(hidden, received(), queued(), attempt())
        seen = await feed.upload(mine, "plain.txt")
        await viewer.until(lambda v: str(seen) in v.rows["uploads"])
        assert list(viewer.rows["uploads"]) == [str(seen)]
        assert "secret" not in str(viewer.frames)


async def test_an_admin_sees_every_owner_and_a_limited_key_one_batch(feed: FeedHarness) -> None:
    one, two = await feed.batch(), await feed.batch(owner="rival")
    other = await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key("root", Scope.ADMIN)) as viewer:
        await viewer.subscribe("*")
        await viewer.until_frame("snapshot")
        assert set(viewer.rows["batches"]) == {str(one), str(two), str(other)}
    limited = await feed.key(scope=Scope.UPLOADER, batch=one)
    async with feed.viewer(limited) as viewer:
        for batches in ("*", [one, other]):
            await viewer.subscribe(batches)
            await viewer.until_frame("snapshot")
            assert list(viewer.rows["batches"]) == [str(one)]
        assert [error["batch"] for error in viewer.of_type("error")] == [str(other)]


async def test_a_batch_that_is_followed_before_it_exists_appears_when_it_starts(
    feed: FeedHarness,
) -> None:
    await feed.batch()
    await feed.hold()
    batch = await feed.batch()
    upload = await feed.upload(batch, "early.txt")
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        assert viewer.of_type("error")[0]["batch"] == str(batch)
        await feed.resume()
        await viewer.until(lambda v: str(upload) in v.rows["uploads"])
        assert viewer.positions() == await feed.positions(batch)


async def test_one_frame_a_tick_however_many_rows(feed: FeedHarness) -> None:
    batch = await feed.batch()
    uploads = [await feed.upload(batch, f"{n}.bin") for n in range(50)]
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        await feed.hold()
        for done in range(10, 100, 10):
            await asyncio.gather(*(feed.record(id, progress(done)) for id in uploads))
        await feed.resume()
        await viewer.until(
            lambda v: all(row["received"] == 90 for row in v.rows["uploads"].values())
        )
        # 450 events, projected and sent at once: the last value of each upload.
        assert len(viewer.of_type("changes")) == 1


async def test_a_big_batch_comes_in_bounded_parts(feed: FeedHarness) -> None:
    batch = await feed.batch()
    await asyncio.gather(*(feed.upload(batch, f"{n:05}.bin") for n in range(1300)))
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        await viewer.until(lambda v: v.position >= 0)
        parts = viewer.of_type("snapshot")
        assert [(part["part"], part["more"]) for part in parts] == [
            (1, True),
            (2, True),
            (3, False),
        ]
        assert max(len(part["uploads"]) for part in parts) <= feed.hub.limits.page_size
        assert viewer.positions() == await feed.positions(batch)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ("nonsense", "unreadable"),
        ("", "unreadable"),
        ("{epoch}:-1", "unreadable"),
        ("another-life:1", "rebuilt"),
        ("{epoch}:999999999", "ahead"),
    ],
)
async def test_a_cursor_that_cannot_be_resumed_is_answered_with_a_reset_and_a_snapshot(
    feed: FeedHarness, after: str, reason: str
) -> None:
    batch = await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        [[epoch]] = await feed.rows("SELECT epoch FROM projections")
        await viewer.subscribe([batch], after=after.format(epoch=epoch))
        assert (await viewer.until_frame("reset"))["reason"] == reason
        snapshot = await viewer.until_frame("snapshot")
        assert snapshot["batches"][0]["id"] == str(batch)


async def test_a_rebuild_under_a_live_client_resets_it(feed: FeedHarness) -> None:
    batch = await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        async with feed.parts.pool.connection() as connection:
            await connection.execute("UPDATE projections SET epoch = 'next'")
        await feed.upload(batch, "a.jpg")
        assert (await viewer.until_frame("reset"))["reason"] == "rebuilt"
        await viewer.until(lambda v: v.rows["uploads"])
        assert (viewer.cursor or "").startswith("next:")


async def test_a_new_subscription_replaces_the_previous_one(feed: FeedHarness) -> None:
    one, two = await feed.batch(), await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        for batch in (one, two):
            await viewer.subscribe([batch])
            await viewer.until_frame("snapshot")
        await feed.upload(one, "unseen.txt")
        seen = await feed.upload(two, "seen.txt")
        await viewer.until(lambda v: v.rows["uploads"])
        assert list(viewer.rows["uploads"]) == [str(seen)]


async def test_a_page_of_a_replaced_subscription_is_not_sent(
    feed: FeedHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await feed.batch(), await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.until_frame("welcome")
        (client,) = feed.hub.registry.clients
        gate = Gate(monkeypatch, feed.hub._source, "changes")
        await viewer.subscribe([one])
        await gate.reached()
        await viewer.subscribe([two])
        await eventually(
            lambda: client.subscription is not None and client.subscription.requested == {two}
        )
        gate.open()

        await viewer.until_frame("snapshot")
        assert list(viewer.rows["batches"]) == [str(two)]


async def test_rows_carry_the_columns_of_the_views(feed: FeedHarness) -> None:
    batch = await feed.batch(metadata={"trip": "Rome"})
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe("*")
        row: dict[str, Any] = (await viewer.until_frame("snapshot"))["batches"][0]
        assert row["metadata"] == {"trip": "Rome"}
        assert row["id"] == str(batch)
        assert row["started_at"] == "2026-01-01T12:00:00Z"


async def test_a_subscription_with_latest_shows_no_rows_from_before_what_was_recorded(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay_projector(monkeypatch)

    async with open_feed(database_url, tmp_path) as feed, feed.viewer(await feed.key()) as viewer:
        batch = await feed.batch(label="new")
        upload = await feed.upload(batch, "a.jpg")

        await viewer.subscribe([batch], min_position="latest")

        snapshot = await viewer.until_frame("snapshot")
        assert [row["label"] for row in snapshot["batches"]] == ["new"]
        assert [row["id"] for row in snapshot["uploads"]] == [str(upload)]
        assert viewer.of_type("error") == []

        position = await feed.record(upload, received(), queued())
        await viewer.subscribe([batch], min_position=position)
        snapshot = await viewer.until_frame("snapshot")
        assert snapshot["uploads"][0]["state"] == "queued"


async def test_a_subscription_that_waits_for_too_long_is_refused_and_may_be_retried(
    feed: FeedHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.feed.hub.MAX_POSITION_WAIT", 0.1)

    batch = await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch], min_position=10**9)
        error = await viewer.until_frame("error")
        assert error["code"] == "position_not_reached"
        assert viewer.of_type("snapshot") == []

        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        assert list(viewer.rows["batches"]) == [str(batch)]

        await viewer.socket.send_json({"type": "subscribe", "batches": "*", "min_position": -1})
        assert (await viewer.until_frame("error"))["code"] == "malformed"
