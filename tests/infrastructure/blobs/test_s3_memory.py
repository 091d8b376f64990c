from __future__ import annotations

import pytest

from infrastructure.blobs.s3.state import LEAST, BufferPool


@pytest.mark.parametrize("share", [LEAST, 10 * LEAST, 1_000 * LEAST])
def test_what_is_set_aside_comes_back_in_order(share: int) -> None:
    buffer = BufferPool(waiting=share).buffer()
    chunks = [bytes([n]) * (LEAST // 2 + n) for n in range(30)]
    for n, chunk in enumerate(chunks, 1):
        buffer.add(chunk)
        assert len(buffer) == sum(map(len, chunks[:n]))
    assert buffer.content() == b"".join(chunks)
    assert buffer.take() == b"".join(chunks)
    assert len(buffer) == 0
    buffer.add(b"next")
    assert buffer.take() == b"next"
    buffer.close()


def test_the_more_writers_the_less_memory_for_each() -> None:
    memory = BufferPool(waiting=100 * LEAST)
    buffers = [memory.buffer() for _ in range(10)]
    assert memory.share == 10 * LEAST
    more = [memory.buffer() for _ in range(990)]
    assert memory.share == LEAST
    for buffer in (*buffers, *more):
        buffer.close()
    assert memory.share == 100 * LEAST
