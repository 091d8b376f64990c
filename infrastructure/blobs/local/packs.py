"""Room that packed blobs took, given back: member by member, and the pack after the last."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from uuid import uuid4

from application.ports.blobs import BlobMissing
from infrastructure import files
from infrastructure.blobs.shared import MAX_NAME

# Names of packed blobs: what the caller chose, and behind an `@` where in which pack it is.

AT = "@"  # in no name that a caller may choose

_PLACE = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,8})-([0-9a-f]{1,8})")


class PackLocation(NamedTuple):
    """A pack, the number of the block its member begins with, and the bytes of the blob."""

    pack: str
    block: int
    size: int


class PackedName(NamedTuple):
    """The name that was chosen for a packed blob, and its place."""

    chosen: str
    place: PackLocation

    def __str__(self) -> str:
        pack, block, size = self.place
        return f"{self.chosen}{AT}{pack}-{block:x}-{size:x}"


def parse_packed_name(name: str) -> PackedName | None:
    """None for the name of a blob that has a file of its own. Raises ValueError for nonsense."""
    chosen, at, place = name.partition(AT)
    if not at:
        return None
    found = _PLACE.fullmatch(place)
    if found is None:
        raise ValueError(f"{name!r} names no place in a pack")
    return PackedName(chosen, PackLocation(found[1], int(found[2], 16), int(found[3], 16)))


def new_pack() -> str:
    return uuid4().hex[:16]


def pack_file_name(pack: str) -> str:
    """The file of a pack: that of no other blob."""
    return f"{AT}{pack}"


def pack_id_from_file(file: str) -> str | None:
    """The pack kept in a file of this name, if it is one's."""
    return file[1:] if file.startswith(AT) else None


# What a pack consists of: members, each a header that names it and then its bytes.
#
# A member begins at a multiple of 4 KiB, so that the file system can take back just its blocks. A
# freed one is zeros. New members come behind all others, and no place is used twice.

BLOCK_SIZE = 4096

_MAGIC = b"uptrail\x01"
_FREED = b"uptrail\x00"  # instead of the mark: the member is being freed
_HEADER = Struct(f"<8sIH{MAX_NAME}s")  # the mark, the size of the blob, its name and how long it is
HEADER = _HEADER.size


class PackEntry(NamedTuple):
    """Header of a member that was not deleted."""

    name: str
    size: int


def header(name: str, size: int) -> bytes:
    encoded = name.encode()
    return _HEADER.pack(_MAGIC, size, len(encoded), encoded)


def padding(size: int) -> bytes:
    """Return the padding after a blob of this size up to the next block."""
    return bytes(-(HEADER + size) % BLOCK_SIZE)


