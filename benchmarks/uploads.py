"""Uploads over HTTP: many small files, and one large one, against a bare aiohttp receiver."""

from __future__ import annotations

from base64 import b64encode
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Ratio, in_turn
from benchmarks.senders import ask, send_small, send_stream
from benchmarks.servers import Server, bare_receiver, uptrail

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SMALL = bytes(10 * KIB)


def small_files(scale: float) -> list[Ratio]:
    """10 KiB files, tus creation-with-upload into one batch, 8 at once, history on."""
    files, numbers = int(4000 * scale), count()
    with (
        TemporaryDirectory() as folder,
        uptrail(Path(folder) / "us", "api") as us,
        bare_receiver(Path(folder) / "bare") as bare,
    ):
        batch = start_batch(us)
        bare_requests = [bare_request(SMALL)] * files

        def ours() -> float:
            requests = [creation(us, batch, f"{next(numbers)}.bin") for _ in range(files)]
            return send_small(us.port, requests)

        mine, theirs = in_turn(3, ours, lambda: send_small(bare.port, bare_requests))
    return [Ratio("10 KiB files", "files/s", mine, "bare aiohttp receiver", theirs, 0.7)]


def one_stream(scale: float) -> list[Ratio]:
    """1 GiB in one PATCH."""
    size, numbers = int(GIB * scale), count()
    with (
        TemporaryDirectory() as folder,
        uptrail(Path(folder) / "us", "api") as us,
        bare_receiver(Path(folder) / "bare") as bare,
    ):

        def ours() -> float:
            location = create(us, f"{next(numbers)}.bin", size)
            rate = send_stream(us.port, patch(us, location, size), size)
            _free(Path(folder) / "us" / "blobs")
            return rate

        def theirs() -> float:
            rate = send_stream(bare.port, bare_head(size), size)
            _free(Path(folder) / "bare")
            return rate

        mine, peers = in_turn(3, ours, theirs)
        memory = us.peak_memory() / MIB
    note = f"server peak memory {memory:.0f} MiB (budget 150)"
    return [
        Ratio(
            "1 GiB in one stream",
            "MiB/s",
            mine / MIB,
            "bare aiohttp receiver",
            peers / MIB,
            0.9,
            note,
        )
    ]


def start_batch(server: Server) -> str:
    """A new batch; its path."""
    body = b'{"label":"benchmark"}'
    head = head_of(server, "POST", "/v1/batches", {"Content-Type": "application/json"}, len(body))
    return _location(ask(server.port, head + body))


def create(server: Server, name: str, size: int) -> str:
    """A new upload of its own; its path."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(size),
        "Upload-Metadata": _named(name),
    }
    return _location(ask(server.port, head_of(server, "POST", "/v1/uploads", headers, 0)))


def creation(server: Server, batch: str, name: str, content: bytes = SMALL) -> bytes:
    """A request that creates a small upload and carries its bytes."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(content)),
        "Upload-Metadata": _named(name),
        "Content-Type": "application/offset+octet-stream",
    }
    return head_of(server, "POST", f"{batch}/uploads", headers, len(content)) + content


def patch(server: Server, location: str, size: int) -> bytes:
    """The head of a request that carries all bytes of an upload."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }
    return head_of(server, "PATCH", location, headers, size)


def bare_head(size: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: bare\r\nContent-Length: {size}\r\n\r\n".encode()


def bare_request(body: bytes) -> bytes:
    return bare_head(len(body)) + body


def head_of(server: Server, method: str, path: str, headers: dict[str, str], length: int) -> bytes:
    """The head of a request to ours."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}"]
    lines += [f"Authorization: Bearer {server.key}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _named(name: str) -> str:
    return "filename " + b64encode(name.encode()).decode()


def _location(head: bytes) -> str:
    for line in head.decode().split("\r\n"):
        if line.lower().startswith("location:"):
            path = line.split(":", 1)[1].strip()
            return "/" + path.split("/", 3)[3] if path.startswith("http") else path
    raise LookupError(head.decode())


def _free(folder: Path) -> None:
    """Empties what was stored, so that the disk does not fill up between runs."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
