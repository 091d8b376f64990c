"""
The fault: files that were turned away were named in one HTTP response. Whoever lost that had no
way to know what was missing, nor why.

Here a rejection is an event like any other: in the history, in the list, on the feed, in the count.
"""

from __future__ import annotations

from typing import Any

from tests.server_process import Cluster, steps, wait_for

SETTINGS = {"pipelines": {"default": steps("checksum")}, "max_file_size": 1000}
REFUSED: dict[str, dict[str, Any]] = {
    "../etc/passwd": {"path": "../etc/passwd"},
    "a\ufffdb": {"path": "a\x07b"},
    "huge.bin": {"path": "huge.bin", "size": 1001},
    "negative.bin": {"path": "negative.bin", "size": -1},
    "odd.bin": {"path": "odd.bin", "checksum": "md5:0"},
}


def test_a_rejected_file_is_never_only_in_the_response(cluster: Cluster) -> None:
    client = cluster.admin
    batch = client.post("/v1/batches", {})["id"]
    sent = [{"path": "fine.txt", "size": 1}, *REFUSED.values()]

    answer = client.post(f"/v1/batches/{batch}/uploads", sent)
    again = client.post(f"/v1/batches/{batch}/uploads", sent)  # the response was lost
    client.send(batch, "fine.txt", b"x")
    client.post(f"/v1/batches/{batch}/seal")
    wait_for(lambda: client.batch(batch)["outcome"])

    assert (answer["added"], answer["rejected"]) == (1, len(REFUSED))
    assert (again["added"], again["known"]) == (0, 1)
    reasons = {file["path"]: file["message"] for file in answer["files"] if "message" in file}
    events = client.history(f"/v1/batches/{batch}")
    rejected = [event for event in events if event["type"] == "upload.rejected"]
    assert {event["data"]["path"] for event in rejected} == set(REFUSED)
    assert len(rejected) == len(REFUSED), "a rejection that was said again was counted again"
    rows = client.uploads(batch)
    for event in rejected:
        row = rows[event["data"]["path"]]
        assert (row["state"], row["error"]) == ("rejected", event["data"]["message"])
        assert event["data"]["message"] in reasons.values()
        assert event["by"].startswith("key:")
    assert client.batch(batch)["counts"] == {"completed": 1, "rejected": len(REFUSED)}
    assert client.batch(batch)["outcome"] == "completed_with_failures"


def test_a_path_that_was_rejected_once_is_never_blocked_for_good(
    cluster: Cluster,
) -> None:
    client = cluster.admin
    batch = client.post("/v1/batches", {})["id"]
    client.post(f"/v1/batches/{batch}/uploads", [{"path": "a.bin", "size": 1001}])

    added = client.post(f"/v1/batches/{batch}/uploads", [{"path": "a.bin", "size": 1000}])

    assert added["added"] == 1
