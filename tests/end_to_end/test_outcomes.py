"""
The fault: a batch was "completed" when its loop came to an end, whatever had become of its files.
The states `failed` and `cancelled` existed on paper, nothing ever wrote them, and the route that
was to cancel fell over itself.

Here the outcome follows from the set of uploads, and every outcome there is really occurs.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from domain.batch.events import BatchExpired
from domain.event import Event
from infrastructure.event_store.committer import GroupCommitter
from tests.api_client import Client
from tests.server_process import Cluster, steps, wait_for
from tests.support import run

SETTINGS = {
    "pipelines": {"default": steps("stumble")},
    "retry_policy": {"attempts": 2, "first_delay": 0.01},
}
FINE = {"a.txt": b"a", "b.txt": b"b"}


@pytest.mark.parametrize(
    ("files", "outcome", "counts"),
    [
        (FINE, "succeeded", {"completed": 2}),
        ({}, "succeeded", {}),
        (FINE | {"broken": b"c"}, "completed_with_failures", {"completed": 2, "failed": 1}),
        (FINE | {"clumsy": b"c"}, "completed_with_failures", {"completed": 2, "failed": 1}),
        ({"broken": b"c", "clumsy": b"d"}, "failed", {"failed": 2}),
    ],
)
def test_a_batch_with_failures_is_never_called_succeeded(
    cluster: Cluster, files: dict[str, bytes], outcome: str, counts: dict[str, int]
) -> None:
    done = ended(cluster.admin, cluster.admin.send_batch(files))

    assert done["outcome"] == outcome
    assert done["counts"] == counts
    verdicts = verdicts_of(cluster.admin, done["id"])
    assert [(verdict["outcome"], verdict["counts"]) for verdict in verdicts] == [(outcome, counts)]


def test_a_batch_with_a_rejected_file_is_never_called_succeeded(cluster: Cluster) -> None:
    client = cluster.admin
    batch = client.post("/v1/batches", {})["id"]
    client.post(f"/v1/batches/{batch}/uploads", [{"path": "../secret"}])
    client.send(batch, "a.txt", b"a")
    client.post(f"/v1/batches/{batch}/seal")

    done = ended(client, batch)

    assert done["outcome"] == "completed_with_failures"
    assert done["counts"] == {"completed": 1, "rejected": 1}


def test_a_cancelled_batch_is_never_called_anything_else(cluster: Cluster) -> None:
    client = cluster.admin
    batch = client.post("/v1/batches", {"files": [{"path": "never sent", "size": 5}]})["id"]
    sent = client.send(batch, "a.txt", b"a")
    wait_for(lambda: client.state(sent) == "completed")

    assert client.post(f"/v1/batches/{batch}/cancel", {"reason": "enough"})["state"] == "cancelling"
    done = ended(client, batch)

    assert done["outcome"] == "cancelled"
    assert done["counts"] == {"completed": 1, "cancelled": 1}
    assert client.answer("POST", f"/v1/batches/{batch}/seal").status == 409


def test_an_expired_batch_is_never_called_anything_else(cluster: Cluster) -> None:
    """No route records this yet; the processes react to the event."""
    client = cluster.admin
    batch = client.post("/v1/batches", {"files": [{"path": "never sent", "size": 5}]})["id"]
    record(cluster, batch, BatchExpired(at=datetime.now(UTC), by="test"))

    done = ended(client, batch)

    assert done["outcome"] == "expired"
    assert done["counts"] == {"expired": 1}


def test_a_batch_whose_failure_is_repaired_never_keeps_its_old_outcome(
    cluster: Cluster,
) -> None:
    client = cluster.admin
    done = ended(client, client.send_batch({"a.txt": b"a", "clumsy": b"c"}))
    upload = client.uploads(done["id"])["clumsy"]["id"]

    client.post(f"/v1/uploads/{upload}/retry")  # from the third attempt on it meets a ValueError
    wait_for(lambda: len(verdicts_of(client, done["id"])) == 2)

    kinds = [event["type"] for event in client.history(f"/v1/batches/{done['id']}")]
    assert kinds.index("batch.completed") < kinds.index("batch.reopened")
    assert kinds[-1] == "batch.completed"


def ended(client: Client, batch: str) -> dict[str, Any]:
    wait_for(lambda: client.batch(batch)["outcome"])
    return client.batch(batch)


def verdicts_of(client: Client, batch: str) -> list[dict[str, Any]]:
    events = client.history(f"/v1/batches/{batch}")
    return [event["data"] for event in events if event["type"] == "batch.completed"]


def record(cluster: Cluster, stream: str, event: Event) -> None:
    async def recording() -> None:
        async with GroupCommitter(cluster.database_url) as committer:
            await asyncio.wait_for(
                committer.append(append_to_stream(UUID(stream), None, event)), 20
            )

    run(recording())
