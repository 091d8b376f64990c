"""Contract of every blob store; the tests of each adapter run all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeAlias, cast

import pytest

from application.ports.blobs import BlobMissing, BlobStore, BlobTooShort

Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[BlobStore]]

NAME = "uploads/0192f0c1-5c1e-7000-8000-00000000000a"


async def content(store: BlobStore, name: str, start: int = 0, end: int | None = None) -> bytes:
    chunks: AsyncIterator[bytes] = store.read(name, start, end)
    async with aclosing(cast("aclosing[object]", chunks)):  # type: ignore[type-var]
        return b"".join([chunk async for chunk in chunks])


async def appended(store: BlobStore, offset: int, *chunks: bytes) -> int:
    """Appends, makes durable, and returns the size."""
    writer = await store.append(NAME, offset)
    try:
        for chunk in chunks:
            await writer.write(chunk)
        assert writer.size == offset + sum(map(len, chunks))
        return await writer.sync()
    finally:
        await writer.close()


class BlobStoreContract:
    """Subclasses give `opened`, which opens the same store each time."""

    @pytest.fixture
    def opened(self) -> Opener:
        raise NotImplementedError

    async def test_appended_bytes_are_there_when_the_store_is_opened_again(
        self, opened: Opener
    ) -> None:

        async with opened() as store:
            assert await appended(store, 0, b"one ", b"two ") == 8
        async with opened() as store:
            assert await store.size(NAME) == 8
            assert await appended(store, 8, b"three") == 13
            await store.finish(NAME, 13)
        async with opened() as store:
            assert await content(store, NAME) == b"one two three"

    async def test_an_append_drops_what_lies_beyond_its_offset(self, opened: Opener) -> None:

        async with opened() as store:
            await appended(store, 0, b"one two")
            await appended(store, 4, b"2")
            await store.finish(NAME, 5)
            assert await content(store, NAME) == b"one 2"

    async def test_an_append_knows_of_bytes_beyond_its_offset(self, opened: Opener) -> None:
        async with opened() as store:
            await appended(store, 0, b"one two")
            for offset, has_excess in ((7, False), (4, True)):
                writer = await store.append(NAME, offset)
                assert writer.has_excess is has_excess
                if has_excess:
                    await writer.write(b"2")
                    await writer.sync()
                    assert not writer.has_excess
                await writer.close()

    async def test_opening_a_blob_without_writing_changes_nothing(self, opened: Opener) -> None:

        async with opened() as store:
            await appended(store, 0, b"one two")
            await appended(store, 3)
            assert await content(store, NAME) == b"one two"

    async def test_an_append_beyond_the_end_names_the_size(self, opened: Opener) -> None:

        async with opened() as store:
            with pytest.raises(BlobTooShort) as unknown:
                await store.append(NAME, 4)
            await appended(store, 0, b"one")
            with pytest.raises(BlobTooShort) as known:
                await store.append(NAME, 4)
            assert (unknown.value.stored, known.value.stored) == (0, 3)

    async def test_a_short_blob_is_not_finished_and_a_long_one_is_cut(self, opened: Opener) -> None:

        async with opened() as store:
            await appended(store, 0, b"one two")
            with pytest.raises(BlobTooShort):
                await store.finish(NAME, 8)
            await store.finish(NAME, 3)
            assert await content(store, NAME) == b"one"

    @pytest.mark.parametrize(("start", "end"), [(0, None), (1, 4), (3, 3), (6, 99), (99, None)])
    async def test_any_range_is_read(self, opened: Opener, start: int, end: int | None) -> None:

        async with opened() as store:
            await store.put(NAME, b"0123456")
            assert await content(store, NAME, start, end) == b"0123456"[start:end]

    async def test_a_large_blob_comes_back_in_chunks(self, opened: Opener) -> None:

        whole = bytes(range(256)) * 4000
        async with opened() as store:
            await store.put(NAME, whole)
            sizes = [len(chunk) async for chunk in store.read(NAME)]
            assert len(sizes) > 1
            assert await content(store, NAME) == whole

    async def test_many_blobs_are_put_together(self, opened: Opener) -> None:
        blobs = {f"uploads/{number}": b"x" * number for number in range(150)}

        async with opened() as store:
            names = await store.put_many(blobs)
            assert await store.put_many({}) == {}
        async with opened() as store:
            for chosen, content_of_it in blobs.items():
                assert names[chosen].startswith(chosen)
                assert await store.size(names[chosen]) == len(content_of_it)
                assert await content(store, names[chosen]) == content_of_it

    async def test_one_of_those_put_together_is_deleted_alone(self, opened: Opener) -> None:

        async with opened() as store:
            names = await store.put_many({f"uploads/{n}": b"%d" % n for n in range(3)})
            for _ in range(2):
                await store.delete(names["uploads/1"])
            assert await store.size(names["uploads/1"]) == 0
            with pytest.raises(BlobMissing):
                await content(store, names["uploads/1"])
            assert await content(store, names["uploads/0"]) == b"0"
            assert await content(store, names["uploads/2"]) == b"2"

    async def test_a_blob_is_put_in_place_of_another(self, opened: Opener) -> None:

        async with opened() as store:
            for text in (b"first, and longer", b"second", b""):
                await store.put(NAME, text)
                assert await content(store, NAME) == text

    async def test_a_deleted_blob_is_gone_and_may_be_deleted_again(self, opened: Opener) -> None:

        async with opened() as store:
            await store.put(NAME, b"bytes")
            await store.delete(NAME)
            await store.delete(NAME)
            assert await store.size(NAME) == 0
            with pytest.raises(BlobMissing):
                await content(store, NAME)

    @pytest.mark.parametrize("name", ["", "../x", "/x", "a//b", "a/../b", ".a", "A", "a b", "a~"])
    async def test_a_name_that_leaves_the_store_is_refused(self, opened: Opener, name: str) -> None:

        async with opened() as store:
            with pytest.raises(ValueError):
                await store.put(name, b"bytes")
