"""Blobs after a power loss at any point, in every state that the disk may be in then."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from application.errors import Unavailable
from application.ports.blobs import BlobMissing
from infrastructure.blobs.local.packs import BLOCK_SIZE
from infrastructure.blobs.local.store import LocalBlobStore, LocalBlobWriter
from tests.contracts.blob_store import content
from tests.power_loss import RecordingDisk, State

NAME, OTHER = "uploads/0192f0c1-0a", "uploads/0192f0c1-0b"
MAX_STATES = 4_000  # of one story, so that the suite stays fast


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes without zeros, so that zeros are never taken for them."""
    return bytes((seed * 31 + n * 7 + n // 255) % 255 + 1 for n in range(size))


@dataclass
class Promise:
    """What a blob holds if the power fails from `begin` on, and before `end`."""

    name: str
    allowed: list[bytes | None]
    begin: int
    end: float = float("inf")
    prefix: bool = False  # a blob that grows may have more behind what was acknowledged


@dataclass
class Promises:
    """What was acknowledged, and when, in operations of the disk."""

    disk: RecordingDisk
    made: list[Promise] = field(default_factory=list)

    def acknowledge(self, name: str, content: bytes | None, *, prefix: bool = False) -> None:
        """From now on the blob holds this; None if it is gone."""
        self.supersede(name)
        self.made.append(Promise(name, [content], self.disk.position, prefix=prefix))

    def supersede(self, name: str) -> None:
        """What was acknowledged before ends here: a change was asked for."""
        for promise in self.made:
            if promise.name == name:
                promise.end = min(promise.end, self.disk.position)

    def change(self, name: str, *allowed: bytes | None) -> None:
        """A change is under way: until it is acknowledged the blob may be any of these."""
        self.supersede(name)
        self.made.append(Promise(name, list(allowed), self.disk.position))

    def at(self, position: int) -> Iterator[Promise]:
        return (each for each in self.made if each.begin <= position < each.end)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    (tmp_path / "disk").mkdir()
    return RecordingDisk(tmp_path / "disk").install(monkeypatch)


@pytest.fixture
def promises(disk: RecordingDisk) -> Promises:
    return Promises(disk)


@asynccontextmanager
async def opened(disk: RecordingDisk) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(disk.root / "blobs")
    try:
        yield store
    finally:
        store.close()


async def found(store: LocalBlobStore, name: str) -> bytes | None:
    try:
        return await content(store, name)
    except BlobMissing:
        return None


async def check_every_state(promises: Promises, tmp_path: Path) -> int:
    """Lose the power before and after every operation; check every state; return their number."""
    disk = promises.disk
    assert disk.written().listing() == disk.actual()
    states = [state for at in range(disk.position + 1) for state in disk.states(at)]
    assert len(states) <= MAX_STATES
    disk.lose_power()
    for state in states:
        await _check(state, list(promises.at(state.at)), tmp_path / "after")
    return len(states)


async def _check(state: State, promised: list[Promise], place: Path) -> None:
    state.tree.materialise(place)
    when = f"power lost after {state.at} operations, {state.what}"
    store = LocalBlobStore(place / "blobs", use_kernel_sync=False)
    try:
        for promise in promised:
            size, stored = await store.size(promise.name), await found(store, promise.name)
            if promise.prefix:
                (expected,) = promise.allowed
                assert expected is not None
                assert (stored or b"")[: len(expected)] == expected, f"{when}: {promise}"
                assert size >= len(expected), when
            else:
                assert stored in promise.allowed, f"{when}: {promise.name}"
                assert size == len(stored or b""), when
        await _check_new_writes(store, promised, place, when)
    finally:
        store.close()


def age(place: Path) -> None:
    """Make everything look as if it had been written two hours ago."""
    for path in place.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)


async def _check_new_writes(
    store: LocalBlobStore, promised: list[Promise], place: Path, when: str
) -> None:
    """Interrupted uploads go on where they were, others begin, and the inventory runs."""
    age(place)
    listed = [name for part in range(store.parts) for name in await store.stale(part, 3600)]
    for promise in promised:
        if "@" in promise.name and None not in promise.allowed:
            assert promise.name in listed, when
        if promise.prefix:
            (expected,) = promise.allowed
            assert expected is not None
            writer = await store.append(promise.name, len(expected))
            await writer.write(b"and the rest")
            await writer.sync()
            await writer.close()
            await store.finish(promise.name, len(expected) + 12)
            assert await found(store, promise.name) == expected + b"and the rest", when
    for name, packed in (await store.put_many({"uploads/new": b"new"})).items():
        assert name == "uploads/new"
        assert await found(store, packed) == b"new", when
    await store.put("uploads/put", b"put")
    assert await found(store, "uploads/put") == b"put", when
    for promise in promised:  # also what a crash left unfinished is deleted like everything else
        await store.delete(promise.name)
        assert await found(store, promise.name) is None, when


async def test_an_upload_in_pieces_keeps_what_was_synced(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    sent = noise(13_000)

    async with opened(disk) as store:
        writer = await store.append(NAME, 0)
        for start, end in ((0, 700), (700, 5_700), (5_700, 6_000)):
            await writer.write(sent[start:end])
        await writer.sync()
        promises.acknowledge(NAME, sent[:6_000], prefix=True)
        await writer.write(sent[6_000:9_000])
        await writer.checkpoint()
        promises.acknowledge(NAME, sent[:9_000], prefix=True)
        await writer.write(b"!" * 1_500)  # never synced, and sent again otherwise
        await writer.close()
    async with opened(disk) as store:
        writer = await store.append(NAME, 9_000)
        await writer.write(sent[9_000:])
        await store.finish(NAME, len(sent))
        promises.acknowledge(NAME, sent)
        await writer.close()
        await store.delete(OTHER)
    assert await check_every_state(promises, tmp_path) > 80


async def test_a_byte_written_during_a_sync_is_not_acknowledged_by_it(
    promises: Promises, disk: RecordingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = noise(3_000)
    loop = asyncio.get_running_loop()

    async with opened(disk) as store:
        writer = await store.append(NAME, 0)
        await writer.write(sent[:1_000])
        syncing = asyncio.Event()
        sync = LocalBlobWriter._sync

        def synced_while_more_arrives(self: LocalBlobWriter) -> None:
            sync(self)
            loop.call_soon_threadsafe(syncing.set)
            asyncio.run_coroutine_threadsafe(self.write(sent[1_000:]), loop).result()

        monkeypatch.setattr(LocalBlobWriter, "_sync", synced_while_more_arrives)
        size = await writer.sync()
        assert syncing.is_set()
        promises.acknowledge(NAME, sent[:size], prefix=True)
        monkeypatch.setattr(LocalBlobWriter, "_sync", sync)
        assert await writer.sync() == 3_000
        promises.acknowledge(NAME, sent, prefix=True)
        await writer.close()
    assert await check_every_state(promises, tmp_path) > 20


@pytest.mark.parametrize("call", ["sync_data", "sync_folder"])
async def test_a_failed_sync_is_remembered_by_its_writer(
    promises: Promises, disk: RecordingDisk, tmp_path: Path, call: str
) -> None:
    """The kernel reports the error once; a second sync would seem to have worked (fsyncgate)."""
    sent = noise(6_000)

    async with opened(disk) as store:
        writer = await store.append(NAME, 0)
        await writer.write(sent[:4_000])
        disk.fail_next(call)
        with pytest.raises(Unavailable):
            await writer.sync()
        with suppress(Unavailable):
            promises.acknowledge(NAME, sent[: await writer.sync()], prefix=True)
        with suppress(Unavailable):
            await store.finish(NAME, 4_000)
            promises.acknowledge(NAME, sent[:4_000])
        await writer.close()
        writer = await store.append(NAME, 0)  # nothing was recorded: it is all sent again
        await writer.write(sent)
        await writer.sync()
        promises.acknowledge(NAME, sent, prefix=True)
        await writer.close()
    assert await check_every_state(promises, tmp_path) > 30


async def test_bytes_that_could_not_be_written_out_are_not_acknowledged(
    promises: Promises, disk: RecordingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.blobs.local.disk.WRITE_BACK_WINDOW", 1_000)
    sent = noise(1_500)

    async with opened(disk) as store:
        writer = await store.append(NAME, 0)
        disk.fail_next("write_out")
        await writer.write(sent)
        with suppress(Unavailable):
            await store.finish(NAME, len(sent))
            promises.acknowledge(NAME, sent)
        with suppress(Unavailable):
            await writer.sync()
            promises.acknowledge(NAME, sent, prefix=True)
        await writer.close()
    assert await check_every_state(promises, tmp_path) > 5


async def test_a_blob_put_in_place_of_another_is_the_old_or_the_new_one(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    old, new = noise(5_000, 1), noise(700, 2)

    async with opened(disk) as store:
        promises.change(NAME, None, old)
        await store.put(NAME, old)
        promises.acknowledge(NAME, old)
        promises.change(NAME, old, new)
        await store.put(NAME, new)
        promises.acknowledge(NAME, new)
        promises.change(NAME, new, None)
        await store.delete(NAME)
        promises.acknowledge(NAME, None)
    assert await check_every_state(promises, tmp_path) > 50


async def test_a_deletion_whose_sync_failed_is_made_durable_by_the_next_one(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    """The file is gone by then; an erasure must not bring it back with the next power loss."""

    async with opened(disk) as store:
        await store.put(NAME, b"personal")
        disk.fail_next("sync_folder")
        with pytest.raises(Unavailable):
            await store.delete(NAME)
        await store.delete(NAME)
        promises.acknowledge(NAME, None)
    await check_every_state(promises, tmp_path)


async def test_packed_blobs_are_whole_once_they_are_acknowledged(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    async with opened(disk) as store:
        for group in range(3):
            blobs = {
                f"uploads/{group}.{n}": noise(size, group * 10 + n)
                for n, size in enumerate((10, BLOCK_SIZE, 0, 2 * BLOCK_SIZE + 9))
            }
            names = await store.put_many(blobs)
            for chosen, name in names.items():
                promises.acknowledge(name, blobs[chosen])
    assert await check_every_state(promises, tmp_path) > 30


async def test_a_pack_goes_on_without_a_group_that_could_not_be_synced(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    async with opened(disk) as store:
        kept = await store.put_many({"uploads/1": noise(5_000, 1)})
        promises.acknowledge(kept["uploads/1"], noise(5_000, 1))
        disk.fail_next("sync_data")
        with pytest.raises(Unavailable):
            await store.put_many({"uploads/2": noise(5_000, 2)})
        later = await store.put_many({"uploads/3": noise(5_000, 3)})
        promises.acknowledge(later["uploads/3"], noise(5_000, 3))
    assert await check_every_state(promises, tmp_path) > 50


async def test_a_pack_whose_name_could_not_be_synced_is_not_used(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    async with opened(disk) as store:
        await store.put(OTHER, b"the folders are there")
        disk.fail_next("sync_folder", after=1)  # the first is that of the new folder's name
        with suppress(Unavailable):
            names = await store.put_many({"uploads/1": b"one"})
            promises.acknowledge(names["uploads/1"], b"one")
        names = await store.put_many({"uploads/2": b"two"})
        promises.acknowledge(names["uploads/2"], b"two")
    await check_every_state(promises, tmp_path)


async def test_a_freed_member_of_a_pack_is_whole_or_gone_and_others_stay(
    promises: Promises, disk: RecordingDisk, tmp_path: Path
) -> None:
    """A member of a few blocks, one of a single block, and one that stays the longest."""
    blobs = {"uploads/1": noise(9_000, 1), "uploads/2": noise(50, 2), "uploads/3": noise(5_000, 3)}

    async with opened(disk) as store:
        names = await store.put_many(blobs)
        for chosen, name in names.items():
            promises.acknowledge(name, blobs[chosen])
    for chosen, name in names.items():
        async with opened(disk) as store:
            promises.change(name, blobs[chosen], None)
            await store.delete(name)
            promises.acknowledge(name, None)
    assert await check_every_state(promises, tmp_path) > 50
