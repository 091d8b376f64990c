"""Lightweight feed clients: a thousand in one process.

They implement the minimum of WebSocket (RFC 6455) over asyncio protocols, to leave the shared
cores to the server.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import cast
from uuid import UUID

import msgspec

MASKED = b"\x00\x00\x00\x00"  # a mask that changes nothing
TEXT, CLOSE = 0x1, 0x8
MAX_CONNECTING = 50  # connections that are being made


class UploadRow(msgspec.Struct):
    """Fields of an upload's row that the benchmark reads."""

    id: UUID
    received: int


class Frame(msgspec.Struct):
    """Fields of a frame that the benchmark reads."""

    type: str
    uploads: list[UploadRow] = []
    more: bool = False


class Arrivals(msgspec.Struct):
    """Received rows, in parallel arrays: index of the upload, bytes done, time."""

    upload: array[int]
    done: array[int]
    at: array[float]
    frames: int = 0
    size: int = 0  # bytes


_decode = msgspec.json.Decoder(Frame).decode


class Watcher(asyncio.Protocol):
    """Connection that is subscribed to one batch."""

    def __init__(self, request: bytes, batch: UUID, on_frame: Callable[[bytes], Frame]) -> None:
        self._request = request
        self._subscribe = _client_frame(
            msgspec.json.encode({"type": "subscribe", "batches": [batch], "after": None})
        )
        self._on_frame = on_frame
        self._left = b""
        self._open = False
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is not derived from it
        self.transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server refused the connection"))

    def data_received(self, data: bytes) -> None:
        data = self._left + data if self._left else data
        if not self._open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._left = head
                return
            if b" 101 " not in head.split(b"\r\n")[0]:
                self.transport.abort()
                return
            self._open = True
            self.transport.write(self._subscribe)
        self._left = self._frames(data)

    def _frames(self, data: bytes) -> bytes:
        """Handle the complete frames; return the incomplete rest."""
        while len(data) >= 2:
            start, size = 2, data[1]
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(data[2:start])
            if len(data) < start + size:
                break
            if data[0] & 0x0F == TEXT:
                self._handle_frame(data[start : start + size])
            elif data[0] & 0x0F == CLOSE:
                self.transport.abort()
            data = data[start + size :]
        return data

    def _handle_frame(self, frame: bytes) -> None:
        decoded = self._on_frame(frame)
        if decoded.type == "ping":
            self.transport.write(_client_frame(b'{"type":"pong"}'))
        elif decoded.type == "snapshot" and not decoded.more and not self.ready.done():
            self.ready.set_result(None)


class Watchers:
    """All connections, and the rows that arrived on any of them."""

    def __init__(self, uploads: Sequence[UUID]) -> None:
        self._index = {id: index for index, id in enumerate(uploads)}
        self.last = array("q", bytes(8 * len(uploads)))  # bytes that each upload is known to have
        self.arrivals = Arrivals(array("q"), array("q"), array("d"))
        self._sockets: list[Watcher] = []

    async def connect(self, port: int, keys: Sequence[str], batches: Sequence[UUID]) -> None:
        """Open a socket for each batch; return once each has its snapshot."""
        semaphore = asyncio.Semaphore(MAX_CONNECTING)

        async def join(number: int, batch: UUID) -> None:
            async with semaphore:
                request = _handshake(port, keys[number % len(keys)])
                _, watcher = await asyncio.get_running_loop().create_connection(
                    lambda: Watcher(request, batch, self._record_frame), "127.0.0.1", port
                )
                self._sockets.append(watcher)
                await watcher.ready

        async with asyncio.TaskGroup() as tasks:
            for number, batch in enumerate(batches):
                tasks.create_task(join(number, batch))

    @property
    def connected(self) -> int:
        return sum(not watcher.transport.is_closing() for watcher in self._sockets)

    async def until(self, done: Sequence[int], patience: float) -> int:
        """Wait until every upload has these bytes; return the number that did not reach them."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not (missing := sum(a < b for a, b in zip(self.last, done, strict=True))):
                return 0
            await asyncio.sleep(0.05)
        return missing

    def close(self) -> None:
        for watcher in self._sockets:
            watcher.transport.abort()

    def _record_frame(self, frame: bytes) -> Frame:
        decoded, now = _decode(frame), time.monotonic()
        arrivals = self.arrivals
        arrivals.frames += 1
        arrivals.size += len(frame)
        for row in decoded.uploads:
            index = self._index[row.id]
            arrivals.upload.append(index)
            arrivals.done.append(row.received)
            arrivals.at.append(now)
            self.last[index] = row.received
        return decoded


def _handshake(port: int, key: str) -> bytes:
    lines = (
        "GET /v1/feed HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Protocol: uptrail.v1.json",
        f"Authorization: Bearer {key}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def _client_frame(text: bytes) -> bytes:
    """Encode a text message of fewer than 126 bytes."""
    assert len(text) < 126
    return bytes((0x80 | TEXT, 0x80 | len(text))) + MASKED + text
