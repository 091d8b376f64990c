"""A crowd of senders: many requests with large bodies at once, from one thread."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.senders import BadAnswer, read_answer

_SLICE = memoryview(bytes(64 * 1024))
PATIENCE = 120.0  # seconds without a socket that takes or brings a byte


def send_together(port: int, heads: Sequence[bytes], size: int) -> None:
    """Sends a body of `size` zero bytes after each head, a slice to each in turn, to the end.

    All requests are begun before the first slice is sent, and none ends long before the others.
    Raises BadAnswer for an answer that is no success, TimeoutError where nothing moves.
    """
    with _connected(port, len(heads)) as connections, selectors.DefaultSelector() as selector:
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE, size)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                raise TimeoutError(f"{len(selector.get_map())} bodies did not end")
            for key, _ in ready:
                _go_on(selector, key)


def _go_on(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    connection = key.fileobj
    assert isinstance(connection, socket.socket)
    if key.data:
        left = key.data - connection.send(_SLICE[: key.data])
        selector.modify(connection, selectors.EVENT_WRITE if left else selectors.EVENT_READ, left)
        return
    selector.unregister(connection)
    connection.setblocking(True)
    read_answer(connection, bytearray())


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


__all__ = ["BadAnswer", "send_together"]
