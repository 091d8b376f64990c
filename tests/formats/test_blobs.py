"""Packs in a folder and tails in a bucket, as `docs/formats.md` states them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from struct import pack
from typing import cast

import pytest

from application.ports.blobs import BlobMissing
from infrastructure.blobs.local import pack_writer
from infrastructure.blobs.local.packs import PackedName, PackLocation, parse_packed_name
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.blobs.s3.client import Bucket, ObjectInfo, Parts, S3Part
from infrastructure.blobs.s3.state import (
    CompleteBlob,
    IncompleteBlob,
    TailMetadata,
    encode,
    stat,
    tail_key,
)

PACK = "0123456789abcdef"
BLOCK = 4096


def member(name: str, content: bytes) -> bytes:
    """A member as the manual states it: little-endian, 264 bytes, then padded to a block."""
    head = b"uptrail\x01" + pack("<IH", len(content), len(name)) + name.encode().ljust(250, b"\0")
    assert len(head) == 264
    return (head + content).ljust(-(-(264 + len(content)) // BLOCK) * BLOCK, b"\0")


FIRST, SECOND, THIRD = b"hello", b"x" * (BLOCK - 264), b"y" * (2 * BLOCK)
PACK_FILE = member("up-1", FIRST) + member("up-2", SECOND) + member("up-3", THIRD)
NAMES = {
    f"up-1@{PACK}-0-5": FIRST,
    f"up-2@{PACK}-1-ef8": SECOND,
    f"up-3@{PACK}-2-2000": THIRD,
}


FOLDER_AND_FILE = f"2f/@{PACK}"


async def content(store: LocalBlobStore, name: str) -> bytes:
    return b"".join([chunk async for chunk in store.read(name)])


async def test_blobs_are_read_from_a_pack_of_the_manual(tmp_path: Path) -> None:
    file = tmp_path / FOLDER_AND_FILE
    file.parent.mkdir()
    file.write_bytes(PACK_FILE)

    with closing(LocalBlobStore(tmp_path)) as store:
        for packed, expected in NAMES.items():
            assert await content(store, packed) == expected
            assert await store.size(packed) == len(expected)
        for absent in (f"up-9@{PACK}-0-5", f"up-1@{PACK}-0-4", f"up-1@{PACK}-1-5"):
            with pytest.raises(BlobMissing):
                await content(store, absent)
            assert await store.size(absent) == 0


async def test_a_pack_is_written_as_the_manual_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_writer, "new_pack", lambda: PACK)

    with closing(LocalBlobStore(tmp_path)) as store:
        names = await store.put_many({"up-1": FIRST, "up-2": SECOND, "up-3": THIRD})

    assert sorted(names.values()) == sorted(NAMES)
    assert (tmp_path / FOLDER_AND_FILE).read_bytes() == PACK_FILE


async def test_a_deleted_member_is_zeros(tmp_path: Path) -> None:
    file = tmp_path / FOLDER_AND_FILE
    file.parent.mkdir()
    file.write_bytes(PACK_FILE)

    with closing(LocalBlobStore(tmp_path)) as store:
        await store.delete(f"up-2@{PACK}-1-ef8")

    zeros = bytes(len(member("up-2", SECOND)))
    assert file.read_bytes() == PACK_FILE.replace(member("up-2", SECOND), zeros)


async def test_a_blob_of_its_own_is_a_file_of_its_name(tmp_path: Path) -> None:
    with closing(LocalBlobStore(tmp_path)) as store:
        await store.put("uploads/019b", b"content")

    assert (tmp_path / "52" / "uploads_019b").read_bytes() == b"content"


def test_the_name_of_a_packed_blob_is_that_of_the_manual() -> None:
    packed = PackedName("up-3", PackLocation(PACK, 2, 0x2000))

    assert str(packed) == f"up-3@{PACK}-2-2000"
    assert parse_packed_name(str(packed)) == packed
    assert parse_packed_name("up-3") is None


# SHA-256 of "etag1", and of its hex digits followed by "etag4".
SEAL_OF_ONE = "c156e15ea68fd899f6c0e3321a9438765384314505bb838cbbb68b4fcc34af13"
SEAL_OF_TWO = "92f9b96a4049a8b2d211690a34e2896d4d34e3e05c3bf086fd9f6ab0be3248c1"
MIB = 2**20
PARTS = Parts("upload-7", 2, 11 * MIB, SEAL_OF_TWO, 4, ((2, 3),))

TAILS = [
    (TailMetadata(Parts(), "c0ffee"), '{"parts":{},"commit":"c0ffee"}'),
    (
        TailMetadata(PARTS, "c0ffee", "etag-of-old"),
        '{"parts":{"upload":"upload-7","count":2,"size":11534336,"seal":"'
        + SEAL_OF_TWO
        + '","last":4,"skipped":[[2,3]]},"commit":"c0ffee","over":"etag-of-old"}',
    ),
]


def test_parts_are_chained_as_the_manual_states() -> None:
    first = Parts("upload-7").plus(S3Part(1, 5 * MIB, "etag1"))
    second = first.after(3).plus(S3Part(4, 6 * MIB, "etag4"))

    assert first == Parts("upload-7", 1, 5 * MIB, SEAL_OF_ONE, 1)
    assert second == PARTS


@pytest.mark.parametrize(("state", "text"), TAILS, ids=["small", "with parts"])
def test_the_metadata_of_a_tail_are_those_of_the_manual(state: TailMetadata, text: str) -> None:
    assert encode(state) == {"uptrail": text}
    assert tail_key("uploads/019b") == "uploads/019b~tail"


class FakeBucket:
    """Objects without bytes, by their keys."""

    def __init__(self, **objects: ObjectInfo) -> None:
        self._objects = {key.replace("_", "~"): info for key, info in objects.items()}

    async def head(self, key: str) -> ObjectInfo | None:
        return self._objects.get(key)


@pytest.mark.parametrize(("state", "text"), TAILS, ids=["small", "with parts"])
async def test_an_unfinished_blob_is_read_from_its_tail(state: TailMetadata, text: str) -> None:
    bucket = FakeBucket(blob_tail=ObjectInfo(3, "etag-of-tail", {"uptrail": text}))

    found = await stat(cast(Bucket, bucket), "blob")

    assert found.blob == IncompleteBlob(state, "etag-of-tail", 3)
    assert found.size == state.parts.size + 3


@pytest.mark.parametrize(
    ("etag", "is_complete"),
    [("etag-of-old", False), ("etag-of-another", True)],
    ids=["the object that it replaces", "an object finished later"],
)
async def test_a_tail_counts_only_over_the_object_that_it_replaces(
    etag: str, is_complete: bool
) -> None:
    tail = ObjectInfo(3, "etag-of-tail", {"uptrail": TAILS[1][1]})
    bucket = FakeBucket(blob=ObjectInfo(9, etag, {}), blob_tail=tail)

    found = await stat(cast(Bucket, bucket), "blob")

    assert isinstance(found.blob, CompleteBlob) == is_complete


@pytest.mark.parametrize("metadata", [{}, {"uptrail": "{}"}, {"uptrail": "no JSON"}])
async def test_an_object_without_our_metadata_is_no_tail(metadata: dict[str, str]) -> None:
    bucket = FakeBucket(blob_tail=ObjectInfo(3, "etag", metadata))

    found = await stat(cast(Bucket, bucket), "blob")

    assert (found.blob, found.tail) == (None, "etag")
