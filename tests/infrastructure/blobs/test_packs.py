"""Small blobs that share a file: what is durable, what is freed, and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from application.errors import StorageFull, Unavailable
from application.ports.blobs import BlobMissing
from infrastructure import files
from infrastructure.blobs.local import pack_writer
from infrastructure.blobs.local.kernel_sync import KernelSync
from infrastructure.blobs.local.packs import BLOCK_SIZE, HEADER, parse_packed_name
from infrastructure.blobs.local.store import LocalBlobStore
from tests.contracts.blob_store import content
from tests.support import eventually, run


def named(number: int) -> str:
    return f"uploads/{number:04x}"


@asynccontextmanager
async def opened(folder: Path, *, kernel_sync: bool = True) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(folder, use_kernel_sync=kernel_sync)
    try:
        yield store
    finally:
        store.close()


def packs_in(folder: Path) -> list[Path]:
    return list(folder.rglob("@*"))


def aged(folder: Path) -> None:
    """As if everything had been written two hours ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)


async def listed(store: LocalBlobStore) -> list[str]:
    """What the inventory shows of what is older than an hour."""
    return [name for part in range(store.parts) for name in await store.stale(part, 3600)]


async def test_blobs_that_come_together_are_one_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        blobs = {named(n): os.urandom(n * 37) for n in range(200)}
        names = await store.put_many(blobs)
        assert len(packs_in(tmp_path)) == 1
        for chosen, name in names.items():
            assert await content(store, name) == blobs[chosen]
            assert await store.size(name) == len(blobs[chosen])


async def test_blobs_of_many_callers_at_once_are_not_mixed_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        groups = [
            {f"uploads/{g}.{n}": f"{g}.{n}".encode() * n for n in range(20)} for g in range(40)
        ]
        found = await asyncio.gather(*(store.put_many(group) for group in groups))
        assert len(packs_in(tmp_path)) == 1
        for group, names in zip(groups, found, strict=True):
            for chosen, name in names.items():
                assert await content(store, name) == group[chosen]


@pytest.mark.parametrize(("start", "end"), [(0, None), (1, 4), (3, 3), (6, 99), (99, None)])
async def test_any_range_of_a_packed_blob_is_read(
    tmp_path: Path, start: int, end: int | None
) -> None:
    async with opened(tmp_path) as store:
        names = await store.put_many({named(n): b"%d123456" % n for n in range(5)})
        assert await content(store, names[named(3)], start, end) == b"3123456"[start:end]


async def test_packed_blobs_are_there_when_the_store_is_opened_again(tmp_path: Path) -> None:
    names: dict[str, str] = {}

    async with opened(tmp_path) as store:
        names.update(await store.put_many({named(n): named(n).encode() for n in range(3)}))
    async with opened(tmp_path) as store:
        more = await store.put_many({named(9): b"in a pack of its own"})
        for chosen, name in names.items():
            assert await content(store, name) == chosen.encode()
        assert await content(store, more[named(9)]) == b"in a pack of its own"
    assert len(packs_in(tmp_path)) == 2


async def test_a_full_pack_is_added_to_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_writer, "MAX_PACK_BYTES", 3 * BLOCK_SIZE)

    async with opened(tmp_path) as store:
        names = [await store.put_many({named(n): bytes([n]) * 2 * BLOCK_SIZE}) for n in range(4)]
        assert len(packs_in(tmp_path)) == 4
        for n, found in enumerate(names):
            assert await content(store, found[named(n)]) == bytes([n]) * 2 * BLOCK_SIZE


async def test_a_freed_blob_is_gone_and_those_beside_it_are_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        names = await store.put_many({named(n): bytes([65 + n]) * 9000 for n in range(3)})
        await store.delete(names[named(1)])
        await store.delete(names[named(1)])
        assert await store.size(names[named(1)]) == 0
        with pytest.raises(BlobMissing):
            await content(store, names[named(1)])
        assert await content(store, names[named(0)]) == b"A" * 9000
        assert await content(store, names[named(2)]) == b"C" * 9000
        (pack,) = packs_in(tmp_path)
        assert b"B" not in pack.read_bytes()


async def test_room_is_given_back_member_by_member(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        names = await store.put_many({named(n): b"x" * 100_000 for n in range(8)})
        (pack,) = packs_in(tmp_path)
        before = pack.stat().st_blocks
        for n in range(7):
            await store.delete(names[named(n)])
        assert pack.stat().st_blocks < before / 4


@pytest.mark.parametrize("holes", [True, False], ids=["holes", "no-holes"])
async def test_a_pack_goes_with_its_last_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holes: bool
) -> None:
    """At once, or when the inventory comes by, where a file system knows no holes."""
    if not holes:
        monkeypatch.setattr(files, "punch_hole", lambda *_: False)
    names: dict[str, str] = {}

    async with opened(tmp_path) as store:
        names.update(await store.put_many({named(n): b"x" * 5000 for n in range(3)}))
    async with opened(tmp_path) as store:
        for name in names.values():
            assert len(packs_in(tmp_path)) == 1
            await store.delete(name)
        aged(tmp_path)
        assert await listed(store) == []
        assert packs_in(tmp_path) == []


