"""
The fault: after the last try the stored error was replaced by "Failed after retry". What had
really gone wrong, how often, where and when was nowhere to be found; tries followed each other at
once, and what could never succeed was tried as often as anything else.

Here every attempt is on record as it was, and a policy decides what follows it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.api_client import Client
from tests.server_process import Cluster, steps, wait_for

SETTINGS = {
    "pipelines": {"default": steps("checksum", "stumble")},
    "retry_policy": {"attempts": 3, "first_delay": 0.05, "longest_delay": 0.1},
}


def test_the_real_error_is_never_overwritten(cluster: Cluster) -> None:
    client = cluster.admin
    upload = failed(client, "clumsy.txt")

    attempts = client.get(f"/v1/uploads/{upload['id']}/attempts")["items"]

    assert [attempt["number"] for attempt in attempts] == [1, 2, 3]
    assert [(attempt["error_type"], attempt["message"]) for attempt in attempts] == [
        ("ConnectionResetError", "trouble number 1"),
        ("TimeoutError", "trouble number 2"),
        ("ValueError", "trouble number 3"),
    ]
    for attempt in attempts:
        assert (attempt["state"], attempt["step"]) == ("failed", "stumble")
        assert attempt["worker"]
        assert attempt["duration"] >= 0
    assert (upload["error"], upload["error_step"]) == ("trouble number 3", "stumble")


def test_the_next_retry_is_never_a_secret(cluster: Cluster) -> None:
    client = cluster.admin
    upload = failed(client, "clumsy twice.txt")
    events = client.history(f"/v1/uploads/{upload['id']}")
    failures = [event for event in events if event["type"] == "upload.attempt_failed"]
    starts = [event for event in events if event["type"] == "upload.attempt_started"]

    assert failures[-1]["data"].get("retry_at") is None
    for failure, start in zip(failures[:-1], starts[1:], strict=True):
        due = datetime.fromisoformat(failure["data"]["retry_at"])
        assert datetime.fromisoformat(failure["at"]) <= due
        assert due <= datetime.fromisoformat(start["at"]), "tried before its time"
    assert events[-1]["type"] == "upload.failed"
    assert events[-1]["data"]["message"] == "trouble number 3"


def test_a_permanent_error_is_never_tried_again(cluster: Cluster) -> None:
    client = cluster.admin
    upload = failed(client, "broken.txt")

    (attempt,) = client.get(f"/v1/uploads/{upload['id']}/attempts")["items"]

    assert attempt["error_type"] == "Permanent"
    assert attempt["message"] == "broken.txt is broken through and through"
    events = client.history(f"/v1/uploads/{upload['id']}")
    (failure,) = [event["data"] for event in events if event["type"] == "upload.attempt_failed"]
    assert failure["permanent"] is True
    assert failure.get("retry_at") is None


def test_bytes_that_are_not_those_declared_never_pass(cluster: Cluster) -> None:
    client = cluster.admin
    declared = {"path": "a.txt", "size": 4, "checksum": "sha256:" + "0" * 64}
    batch = client.post("/v1/batches", {"files": [declared]})["id"]
    upload = client.send(batch, "a.txt", b"data")
    wait_for(lambda: client.state(upload) == "failed")

    (attempt,) = client.get(f"/v1/uploads/{upload}/attempts")["items"]

    assert (attempt["step"], attempt["error_type"]) == ("checksum", "ChecksumMismatch")
    assert "0" * 64 in attempt["message"]


def test_a_retry_on_request_never_forgets_what_was_before(cluster: Cluster) -> None:
    client = cluster.admin
    upload = failed(client, "clumsy thrice.txt")
    path = f"/v1/uploads/{upload['id']}"

    client.post(f"{path}/retry")
    wait_for(lambda: len(client.get(f"{path}/attempts")["items"]) == 6)
    wait_for(lambda: client.get(path)["state"] == "failed")

    attempts = client.get(f"{path}/attempts")["items"]
    assert [attempt["number"] for attempt in attempts] == [1, 2, 3, 4, 5, 6]
    assert [attempt["message"] for attempt in attempts] == [
        f"trouble number {number}" for number in range(1, 7)
    ]


def failed(client: Client, path: str) -> dict[str, Any]:
    """The upload, once there is no attempt left."""
    batch = client.send_batch({path: b"x"})
    wait_for(lambda: client.batch(batch)["outcome"] == "failed")
    return client.uploads(batch)[path]
