from __future__ import annotations

import pytest

from infrastructure.blobs.s3.state import MIN_BUFFER_BYTES, BufferPool


@pytest.mark.parametrize(
    "share", [MIN_BUFFER_BYTES, 10 * MIN_BUFFER_BYTES, 1_000 * MIN_BUFFER_BYTES]
)
def test_what_is_set_aside_comes_back_in_order(share: int) -> None:
    buffer = BufferPool(waiting=share).buffer()
    chunks = [bytes([n]) * (MIN_BUFFER_BYTES // 2 + n) for n in range(30)]
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
    memory = BufferPool(waiting=100 * MIN_BUFFER_BYTES)
    buffers = [memory.buffer() for _ in range(10)]
    assert memory.share == 10 * MIN_BUFFER_BYTES
    more = [memory.buffer() for _ in range(990)]
    assert memory.share == MIN_BUFFER_BYTES
    for buffer in (*buffers, *more):
        buffer.close()
    assert memory.share == 100 * MIN_BUFFER_BYTES
