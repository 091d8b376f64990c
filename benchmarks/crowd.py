"""A crowd of senders: many requests with large bodies at once, from one thread."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.senders import BadAnswer, read_answer

RAMP = 0.005  # seconds between two beginnings: a crowd gathers, it does not fall from the sky
_SLICE = memoryview(bytes(64 * 1024))
PATIENCE = 120.0  # seconds without a socket that takes or brings a byte


def send_together(port: int, heads: Sequence[bytes], size: int) -> int:
    """Sends a body of `size` zero bytes after each head, a slice to each in turn, to the end.

    All requests are begun before any gets its second half, and none ends long before the others.
    Returns how many were put off, by an answer to try again or by the end of the connection, as
    an overloaded server may do.
    Raises BadAnswer for any other answer that is no success, TimeoutError where nothing moves.
    """
    put_off = 0
    with _connected(port, len(heads)) as connections, selectors.DefaultSelector() as selector:
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE, size)
            end = time.monotonic() + RAMP
            while (left := end - time.monotonic()) > 0:
                put_off += _go_on(selector, left, least=size // 2)
        while selector.get_map():
            put_off += _go_on(selector, PATIENCE)
    return put_off


def _go_on(selector: selectors.BaseSelector, patience: float, least: int = 0) -> int:
    """A slice to each that can take one, as long as more than `least` bytes are left for it."""
    put_off = 0
    ready = selector.select(patience)
    if not ready and not least:
        raise TimeoutError(f"{len(selector.get_map())} bodies did not end")
    for key, _ in ready:
        if not key.data:
            put_off += _finish(selector, key)
        elif key.data > least:
            put_off += _send(selector, key)
    return put_off


def _send(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
    """Whether the server has closed the connection: it answered before the body was whole."""
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
    """Whether the answer was to try again later."""
    connection = key.fileobj
    assert isinstance(connection, socket.socket)
    selector.unregister(connection)
    connection.setblocking(True)
    try:
        read_answer(connection, bytearray())
    except BadAnswer as answer:
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
