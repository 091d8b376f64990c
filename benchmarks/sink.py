"""Server that drops request bodies, to measure the raw limit of a socket.

`python -m benchmarks.sink PORT KIND`; KIND is `protocol`, which receives a new bytes object for
each read as in aiohttp, or `buffered`, which reads into one buffer.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

_ANSWER = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
_BUFFER = bytearray(256 * 1024)


class DroppingProtocol:
    """Counts down the declared length, and responds at the end of the body."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left = 0

    def consume(self, received: bytes | memoryview) -> None:
        if self._left == 0:
            head, _, rest = bytes(received).partition(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-L"))
            self._left, received = int(length.split(b":")[1]), rest
        self._left -= len(received)
        if self._left == 0:
            self._transport.write(_ANSWER)


class Plain(DroppingProtocol, asyncio.Protocol):  # type: ignore[misc]
    def data_received(self, data: bytes) -> None:
        self.consume(data)


class Buffered(DroppingProtocol, asyncio.BufferedProtocol):  # type: ignore[misc]
    def get_buffer(self, sizehint: int) -> bytearray:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.consume(memoryview(_BUFFER)[:nbytes])


async def _serve(port: int, kind: str) -> None:
    made: type[asyncio.BaseProtocol] = Buffered if kind == "buffered" else Plain
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
