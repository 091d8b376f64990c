"""Many concurrent requests with large bodies, sent from one thread."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.senders import BadResponse, read_response

START_INTERVAL = 0.005  # seconds; an instant burst would test the accept queue
_SLICE = memoryview(bytes(64 * 1024))
STALL_TIMEOUT = 120.0  # seconds without progress on any socket


def send_together(port: int, heads: Sequence[bytes], size: int) -> int:
    """Send a body of `size` zero bytes after each head, one slice per request in rotation.

    All requests start before any receives its second half, so that all are open together.
    Returns the number of requests that the server deferred, by status 503 or by closing the
    connection, as an overloaded server may.
    Raises BadResponse for any other error status, TimeoutError if no byte moves.
    """
    deferred = 0
    with _connected(port, len(heads)) as connections, selectors.DefaultSelector() as selector:
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE, size)
            end = time.monotonic() + START_INTERVAL
            while (left := end - time.monotonic()) > 0:
                deferred += _send_slices(selector, left, least=size // 2)
        while selector.get_map():
            deferred += _send_slices(selector, STALL_TIMEOUT)
    return deferred


def _send_slices(selector: selectors.BaseSelector, timeout: float, least: int = 0) -> int:
    """Send a slice on each writable socket with more than `least` bytes left."""
    deferred = 0
    ready = selector.select(timeout)
    if not ready and not least:
        raise TimeoutError(f"{len(selector.get_map())} bodies did not end")
    for key, _ in ready:
        if not key.data:
            deferred += _finish(selector, key)
        elif key.data > least:
            deferred += _send(selector, key)
    return deferred


def _send(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
    """Send a slice; return True if the server closed the connection early."""
    connection = key.fileobj
    assert isinstance(connection, socket.socket)
    try:
        left = key.data - connection.send(_SLICE[: key.data])
    except ConnectionError:
        selector.unregister(connection)
        return True
    selector.modify(connection, selectors.EVENT_WRITE if left else selectors.EVENT_READ, left)
    return False


def _finish(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
    """Read the response; return True if it was 503."""
    connection = key.fileobj
    assert isinstance(connection, socket.socket)
    selector.unregister(connection)
    connection.setblocking(True)
    try:
        read_response(connection, bytearray())
    except BadResponse as answer:
        if not str(answer).startswith("HTTP/1.1 503"):
            raise
        return True
    return False


@contextmanager
def _connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    connections: list[socket.socket] = []
    try:
        while len(connections) < count:
            connections.append(socket.create_connection(("127.0.0.1", port)))
        yield connections
    finally:
        for connection in connections:
            connection.close()
