"""
The fault: one worker took one batch after the other, so that whoever came after a big one waited
until all of it was done.

Here the big batch is released in windows, and owners take turns.
"""

from __future__ import annotations

import http.client
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

from tests.api_client import Client
from tests.end_to_end.conftest import MakeCluster
from tests.server_process import steps, wait_for

BIG = 2000
WINDOW = 100


def test_a_big_batch_never_blocks_another_owner(make_cluster: MakeCluster) -> None:
    """Judged by places in the log, not by time: how much of the big batch came before."""
    cluster = make_cluster(
        pipelines={"default": steps("checksum")},
        in_flight_per_batch=WINDOW,
        in_flight_per_owner=2 * WINDOW,
    )
    cluster.start("api", "orchestrator")
    giant, dwarf = cluster.key_for("giant"), cluster.key_for("dwarf")
    big = giant.post("/v1/batches", {"priority": 100})["id"]
    with ThreadPoolExecutor(4) as senders:
        list(senders.map(lambda start: send_many(giant, big, start), range(0, BIG, BIG // 4)))
    giant.post(f"/v1/batches/{big}/seal")
    small = dwarf.send_batch({f"{number}.txt": b"x" for number in range(5)})

    cluster.start_worker()
    wait_for(lambda: dwarf.batch(small)["outcome"] == "succeeded")
    wait_for(lambda: giant.batch(big)["outcome"] == "succeeded")

    (end,) = (e["position"] for e in dwarf.history(f"/v1/batches/{small}") if ends(e))
    done = [e["position"] for e in giant.history(f"/v1/batches/{big}") if completes(e)]
    assert len(done) == BIG
    ahead = sum(position < end for position in done)
    assert ahead <= 3 * WINDOW, f"{ahead} files of the big batch came first"


def test_a_window_is_never_overrun(make_cluster: MakeCluster) -> None:
    """At no place in the log were more of one batch released, and not yet ended, than allowed."""
    cluster = make_cluster(pipelines={"default": steps("checksum")}, in_flight_per_batch=10)
    cluster.start()

    batch = cluster.admin.send_batch({f"{number}.txt": b"x" for number in range(60)})
    wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")

    in_flight: set[str] = set()
    for event in cluster.admin.history(f"/v1/batches/{batch}"):
        if event["type"] == "upload.queued":
            in_flight.add(event["stream"])
        if completes(event):
            in_flight.discard(event["stream"])
        assert len(in_flight) <= 10
    assert not in_flight


def send_many(client: Client, batch: str, start: int) -> None:
    """A share of the big batch: empty files, one request each, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=120)
    known = {"Authorization": f"Bearer {client.key}", "Tus-Resumable": "1.0.0"}
    for number in range(start, start + BIG // 4):
        name = "filename " + b64encode(f"{number:05}.txt".encode()).decode()
        headers = known | {"Upload-Length": "0", "Upload-Metadata": name}
        connection.request("POST", f"/v1/batches/{batch}/uploads", headers=headers)
        response = connection.getresponse()
        assert response.status == 201, response.read()
        response.read()
    connection.close()


def completes(event: dict[str, object]) -> bool:
    return event["type"] == "upload.completed"


def ends(event: dict[str, object]) -> bool:
    return event["type"] == "batch.completed"
