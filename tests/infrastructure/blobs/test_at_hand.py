from __future__ import annotations

import os
from pathlib import Path

import pytest

from application.ports.blobs import BlobMissing
from infrastructure.blobs.local.at_hand import read_at_hand
from infrastructure.blobs.local.store import LocalBlobStore

MOST = 1000
CONTENT = bytes(range(200))

linux = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux says what it has")


@linux
def test_what_was_just_written_is_read_without_asking_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(CONTENT)

    assert read_at_hand("blob", file, 10, 20, MOST) == CONTENT[10:20]
    assert read_at_hand("blob", file, 150, None, MOST) == CONTENT[150:]
    assert read_at_hand("blob", file, 0, 201, MOST) == CONTENT
    assert read_at_hand("blob", file, 200, None, MOST) == b""


@linux
def test_a_range_that_is_large_is_left_to_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(CONTENT)

    assert read_at_hand("blob", file, 0, None, len(CONTENT) - 1) is None


@linux
def test_what_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BlobMissing):
        read_at_hand("blob", tmp_path / "blob", 0, None, MOST)


async def test_bytes_that_left_the_memory_are_read_all_the_same(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    await store.put("blob", CONTENT)
    _drop_from_memory(tmp_path)

    assert b"".join([chunk async for chunk in store.read("blob")]) == CONTENT
    store.close()


def _drop_from_memory(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
