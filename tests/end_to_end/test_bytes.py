"""
The fault: a file was read into memory whole before anybody looked at its size, was written with
calls that blocked everything else, and was "saved" before it had reached the disk. What was cut
off lay around for ever.

Here bytes go to the disk as they come, and are durable before they are acknowledged.
"""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path

import pytest

from tests.api_client import OCTETS, Client
from tests.blob_files import uploads_in
from tests.end_to_end.conftest import MakeCluster
from tests.server_process import Cluster, steps, wait_for

MIB = 1024 * 1024
SETTINGS = {"pipelines": {"default": steps("checksum")}}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs VmHWM of Linux")
def test_a_large_file_is_never_held_in_memory(cluster: Cluster) -> None:
    """In by one request, through the pipeline, and out again: all in one process."""
    client, size = cluster.admin, 512 * MIB
    batch = client.post("/v1/batches", {})["id"]
    location = client.create(batch, "film.bin", size)
    piece = random.Random(7).randbytes(MIB)

    with socket.create_connection(("127.0.0.1", cluster.port)) as line:
        line.sendall(patch_of(client, location, 0, size))
        for _ in range(size // MIB):
            line.sendall(piece)
        assert line.recv(4096).startswith(b"HTTP/1.1 204")
    wait_for(lambda: client.state(location.rpartition("/")[2]) == "completed")
    with socket.create_connection(("127.0.0.1", cluster.port)) as line:
        line.sendall(request_of(client, "GET", f"{location}/content"))
        given = read_all(line, size, piece)

    assert given == size
    assert peak(cluster) < 150 * MIB


def test_nothing_is_acknowledged_before_it_is_durable(make_cluster: MakeCluster) -> None:
    """The server is killed the moment it has said 204, again and again."""
    cluster = make_cluster(**SETTINGS)
    content, chance = random.Random(3).randbytes(400_000), random.Random(4)
    server = cluster.start("api")
    client = cluster.admin
    batch = client.post("/v1/batches", {})["id"]
    location, offset = client.create(batch, "pieces.bin", len(content)), 0
    whole = client.send(batch, "whole.bin", content[:1000])
    for _ in range(2):
        piece = content[offset : offset + chance.randrange(1, 190_000)]
        answer = client.append(location, offset, piece)
        cluster.kill(server)

        assert answer.status == 204
        offset = int(answer.headers["Upload-Offset"])
        server = cluster.start("api")
        assert client.offset(location) == offset
    assert client.append(location, offset, content[offset:]).status == 204
    cluster.kill(server)
    cluster.start()
    client.post(f"/v1/batches/{batch}/seal")
    wait_for(lambda: client.batch(batch)["outcome"] == "succeeded")

    assert client.answer("GET", f"{location}/content").content == content
    assert client.answer("GET", f"/v1/uploads/{whole}/content").content == content[:1000]


CUTS = [0, 1, 5000, 39_999]


def test_a_cut_upload_never_leaves_an_orphan(cluster: Cluster) -> None:
    """Every blob in the store after a cut belongs to an upload that can continue or has ended."""
    client = cluster.admin
    batch = client.post("/v1/batches", {})["id"]
    for number, cut in enumerate(CUTS):
        created = {"Upload-Length": "40000", "Content-Length": "40000", "Content-Type": OCTETS}
        created["Upload-Metadata"] = f"filename {'abcd'[number]}bcd"
        with socket.create_connection(("127.0.0.1", cluster.port)) as line:
            line.sendall(request_of(client, "POST", f"/v1/batches/{batch}/uploads", **created))
            line.sendall(b"x" * cut)
        location = client.create(batch, f"half of it {cut}", 40_000)
        with socket.create_connection(("127.0.0.1", cluster.port)) as line:
            line.sendall(patch_of(client, location, 0, 40_000) + b"x" * cut)
    gone = client.create(batch, "called off", 40_000)
    assert client.append(gone, 0, b"x" * 20_000).status == 204
    assert client.tus("DELETE", gone).status == 204
    assert client.tus("DELETE", gone).status == 410

    wait_for(lambda: not transfers(cluster))
    for upload in client.uploads(batch).values():
        if upload["state"] in ("registered", "transferring"):
            client.tus("HEAD", f"/v1/uploads/{upload['id']}")  # ends what still runs

    # A connection may be gone before its bytes are on record; then they are, or are put away.
    wait_for(lambda: kept(cluster) <= recorded(cluster))
    assert gone.rpartition("/")[2] not in kept(cluster)
    for upload in client.uploads(batch).values():
        if upload["path"].startswith("half of it"):
            assert upload["received"] <= 39_999
            rest = 40_000 - client.offset(f"/v1/uploads/{upload['id']}")
            offset = 40_000 - rest
            answer = client.append(f"/v1/uploads/{upload['id']}", offset, b"x" * rest)
            assert answer.status == 204, "what was cut cannot go on"


def test_a_file_that_is_too_large_is_never_read_first(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(**SETTINGS, max_file_size=MIB)
    cluster.start("api")
    client, before = cluster.admin, cluster.head()
    headers = {"Upload-Length": str(MIB + 1), "Content-Type": OCTETS, "Tus-Resumable": "1.0.0"}
    for more in ({}, {"Content-Length": str(MIB + 1)}):
        with socket.create_connection(("127.0.0.1", cluster.port)) as line:
            line.sendall(request_of(client, "POST", "/v1/uploads", **headers, **more))
            answer = line.recv(4096)  # although no byte of the file was sent
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"1048576" in answer
    assert cluster.head() == before
    assert not stored(cluster)


def request_of(client: Client, method: str, path: str, **headers: str) -> bytes:
    said = {"Host": "x", "Authorization": f"Bearer {client.key}", "Tus-Resumable": "1.0.0"}
    lines = "".join(f"{name}: {text}\r\n" for name, text in {**said, **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def patch_of(client: Client, location: str, offset: int, length: int) -> bytes:
    headers = {"Upload-Offset": str(offset), "Content-Length": str(length), "Content-Type": OCTETS}
    return request_of(client, "PATCH", location, **headers)


def read_all(line: socket.socket, size: int, piece: bytes) -> int:
    """Return how many bytes of the content arrived unchanged."""
    with line.makefile("rb") as reader:
        assert reader.readline().startswith(b"HTTP/1.1 200")
        while reader.readline() != b"\r\n":
            pass
        count = 0
        while count < size and reader.read(len(piece)) == piece:
            count += len(piece)
        return count


def peak(cluster: Cluster) -> int:
    """The most memory the server ever had in use, in bytes."""
    (server,) = cluster.running()
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def stored(cluster: Cluster) -> dict[str, Path]:
    """The blobs in which bytes of uploads are kept, and their files."""
    return uploads_in(cluster.data_dir / "blobs")


def kept(cluster: Cluster) -> set[str]:
    """The uploads of which there are bytes."""
    return {name.removeprefix("uploads/").partition(".")[0] for name in stored(cluster)}


def recorded(cluster: Cluster) -> set[str]:
    """Return the uploads with recorded events."""
    rows = cluster.fetch("SELECT DISTINCT originator_id FROM stored_events")
    return {str(row[0]) for row in rows}


def transfers(cluster: Cluster) -> int:
    """Connections to the server that are still open, but for that of this question."""
    (server,) = cluster.running()
    return sum(
        connection.status == "ESTABLISHED" and connection.laddr.port == cluster.port
        for connection in server.net_connections("tcp")
    )
