"""Lightweight clients: prepared requests over blocking sockets, to measure only the servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

CONNECTIONS = 8
_BLOCK = bytes(1024 * 1024)


class BadResponse(Exception):
    """The server did not accept a request."""


def send_small(port: int, requests: Sequence[bytes]) -> float:
    """Send complete requests over 8 keep-alive connections; return requests per second."""
    shares = [requests[n::CONNECTIONS] for n in range(CONNECTIONS)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda share: _send_share(port, share), shares))
    return len(requests) / (time.perf_counter() - begun)


def send_stream(port: int, head: bytes, size: int) -> float:
    """Send one request with a body of `size` zero bytes; return bytes per second."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        connection.sendall(head)
        view = memoryview(_BLOCK)
        for start in range(0, size, len(_BLOCK)):
            connection.sendall(view[: min(len(_BLOCK), size - start)])
        read_response(connection, bytearray())
        return size / (time.perf_counter() - begun)


def ask(port: int, request: bytes) -> bytes:
    """Send one request on its own connection; return the head of the response."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        return read_response(connection, bytearray())


def _send_share(port: int, requests: Sequence[bytes]) -> None:
    rest = bytearray()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            connection.sendall(request)
            read_response(connection, rest)


def read_response(connection: socket.socket, rest: bytearray) -> bytes:
    """Return the head of the next response; `rest` keeps later bytes. Raises BadResponse."""
    while (end := rest.find(b"\r\n\r\n")) < 0:
        _receive(connection, rest)
    head = bytes(rest[:end])
    if not head.startswith((b"HTTP/1.1 20",)):
        raise BadResponse((head + rest[end:]).decode(errors="replace"))
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        elif (
            line == b"transfer-encoding: chunked"
        ):  # always empty: no response here has a chunked body
            length = len(b"0\r\n\r\n")
    while len(rest) < end + 4 + length:
        _receive(connection, rest)
    del rest[: end + 4 + length]
    return head


def _receive(connection: socket.socket, rest: bytearray) -> None:
    received = connection.recv(65536)
    if not received:
        raise BadResponse("the connection was closed")
    rest += received
