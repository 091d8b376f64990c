"""Read-your-writes with `min_position`, however late the projector is."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from application.ports.auth import Scope
from domain.batch.events import BatchCompleted, BatchProgressed
from domain.batch.state import Outcome
from domain.event import Event
from domain.upload.events import (
    AttemptFailed,
    UploadFailed,
    UploadQuarantined,
)
from domain.upload.state import UploadState
from interfaces.rest.app import OPERATIONS
from tests.builders import ALICE, NOON, attempt, queued, received
from tests.interfaces.rest.server import OWNER, Server, serving
from tests.late_projector import delay_projector, hold_projector

BY: dict[str, Any] = {"at": NOON, "by": ALICE}


async def record(server: Server, stream: UUID, *events: Event) -> None:
    await server.services.log.append(append_to_stream(stream, None, *events, owner=OWNER))


async def failed_batch(server: Server, end: Event, counts: dict[UploadState, int]) -> Any:
    """A completed batch with one upload that ended like this."""
    started = await server.batch("a", seal=True)
    batch, upload = UUID(started.json["id"]), UUID(started.json["uploads"][0])
    failure = AttemptFailed(
        **BY, number=1, step="scan", error_type="E", message="no", permanent=True, duration=1.0
    )
    await record(server, upload, received(10), queued(), attempt(), failure, end)
    progressed = BatchProgressed(
        **BY, counts=counts, bytes_received=10, bytes_total=10, percent=100.0, through=9
    )
    completed = BatchCompleted(**BY, outcome=Outcome.FAILED, counts=counts, duration=1.0)
    await record(server, batch, progressed, completed)
    return batch, upload


async def test_latest_reflects_earlier_writes_of_every_client(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay_projector(monkeypatch)

    async with serving(database_url, tmp_path) as server:
        latest = {"min_position": "latest"}
        viewer = await server.key_for(Scope.VIEWER)
        started = await server.batch("a", "b", label="new")
        batch, upload = started.json["id"], started.json["uploads"][0]
        path = f"/v1/batches/{batch}"

        shown = await server.get(path, params=latest, key=viewer)
        assert (shown.status, shown.json["label"]) == (200, "new")
        await server.post(f"{path}/seal")
        assert (await server.get(path, params=latest, key=viewer)).json["state"] == "sealed"
        await server.post(f"{path}/pause")
        (row,) = (await server.get("/v1/batches", params=latest, key=viewer)).json["items"]
        assert row["paused"] is True
        await server.post(f"/v1/uploads/{upload}/cancel")
        listed = await server.get(f"{path}/uploads", params=latest, key=viewer)
        assert [row["state"] for row in listed.json["items"]] == ["cancelled", "registered"]
        await server.post(f"{path}/resume")
        events = (await server.get(f"{path}/history", params=latest)).json["items"]
        assert events[-1]["type"] == "batch.resumed"
        await server.post(f"{path}/pause")
        report = (await server.get(f"{path}/report.json", params=latest)).json
        assert report["batch"]["paused"] is True


async def test_every_read_that_takes_a_position_takes_latest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.rest.webhooks.VISIBLE_TIMEOUT", 0.0)  # no follower runs

    admin = await server.key_for(Scope.ADMIN)
    started = await server.batch("a")
    hook = {"url": "https://example.com/hook", "events": ["batch.completed"]}
    added = await server.post("/v1/webhooks", json=hook)
    ids = {
        "batches": started.json["id"],
        "uploads": started.json["uploads"][0],
        "webhooks": added.json["webhook"]["id"],
    }
    reads = [op for op in OPERATIONS if "min_position" in op.query]
    assert len(reads) >= 14
    for operation in reads:
        kind = operation.path.split("/")[2]
        path = operation.path.replace("{id}", ids.get(kind, ""))

        bad = await server.get(path, params={"min_position": "last"}, key=admin)
        assert bad.status == 400, (path, bad.body)
        assert bad.pointers == ["min_position"]
        if kind == "webhooks" and "history" not in path:
            continue  # no process follows the log for webhooks here
        good = await server.get(path, params={"min_position": "latest"}, key=admin)
        assert good.status == 200, (path, good.body)


async def test_a_position_that_is_not_reached_is_named_for_a_retry(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.common.requests.MAX_POSITION_WAIT", 0.2)
    hold_projector(monkeypatch)

    async with serving(database_url, tmp_path) as server:
        started = await server.batch()
        path = f"/v1/batches/{started.json['id']}"

        answer = await server.get(path, params={"min_position": "latest"})

        assert (answer.status, answer.code) == (504, "position_not_reached")
        assert answer.json["min_position"] == started.json["position"]
        assert answer.json["position"] == 0
        assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("end", "state", "act", "body"),
    [
        (UploadFailed(**BY, step="scan", message="no"), "failed", "retry", None),
        (
            UploadQuarantined(**BY, step="scan", reason="no"),
            "quarantined",
            "release",
            {"reason": "it is fine"},
        ),
    ],
)
async def test_an_upload_that_goes_on_ends_the_verdict_of_its_batch_at_the_same_moment(
    server: Server, end: Event, state: str, act: str, body: Any
) -> None:
    """No orchestrator runs here, which would do it a moment later."""

    batch, upload = await failed_batch(server, end, {UploadState(state): 1})
    path, latest = f"/v1/batches/{batch}", {"min_position": "latest"}
    before = (await server.get(path, params=latest)).json
    assert (before["state"], before["outcome"]) == ("completed", "failed")

    options = {"json": body} if body else {}
    answer = await server.post(f"/v1/uploads/{upload}/{act}", **options)

    assert answer.status == 202
    shown = await server.get(path, params={"min_position": answer.json["position"]})
    assert (shown.json["state"], shown.json["outcome"]) == ("sealed", None)