async def test_a_pack_that_is_added_to_stays_though_it_is_empty(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        name = (await store.put_many({named(1): b"bytes"}))[named(1)]
        await store.delete(name)
        aged(tmp_path)
        async with opened(tmp_path) as another:
            assert await listed(another) == []
        name = (await store.put_many({named(2): b"more"}))[named(2)]
        assert await content(store, name) == b"more"


@pytest.mark.parametrize("holes", [True, False], ids=["holes", "no-holes"])
async def test_the_inventory_lists_what_is_left_by_the_names_that_free_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holes: bool
) -> None:
    if not holes:
        monkeypatch.setattr(files, "punch_hole", lambda *_: False)

    async with opened(tmp_path) as store:
        names = await store.put_many({named(n): b"\0" * 10_000 for n in range(20)})
        gone = [names.pop(named(n)) for n in (0, 3, 4, 5, 19)]
        for name in gone:
            await store.delete(name)
        assert await listed(store) == []  # too young
        aged(tmp_path)
        assert sorted(await listed(store)) == sorted(names.values())


async def test_what_a_crash_left_half_written_hides_nothing_that_was_promised(
    tmp_path: Path,
) -> None:
    names: dict[str, str] = {}

    async with opened(tmp_path) as store:
        names.update(await store.put_many({named(n): b"kept" for n in range(3)}))
    (pack,) = packs_in(tmp_path)
    with pack.open("ab") as file:
        file.write(b"torn" * 3000)
    async with opened(tmp_path) as store:
        aged(tmp_path)
        assert sorted(await listed(store)) == sorted(names.values())


async def test_what_a_killed_process_promised_is_there(tmp_path: Path) -> None:
    code = f"""
import asyncio, os
from pathlib import Path
from infrastructure.blobs.local.store import LocalBlobStore

async def main():
    names = await LocalBlobStore(Path({str(tmp_path)!r})).put_many({{{named(1)!r}: b"bytes"}})
    print(*names.values(), flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert killed.returncode == -9
    name = killed.stdout.strip()

    async with opened(tmp_path) as store:
        assert await content(store, name) == b"bytes"
        await store.delete(name)  # nobody adds to this pack any more
        assert packs_in(tmp_path) == []


@pytest.mark.parametrize("syncs", ["kernel", "thread", "thread, as the kernel refuses"])
async def test_a_failed_sync_fails_the_put_and_the_next_put_begins_another_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: str
) -> None:
    async with opened(tmp_path, kernel_sync=syncs != "thread") as store:
        kept = await store.put_many({named(1): b"kept"})
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_data", _fails)
            submit = _submit_a_failing_sync if syncs == "kernel" else lambda *_: None
            patch.setattr(KernelSync, "submit", submit)
            with pytest.raises(Unavailable):
                await store.put_many({named(2): b"never promised"})
        later = await store.put_many({named(3): b"later"})
        assert await content(store, kept[named(1)]) == b"kept"
        assert await content(store, later[named(3)]) == b"later"
        assert len(packs_in(tmp_path)) == 2
        assert not any(b"never promised" in pack.read_bytes() for pack in packs_in(tmp_path))


def _fails(descriptor: int) -> None:
    raise OSError(5, os.strerror(5))


def _submit_a_failing_sync(kernel_sync: KernelSync, descriptor: int) -> asyncio.Future[None]:
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError(5, os.strerror(5)))
    return failed


async def test_what_was_put_for_a_caller_that_went_away_is_freed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        putting = asyncio.create_task(store.put_many({named(1): b"unwanted"}))
        await asyncio.sleep(0)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await store.put_many({named(2): b"wanted"})
        await eventually(
            lambda: not any(b"unwanted" in pack.read_bytes() for pack in packs_in(tmp_path))
        )


async def test_nobody_who_reads_while_a_blob_is_freed_takes_zeros_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        names = await store.put_many({named(n): b"x" * 200_000 for n in range(30)})

        async def read(name: str) -> bytes | None:
            try:
                return await content(store, name)
            except BlobMissing:
                return None

        for name in names.values():
            reads = [asyncio.create_task(asyncio.to_thread(run, read(name))) for _ in range(2)]
            await store.delete(name)
            assert {await each for each in reads} <= {b"x" * 200_000, None}


@pytest.mark.parametrize(
    "place", ["", "1-2", "0123456789abcdef-1-", "../../x", "0123456789ABCDEF-1-2"]
)
async def test_a_name_with_no_sound_place_is_refused(tmp_path: Path, place: str) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(ValueError, match="no place in a pack"):
            await store.size(f"{named(1)}@{place}")


async def test_a_name_whose_place_is_somebody_elses_finds_and_frees_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        name = (await store.put_many({named(1): b"mine"}))[named(1)]
        found = parse_packed_name(name)
        assert found is not None
        other = str(found._replace(chosen=named(2)))
        longer = str(found._replace(place=found.place._replace(size=BLOCK_SIZE - HEADER)))
        for wrong in (other, longer):
            assert await store.size(wrong) == 0
            await store.delete(wrong)
        assert await content(store, name) == b"mine"


async def test_a_caller_chooses_no_place(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(ValueError, match="no name for a blob"):
            await store.put_many({f"{named(1)}@0123456789abcdef-0-1": b"bytes"})


async def test_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, frames: bytes) -> None:
        raise OSError(28, os.strerror(28))

    async with opened(tmp_path) as store:
        monkeypatch.setattr(pack_writer.OpenPack, "write", full)
        with pytest.raises(StorageFull):
            await store.put_many({named(1): b"bytes"})
        assert packs_in(tmp_path) == []
