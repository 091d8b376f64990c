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

from tests.faults.client import OCTETS, Client
from tests.faults.conftest import MakeSite
from tests.faults.site import Site, eventually, steps
from tests.stored import uploads_in

MIB = 1024 * 1024
SETTINGS = {"pipelines": {"default": steps("checksum")}}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs VmHWM of Linux")
def test_a_large_file_is_never_held_in_memory(site: Site) -> None:
    """In by one request, through the pipeline, and out again: all in one process."""
    client, size = site.admin, 512 * MIB
    batch = client.post("/v1/batches", {})["id"]
    location = client.create(batch, "film.bin", size)
    piece = random.Random(7).randbytes(MIB)

    with socket.create_connection(("127.0.0.1", site.port)) as line:
        line.sendall(patch_of(client, location, 0, size))
        for _ in range(size // MIB):
            line.sendall(piece)
        assert line.recv(4096).startswith(b"HTTP/1.1 204")
    eventually(lambda: client.state(location.rpartition("/")[2]) == "completed")
    with socket.create_connection(("127.0.0.1", site.port)) as line:
        line.sendall(request_of(client, "GET", f"{location}/content"))
        given = read_all(line, size, piece)

    assert given == size
    assert peak(site) < 150 * MIB


def test_nothing_is_acknowledged_before_it_is_durable(make_site: MakeSite) -> None:
    """The server is killed the moment it has said 204, again and again."""
    site = make_site(**SETTINGS)
    content, chance = random.Random(3).randbytes(400_000), random.Random(4)
    server = site.start("api")
    client = site.admin
    batch = client.post("/v1/batches", {})["id"]
    location, offset = client.create(batch, "pieces.bin", len(content)), 0
    whole = client.send(batch, "whole.bin", content[:1000])
    for _ in range(2):
        piece = content[offset : offset + chance.randrange(1, 190_000)]
        answer = client.append(location, offset, piece)
        site.kill(server)

        assert answer.status == 204
        offset = int(answer.headers["Upload-Offset"])
        server = site.start("api")
        assert client.offset(location) == offset
    assert client.append(location, offset, content[offset:]).status == 204
    site.kill(server)
    site.start()
    client.post(f"/v1/batches/{batch}/seal")
    eventually(lambda: client.batch(batch)["outcome"] == "succeeded")

    assert client.answer("GET", f"{location}/content").content == content
    assert client.answer("GET", f"/v1/uploads/{whole}/content").content == content[:1000]


CUTS = [0, 1, 5000, 39_999]


def test_a_cut_upload_never_leaves_an_orphan(site: Site) -> None:
    """Whatever lies in the store after a cut belongs to an upload that can go on, or ended."""
    client = site.admin
    batch = client.post("/v1/batches", {})["id"]
    for number, cut in enumerate(CUTS):
        created = {"Upload-Length": "40000", "Content-Length": "40000", "Content-Type": OCTETS}
        created["Upload-Metadata"] = f"filename {'abcd'[number]}bcd"
        with socket.create_connection(("127.0.0.1", site.port)) as line:
            line.sendall(request_of(client, "POST", f"/v1/batches/{batch}/uploads", **created))
            line.sendall(b"x" * cut)
        location = client.create(batch, f"half of it {cut}", 40_000)
        with socket.create_connection(("127.0.0.1", site.port)) as line:
            line.sendall(patch_of(client, location, 0, 40_000) + b"x" * cut)
    gone = client.create(batch, "called off", 40_000)
    assert client.append(gone, 0, b"x" * 20_000).status == 204
    assert client.tus("DELETE", gone).status == 204
    assert client.tus("DELETE", gone).status == 410

    eventually(lambda: not transfers(site))
    for upload in client.uploads(batch).values():
        if upload["state"] in ("registered", "transferring"):
            client.tus("HEAD", f"/v1/uploads/{upload['id']}")  # ends what still runs

    # A connection may be gone before its bytes are on record; then they are, or are put away.
    eventually(lambda: kept(site) <= recorded(site))
    assert gone.rpartition("/")[2] not in kept(site)
    for upload in client.uploads(batch).values():
        if upload["path"].startswith("half of it"):
            assert upload["received"] <= 39_999
            rest = 40_000 - client.offset(f"/v1/uploads/{upload['id']}")
            offset = 40_000 - rest
            answer = client.append(f"/v1/uploads/{upload['id']}", offset, b"x" * rest)
            assert answer.status == 204, "what was cut cannot go on"


def test_a_file_that_is_too_large_is_never_read_first(make_site: MakeSite) -> None:
    site = make_site(**SETTINGS, max_file_size=MIB)
    site.start("api")
    client, before = site.admin, site.head()
    headers = {"Upload-Length": str(MIB + 1), "Content-Type": OCTETS, "Tus-Resumable": "1.0.0"}
    for more in ({}, {"Content-Length": str(MIB + 1)}):
        with socket.create_connection(("127.0.0.1", site.port)) as line:
            line.sendall(request_of(client, "POST", "/v1/uploads", **headers, **more))
            answer = line.recv(4096)  # although no byte of the file was sent
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"1048576" in answer
    assert site.head() == before
    assert not stored(site)


def request_of(client: Client, method: str, path: str, **headers: str) -> bytes:
    said = {"Host": "x", "Authorization": f"Bearer {client.key}", "Tus-Resumable": "1.0.0"}
    lines = "".join(f"{name}: {text}\r\n" for name, text in {**said, **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def patch_of(client: Client, location: str, offset: int, length: int) -> bytes:
    headers = {"Upload-Offset": str(offset), "Content-Length": str(length), "Content-Type": OCTETS}
    return request_of(client, "PATCH", location, **headers)


def read_all(line: socket.socket, size: int, piece: bytes) -> int:
    """How many bytes of the content came, each as it was sent."""
    with line.makefile("rb") as reader:
        assert reader.readline().startswith(b"HTTP/1.1 200")
        while reader.readline() != b"\r\n":
            pass
        count = 0
        while count < size and reader.read(len(piece)) == piece:
            count += len(piece)
        return count


def peak(site: Site) -> int:
    """The most memory the server ever had in use, in bytes."""
    (server,) = site.running()
    status = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def stored(site: Site) -> dict[str, Path]:
    """The blobs in which bytes of uploads are kept, and their files."""
    return uploads_in(site.data_dir / "blobs")


def kept(site: Site) -> set[str]:
    """The uploads of which there are bytes."""
    return {name.removeprefix("uploads/").partition(".")[0] for name in stored(site)}


def recorded(site: Site) -> set[str]:
    """What there are events of."""
    rows = site.fetch("SELECT DISTINCT originator_id FROM stored_events")
    return {str(row[0]) for row in rows}


def transfers(site: Site) -> int:
    """Connections to the server that are still open, but for that of this question."""
    (server,) = site.running()
    return sum(
        connection.status == "ESTABLISHED" and connection.laddr.port == site.port
        for connection in server.net_connections("tcp")
    )
