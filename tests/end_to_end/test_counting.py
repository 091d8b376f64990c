"""
The fault: every file that passed through added one to a counter. A batch that was taken up again
after a crash counted its files a second time, the bar went beyond 100 %, and whoever checked
"done == total" waited for ever.

Here a count is the size of a set, whoever says a thing however often.
"""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.api_client import OCTETS, Client
from tests.fault_injection import block_uploads_after
from tests.server_process import UPTRAIL, Cluster, wait_for

SETTINGS = {"batch_progress_interval": 0.01, "progress_interval": 0.02}
FILES = {f"folder/{number}.bin": bytes([number]) * 3000 for number in range(20)}
MANIFEST = {"files": [{"path": path, "size": len(content)} for path, content in FILES.items()]}
KEY = {"Idempotency-Key": "one-and-the-same", "Content-Type": "application/json"}


def test_a_resumed_batch_never_counts_a_file_twice(cluster: Cluster) -> None:
    client = cluster.admin
    batch = start(client)
    sent = list(FILES.items())
    cut_short(client, batch, *sent[0])
    for path, content in sent[:10]:
        finish(client, batch, path, content)

    assert start(client) == batch  # the client lost its memory, and says everything again
    added = client.post(f"/v1/batches/{batch}/uploads", MANIFEST)
    assert (added["added"], added["known"]) == (0, len(FILES))
    for path, content in sent:
        finish(client, batch, path, content)
        client.send(batch, path, content)
    client.post(f"/v1/batches/{batch}/seal")
    done = ended(client, batch)

    assert done["counts"] == {"completed": len(FILES)}
    assert done["bytes_received"] == done["bytes_total"] == 3000 * len(FILES)
    assert (done["uploads"], done["percent"]) == (len(FILES), 100.0)
    assert set(client.uploads(batch)) == set(FILES)
    events = client.history(f"/v1/batches/{batch}")
    assert sum(event["type"] == "upload.registered" for event in events) == len(FILES)
    assert sum(event["type"] == "batch.completed" for event in events) == 1
    every_count_is_that_of_the_set(events)


def test_a_client_that_was_killed_never_sends_a_file_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    files = {f"{number:03}.bin": number.to_bytes(2) * 40_000 for number in range(400)}  # 8 bundles
    folder = tmp_path / "photos"
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    words = ["upload", str(folder), "--wait", "--json", "--data-dir", str(cluster.data_dir)]
    one_by_one = ["--jobs", "1"]
    before = received(cluster)
    with (
        block_uploads_after(cluster.database_url, files=100) as is_blocked,
        subprocess.Popen([*UPTRAIL, *words, *one_by_one], stdout=subprocess.DEVNULL) as first,
    ):
        try:
            wait_for(is_blocked)
        finally:
            first.kill()
    assert before < received(cluster) < before + len(files)

    again = subprocess.run([*UPTRAIL, *words], capture_output=True, check=True, timeout=240)

    batch = json.loads(again.stdout)["id"]
    done = ended(cluster.admin, batch)
    assert done["outcome"] == "succeeded"
    assert done["counts"] == {"completed": len(files)}
    assert done["bytes_received"] == done["bytes_total"] == 80_000 * len(files)
    every_count_is_that_of_the_set(cluster.admin.history(f"/v1/batches/{batch}"))


def test_percent_never_passes_100(cluster: Cluster) -> None:
    progress_events = [
        event for event in cluster.admin.history("/v1") if "percent" in event["data"]
    ]

    assert progress_events
    for event in progress_events:
        assert 0 <= event["data"]["percent"] <= 100, event
    batches = [event for event in progress_events if event["type"] == "batch.progressed"]
    for stream in {event["stream"] for event in batches}:
        last = [event for event in batches if event["stream"] == stream][-1]
        assert last["data"]["percent"] == 100.0


def start(client: Client) -> str:
    body = json.dumps(MANIFEST).encode()
    answer = client.answer("POST", "/v1/batches", headers=KEY, body=body)
    assert answer.status in (200, 201)
    return str(answer.json["id"])


def finish(client: Client, batch: str, path: str, content: bytes) -> None:
    """Ask for the offset and send the rest, as a resuming client does."""
    location = client.create(batch, path, len(content))
    offset = client.offset(location)
    assert client.append(location, offset, content[offset:]).status == 204


def cut_short(client: Client, batch: str, path: str, content: bytes) -> None:
    """Piece by piece until some of it counts, and then nothing any more."""
    location = client.create(batch, path, len(content))
    pieces = iter(content[start : start + 10] for start in range(0, len(content) // 2, 10))
    with socket.create_connection(("127.0.0.1", client.port)) as line:
        line.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.key}\r\n"
            f"Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: {OCTETS}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
        )

        def some_counts() -> bool:
            line.sendall(next(pieces, b""))
            return bool(client.answer("GET", location).json.get("received"))

        wait_for(some_counts)


def ended(client: Client, batch: str) -> dict[str, Any]:
    wait_for(lambda: client.batch(batch)["state"] == "completed")
    return client.batch(batch)


def received(cluster: Cluster) -> int:
    rows = cluster.fetch("SELECT count(*) FROM stored_events WHERE topic = 'upload.file_received'")
    return int(rows[0][0])


def every_count_is_that_of_the_set(events: list[dict[str, Any]]) -> None:
    """No count of a batch ever knew more uploads, or more bytes, than had been registered."""
    registered, size = 0, 0
    for event in events:
        if event["type"] == "upload.registered":
            registered += 1
            size += event["data"]["size"]
        if event["type"] == "batch.progressed":
            assert sum(event["data"]["counts"].values()) <= registered
            assert event["data"]["bytes_received"] <= event["data"]["bytes_total"] <= size
