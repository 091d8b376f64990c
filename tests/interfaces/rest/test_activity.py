"""`activity` is derived equally in every response that holds a batch."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from domain.batch.events import BatchProgressed
from domain.upload.state import UploadState
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.rest.server import Answer, Server
from tests.support import eventually

LATEST = {"min_position": "latest"}


async def count_arrival(server: Server, batch: str, *, seconds_ago: float) -> None:
    at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    progressed = BatchProgressed(
        at=at,
        by="orchestrator",
        counts={UploadState.TRANSFERRING: 1},
        bytes_received=5,
        bytes_total=10,
        percent=25.0,
        through=1,
        arrived_at=at,
    )
    await server.services.log.append(append_to_stream(UUID(batch), None, progressed))


async def test_one_batch_the_list_and_the_report_show_the_same(server: Server) -> None:
    batch = (await server.batch("a")).json["id"]
    await count_arrival(server, batch, seconds_ago=900)
    path = f"/v1/batches/{batch}"

    shown = (await server.get(path, params=LATEST)).json
    (listed,) = (await server.get("/v1/batches", params=LATEST)).json["items"]
    reported = (await server.get(f"{path}/report.json", params=LATEST)).json["batch"]

    assert shown == listed == reported
    assert (shown["activity"], shown["activity_until"]) == ("stalled", None)
    assert shown["activity_since"] == shown["arrived_at"]


async def test_an_etag_ends_when_the_batch_does_something_else_by_time_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.views.STALLED_AFTER", timedelta(seconds=5))

    batch = (await server.batch("a")).json["id"]
    path = f"/v1/batches/{batch}"

    async def arrives() -> Answer | None:
        """Retry if this machine responded too late for the activity to hold."""
        await count_arrival(server, batch, seconds_ago=0)
        answer = await server.get(path, params=LATEST)
        return answer if answer.json["activity"] == "receiving" else None

    first = await eventually(arrives)
    known = {"If-None-Match": first.headers["ETag"]}

    until = datetime.fromisoformat(first.json["activity_until"])
    await asyncio.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))

    again = await server.get(path, headers=known)
    assert (again.status, again.json["activity"]) == (200, "stalled")
    assert again.json["position"] == first.json["position"]
    known = {"If-None-Match": again.headers["ETag"]}
    assert (await server.get(path, headers=known)).status == 304


async def test_a_batch_of_then_is_doing_what_it_did_then(server: Server) -> None:
    started = await server.batch("a")
    batch, path = started.json["id"], f"/v1/batches/{started.json['id']}"
    await count_arrival(server, batch, seconds_ago=900)
    counted = await server.services.log.head()
    other = await server.batch("b")  # fifteen minutes later, another batch

    async def activity(at: Any) -> Any:
        answer = await server.get(path, params={"at": str(at)})
        assert answer.status == 200, answer.body
        assert answer.json["activity_until"] is None
        return answer.json["activity"]

    assert await activity(started.json["position"]) == "waiting_for_files"
    assert await activity(counted) == "receiving"
    assert await activity(other.json["position"]) == "stalled"
    assert await activity(10**9) == "stalled"
    assert await activity("2099-01-01T00:00:00Z") == "stalled"


async def test_the_feed_contains_the_activity_of_a_batch(feed: FeedHarness) -> None:
    batch = await feed.batch()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch], min_position="latest")
        snapshot = await viewer.until_frame("snapshot")
        assert snapshot["batches"][0]["activity"] == "waiting_for_files"
        at = datetime.now(UTC)
        await feed.record(
            batch,
            BatchProgressed(
                at=at,
                by="orchestrator",
                counts={UploadState.TRANSFERRING: 1},
                bytes_received=5,
                bytes_total=10,
                percent=25.0,
                through=1,
                arrived_at=at,
            ),
        )
        changes = await viewer.until_frame("changes")
        (row,) = changes["batches"]
        assert (row["activity"], row["activity_since"]) == ("receiving", None)
        assert row["activity_until"] is not None