def block_count(size: int) -> int:
    """Return the number of blocks of a member with this many bytes."""
    return -(-(HEADER + size) // BLOCK_SIZE)


def content_offset(place: PackLocation) -> int:
    """Return the offset of the blob's bytes in the pack."""
    return place.block * BLOCK_SIZE + HEADER


def exists(descriptor: int, packed: PackedName) -> bool:
    """Return whether the member exists at its place and was not deleted."""
    member = _member(os.pread(descriptor, HEADER, packed.place.block * BLOCK_SIZE))
    return member == PackEntry(packed.chosen, packed.place.size)


def members(descriptor: int, pack: str) -> Iterator[PackedName]:
    """Yield the remaining members, and those half freed; an incomplete one ends the pack.

    What lies behind that is not searched: bytes of users could pass for headers.
    """
    size = os.fstat(descriptor).st_size
    block = 0
    while block * BLOCK_SIZE < size:
        head = os.pread(descriptor, HEADER, block * BLOCK_SIZE)
        if member := _member(head) or _member(head, _FREED):
            yield PackedName(member.name, PackLocation(pack, block, member.size))
            block += block_count(member.size)
        elif any(head):
            return
        else:
            block = _behind_hole(descriptor, block)


def _member(head: bytes, mark: bytes = _MAGIC) -> PackEntry | None:
    if len(head) < HEADER or not head.startswith(mark):
        return None
    _, size, length, name = _HEADER.unpack(head)
    try:
        return PackEntry(name[:length].decode("ascii"), size)
    except UnicodeDecodeError:
        return None


def _behind_hole(descriptor: int, block: int) -> int:
    """The next block that may hold something: most file systems say where their holes end."""
    try:
        data = os.lseek(descriptor, (block + 1) * BLOCK_SIZE, os.SEEK_DATA)
    except OSError:  # there is nothing behind it (ENXIO), or no telling
        data = 0
    return max(block + 1, data // BLOCK_SIZE)


def punch_member(path: Path, packed: PackedName) -> None:
    """Takes the bytes of a member away for good; one that is not there is fine. Raises OSError.

    Its mark changes first, and readers look at that last: none of them takes zeros for content.
    Its header goes last: until then it is listed, to be freed again after a crash, and those behind
    it are found. Either is durable before the next step begins.
    """
    try:
        descriptor = files.open_file(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        start = packed.place.block * BLOCK_SIZE
        head = os.pread(descriptor, HEADER, start)
        is_ours = PackEntry(packed.chosen, packed.place.size) in (
            _member(head),
            _member(head, _FREED),
        )
        if is_ours:
            files.write_at(descriptor, _FREED, start)
            if more := (block_count(packed.place.size) - 1) * BLOCK_SIZE:
                files.sync_data(descriptor)
                _give_back(descriptor, start + BLOCK_SIZE, more)
                files.sync_data(descriptor)
            _give_back(descriptor, start, BLOCK_SIZE)
        if is_ours or not any(head):
            files.sync_data(descriptor)  # of one that is gone, too: its sync may have failed
        if _is_hole(descriptor):
            _remove_unused(path, descriptor)
    finally:
        os.close(descriptor)


def remaining_members(path: Path, pack: str) -> list[str]:
    """Return the names of the members; delete the pack if it is empty and not in use."""
    try:
        descriptor = files.open_file(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    try:
        left = [str(packed) for packed in members(descriptor, pack)]
        if not left and not _may_have_members(descriptor):
            _remove_unused(path, descriptor)
        return left
    finally:
        os.close(descriptor)


def _may_have_members(descriptor: int) -> bool:
    """Return whether any block looks like a header, also behind what ends the list of members."""
    size = os.fstat(descriptor).st_size
    block = 0
    while block * BLOCK_SIZE < size:
        if os.pread(descriptor, len(_MAGIC), block * BLOCK_SIZE) == _MAGIC:
            return True
        block = _behind_hole(descriptor, block)
    return False


def _remove_unused(path: Path, descriptor: int) -> None:
    """Delete an empty pack unless a writer holds its lock."""
    if files.try_lock(descriptor):
        with suppress(FileNotFoundError):
            files.unlink(path)
            files.sync_folder(path.parent)


def _is_hole(descriptor: int) -> bool:
    """Return whether the file has no data left; False if the file system cannot report holes."""
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _give_back(descriptor: int, start: int, length: int) -> None:
    """Zeros in any case; as a hole in the file where its file system knows that."""
    if not files.punch_hole(descriptor, start, length):
        files.write_at(descriptor, bytes(length), start)


# Reading of blobs in packs, in a thread.


def read(path: Path, packed: PackedName, start: int, end: int | None) -> bytes:
    """Return the bytes from `start` up to `end`. Raises BlobMissing, OSError.

    The header is checked last, because freeing a member clears its header first.
    """
    size = packed.place.size
    length = max(0, (size if end is None else min(end, size)) - start)
    with _opened(path, packed) as descriptor:
        content = os.pread(descriptor, length, content_offset(packed.place) + start)
        if not exists(descriptor, packed):
            raise BlobMissing(f"no blob {packed} is stored")
        return content


def size_of(path: Path, packed: PackedName) -> int:
    """0 for one that is not there, or was freed. Raises OSError."""
    try:
        with _opened(path, packed) as descriptor:
            return packed.place.size if exists(descriptor, packed) else 0
    except BlobMissing:
        return 0


@contextmanager
def _opened(path: Path, packed: PackedName) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise BlobMissing(f"no blob {packed} is stored") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
