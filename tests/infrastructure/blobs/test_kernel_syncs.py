from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infrastructure.blobs.local.disk import ROOM, AioFsync, open_kernel_syncs
from tests.support import eventually, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes such requests")


@pytest.fixture
def syncs() -> Iterator[AioFsync]:
    """All processes share the kernel's room, and it takes a while to get back what was used."""
    try:
        syncs = run(eventually(open_kernel_syncs))
    except AssertionError:
        used, most = (
            int(Path(f"/proc/sys/fs/aio-{name}").read_text()) for name in ("nr", "max-nr")
        )
        if used + 2 * ROOM <= most:
            raise
        pytest.skip(f"other processes use the kernel's room: fs.aio-nr is {used} of {most}")
    yield syncs
    syncs.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"bytes")
    yield descriptor
    os.close(descriptor)


async def test_a_file_and_its_folder_are_synced_and_may_be_closed_at_once(
    syncs: AioFsync, tmp_path: Path
) -> None:
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"bytes")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    syncing = syncs.begin([file, folder])
    os.close(file)
    os.close(folder)
    assert syncing is not None
    await syncing


async def test_beyond_the_room_nothing_is_begun_until_some_are_done(
    syncs: AioFsync, file: int
) -> None:
    first = syncs.begin([file] * ROOM)
    assert first is not None
    assert syncs.begin([file]) is None
    await first
    again = syncs.begin([file])
    assert again is not None
    await again


async def test_what_cannot_be_synced_is_not_begun_and_takes_no_room(
    syncs: AioFsync, file: int
) -> None:
    """Of a pipe nothing can be made durable; the file before it is synced for nothing."""

    readable, writable = os.pipe()
    assert syncs.begin([file, writable]) is None
    os.close(readable)
    os.close(writable)
    await eventually(lambda: syncs.begin([file] * ROOM) is not None)


async def test_a_caller_that_is_cancelled_does_not_keep_others_from_their_answers(
    syncs: AioFsync, file: int
) -> None:
    gone, here = syncs.begin([file]), syncs.begin([file])
    assert gone is not None
    assert here is not None
    gone.cancel()
    await here


async def test_another_event_loop_goes_on_where_the_first_ended(syncs: AioFsync, file: int) -> None:
    assert syncs.begin([file]) is not None
    syncing = syncs.begin([file])
    assert syncing is not None
    await syncing
