"""Requests that upload a file to Uptrail, to tus servers and to the minimal receiver."""

from __future__ import annotations

import io
import tarfile
from base64 import b64encode
from collections.abc import Iterable

from benchmarks.senders import ask
from benchmarks.servers import Server

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SMALL = bytes(10 * KIB)
UPLOADS = "/v1/uploads"  # Uptrail's collection of uploads
_TUS = {"Tus-Resumable": "1.0.0"}
_BYTES = {"Content-Type": "application/offset+octet-stream"}


def start_batch(server: Server) -> str:
    """Start a batch; return its path."""
    body = b'{"label":"benchmark"}'
    head = head_of(server, "POST", "/v1/batches", {"Content-Type": "application/json"}, len(body))
    return _location(ask(server.port, head + body))


def create(server: Server, name: str, size: int, collection: str = UPLOADS) -> str:
    """Create an upload on any tus server; return its path."""
    headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": _named(name)}
    return _location(ask(server.port, head_of(server, "POST", collection, headers, 0)))


def creation(server: Server, batch: str, name: str, content: bytes = SMALL) -> bytes:
    """Build a request that creates an upload in an Uptrail batch, with its bytes."""
    return tus_creation(server, f"{batch}/uploads", name, content)


def tus_creation(server: Server, collection: str, name: str, content: bytes = SMALL) -> bytes:
    """Build a creation-with-upload request for the tus server at the path `collection`."""
    headers = {"Upload-Length": str(len(content)), "Upload-Metadata": _named(name)}
    headers |= _TUS | _BYTES
    return head_of(server, "POST", collection, headers, len(content)) + content


def patch(server: Server, location: str, size: int) -> bytes:
    """Build the head of a PATCH request for all bytes of an upload."""
    headers = {"Upload-Offset": "0", **_TUS, **_BYTES}
    return head_of(server, "PATCH", location, headers, size)


def bundle(server: Server, batch: str, names: Iterable[str], content: bytes = SMALL) -> bytes:
    """Build a request with small files of a batch as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    body = archive.getvalue()
    headers = {"Content-Type": "application/x-tar"}
    return head_of(server, "POST", f"{batch}/uploads", headers, len(body)) + body


def bare_head(size: int) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: bare\r\nContent-Length: {size}\r\n\r\n".encode()


def bare_request(body: bytes) -> bytes:
    return bare_head(len(body)) + body


def head_of(server: Server, method: str, path: str, headers: dict[str, str], length: int) -> bytes:
    """Build the head of a request, with a key if the server has one."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}"]
    if server.key:
        lines.append(f"Authorization: Bearer {server.key}")
    lines.append(f"Content-Length: {length}")
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
