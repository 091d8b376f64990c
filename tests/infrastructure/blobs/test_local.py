from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from application.errors import Unavailable
from application.ports.blobs import BlobBusy
from infrastructure import files
from infrastructure.blobs.local.disk import WRITE_BACK_WINDOW
from infrastructure.blobs.local.store import LocalBlobStore
from tests.contracts.blob_store import NAME, BlobStoreContract, Opener, appended, content
from tests.support import eventually, run


class TestLocalBlobStore(BlobStoreContract):
    @pytest.fixture(params=[True, False], ids=["kernel-sync", "sync-in-threads"])
    def opened(self, tmp_path: Path, request: pytest.FixtureRequest) -> Opener:
        @asynccontextmanager
        async def opened() -> AsyncIterator[LocalBlobStore]:
            store = LocalBlobStore(tmp_path / "blobs", use_kernel_sync=request.param)
            try:
                yield store
            finally:
                store.close()

        return opened


async def test_a_blob_that_somebody_appends_to_is_nobody_elses(tmp_path: Path) -> None:
    here, there = LocalBlobStore(tmp_path), LocalBlobStore(tmp_path)
    writer = await here.append(NAME, 0)
    with pytest.raises(BlobBusy):
        await there.append(NAME, 0)
    await writer.close()
    await appended(there, 0, b"bytes")
    here.close()
    there.close()


async def test_bytes_never_go_to_a_file_that_was_deleted_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, try_lock = LocalBlobStore(tmp_path), files.try_lock

    def delete_and_lock(descriptor: int) -> bool:
        monkeypatch.setattr(files, "try_lock", try_lock)
        for file in tmp_path.glob("*/uploads_*"):
            file.unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(files, "try_lock", delete_and_lock)
    await appended(store, 0, b"bytes")

    assert await content(store, NAME) == b"bytes"
    store.close()


async def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = f"""
import asyncio, os
from pathlib import Path
from infrastructure.blobs.local.store import LocalBlobStore

async def main():
    writer = await LocalBlobStore(Path({str(tmp_path)!r})).append({NAME!r}, 0)
    await writer.write(b"bytes")
    await writer.sync()
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9

    store = LocalBlobStore(tmp_path)
    assert await appended(store, 5, b" and more") == 14
    store.close()


def test_a_full_disk_is_told_and_keeps_what_fitted(tmp_path: Path) -> None:
    code = f"""
import asyncio, resource
from pathlib import Path
from application.errors import StorageFull
from infrastructure.blobs.local.store import LocalBlobStore
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

async def main():
    store = LocalBlobStore(Path({str(tmp_path)!r}))
    writer = await store.append({NAME!r}, 0)
    long = b"x" * 150
    together = store.put_many({{"uploads/b": b"fits", "uploads/c": long}})
    for write in (writer.write(long), store.put("uploads/b", long), together):
        try:
            await write
        except StorageFull:
            continue
        raise SystemExit("it fitted")
    assert await writer.sync() == 100
    await writer.close()
    assert await store.size("uploads/b") == 0
    assert not list(Path({str(tmp_path)!r}).rglob("@*"))

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_large_file_is_written_out_as_it_comes(tmp_path: Path) -> None:
    content_of_it = bytes(range(256)) * (11 * WRITE_BACK_WINDOW // 256)

    store = LocalBlobStore(tmp_path)
    writer = await store.append(NAME, 0)
    for start in range(0, len(content_of_it), 300_000):
        await writer.write(content_of_it[start : start + 300_000])
    assert await writer.sync() == len(content_of_it)
    await store.finish(NAME, len(content_of_it))
    await writer.close()
    assert await content(store, NAME) == content_of_it
    again = await store.append(NAME, len(content_of_it))  # nobody holds the file any more
    await again.close()
    store.close()


async def test_a_disk_that_loses_what_it_is_writing_out_never_looks_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of it once: whoever asks afterwards must hear it all the same."""

    def failing(descriptor: int, start: int, end: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = LocalBlobStore(tmp_path)
    writer = await store.append(NAME, 0)
    monkeypatch.setattr(files, "write_out", failing)
    await writer.write(bytes(WRITE_BACK_WINDOW))
    with pytest.raises(Unavailable):
        await store.finish(NAME, WRITE_BACK_WINDOW)
    with pytest.raises(Unavailable):
        await writer.sync()
    await writer.close()
    store.close()


async def test_many_small_files_at_once_are_all_stored(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    names = [f"uploads/{n:04x}" for n in range(300)]
    await asyncio.gather(*(store.put(name, name.encode()) for name in names))
    for name in names:
        assert await content(store, name) == name.encode()
    store.close()


def test_one_store_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    for name in ("uploads/a", "uploads/b"):
        run(store.put_many({name: b"bytes"}))
    store.close()


async def test_a_put_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    await store.put(NAME, b"bytes")
    await store.delete(NAME)
    put = asyncio.create_task(store.put(NAME, b"bytes"))
    await asyncio.sleep(0)  # now it is being written
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    store.close()  # waits for the thread
    await eventually(lambda: not list(tmp_path.rglob("uploads_*")))


async def test_a_writer_that_is_cancelled_in_a_sync_lets_go_of_its_file(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    writer = await store.append(NAME, 0)
    await writer.write(b"x" * 1_000_000)
    sync = asyncio.create_task(writer.sync())
    await asyncio.sleep(0)
    sync.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sync
    await writer.close()
    await appended(store, 1_000_000, b"y")
    store.close()


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "blobs")
    await store.put(NAME, b"bytes")
    await store.put_many({f"{NAME}.b": b"bytes"})
    await appended(store, 0, b"bytes")
    store.close()
    found = [tmp_path / "blobs", *(tmp_path / "blobs").rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in found} == {0}
