"""Cheap clients: prepared requests over blocking sockets, so that servers are measured."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

CONNECTIONS = 8
_BLOCK = bytes(1024 * 1024)


class BadAnswer(Exception):
    """The server did not accept a request."""


def send_small(port: int, requests: Sequence[bytes]) -> float:
    """Sends whole requests over 8 kept-alive connections; returns requests per second."""
    shares = [requests[n::CONNECTIONS] for n in range(CONNECTIONS)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda share: _send_share(port, share), shares))
    return len(requests) / (time.perf_counter() - begun)


def send_stream(port: int, head: bytes, size: int) -> float:
    """Sends one request with a body of `size` zero bytes; returns bytes per second."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        connection.sendall(head)
        view = memoryview(_BLOCK)
        for start in range(0, size, len(_BLOCK)):
            connection.sendall(view[: min(len(_BLOCK), size - start)])
        read_answer(connection, bytearray())
        return size / (time.perf_counter() - begun)


def ask(port: int, request: bytes) -> bytes:
    """One request on its own connection; the answer's head."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        return read_answer(connection, bytearray())


def _send_share(port: int, requests: Sequence[bytes]) -> None:
    rest = bytearray()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            connection.sendall(request)
            read_answer(connection, rest)


def read_answer(connection: socket.socket, rest: bytearray) -> bytes:
    """The head of the next answer; `rest` keeps what came behind it. Raises BadAnswer."""
    while (end := rest.find(b"\r\n\r\n")) < 0:
        _receive(connection, rest)
    head = bytes(rest[:end])
    if not head.startswith((b"HTTP/1.1 20",)):
        raise BadAnswer((head + rest[end:]).decode(errors="replace"))
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        elif line == b"transfer-encoding: chunked":  # of nothing: no answer here says anything
            length = len(b"0\r\n\r\n")
    while len(rest) < end + 4 + length:
        _receive(connection, rest)
    del rest[: end + 4 + length]
    return head


def _receive(connection: socket.socket, rest: bytearray) -> None:
    received = connection.recv(65536)
    if not received:
        raise BadAnswer("the connection was closed")
    rest += received
