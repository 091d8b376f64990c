"""Tar archives, read as all common extractors read them together.

Formats: v7, POSIX ustar and pax (POSIX.1-2008, `pax`), old and new GNU (the manual of GNU tar,
"Basic Tar Format"). Where GNU tar, libarchive, 7-Zip and Python differ about a name, every reading
is judged; where they differ about where a member ends, the archive is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from infrastructure.processors.archive_rules import (
    CHUNK_BYTES,
    ArchiveCounter,
    ArchiveRefused,
    Broken,
    Reader,
)

BLOCK_SIZE = 512
MAX_PAX_BYTES = 1024 * 1024  # bytes of an extended header: libarchive takes no more
MOST_CUT = 99  # bytes of a header's name from which on it may be only the beginning of one
MAX_NAME_BYTES = 64 * 1024  # bytes of a GNU long name
LARGE = 8 * 1024**3  # sizes that the field in the header cannot hold

Inspect: TypeAlias = Callable[[Reader, bytes, ArchiveCounter], None]

_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_OCTAL = re.compile(rb"[ 0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,9}) ([^=]+)=")
_REGULAR = (b"0", b"\0", b"7")
_SIZES = ("GNU.sparse.size", "GNU.sparse.realsize", "SCHILY.realsize")


class _Pending:
    """Values of extended headers for the member that follows them."""

    def __init__(self) -> None:
        self.any = False
        self.names: list[str] = []
        self.links: list[str] = []
        self.sizes: list[int] = []
        self.real_sizes: list[int] = []
        self.sparse = False
        self.map_in_data = False


def is_header(block: bytes) -> bool:
    """Return whether a block has the checksum of a tar header."""
    if len(block) < BLOCK_SIZE or not block.strip(b"\0"):
        return False
    try:
        stored = _number(block[148:156], "checksum")
    except Broken:
        return False
    blank = block[:148] + b" " * 8 + block[156:BLOCK_SIZE]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)
    return stored in (sum(blank), signed)


def inspect_tar(source: Reader, counter: ArchiveCounter, inspect: Inspect) -> None:
    """Judge and count every member; `inspect` looks into its content.

    Raises ArchiveRefused, LimitExceeded, Broken.
    """
    pending = _Pending()
    block = source.read(BLOCK_SIZE)
    if not block:
        raise Broken("it is empty")
    while block:
        if len(block) < BLOCK_SIZE:
            raise Broken("it is truncated")
        if not block.strip(b"\0"):
            break
        if not is_header(block):
            raise Broken("a header has a wrong checksum")
        kind, size = block[156:157], _number(block[124:136], "size")
        if kind in (b"x", b"X", b"g"):
            _read_pax(
                _data(source, size, MAX_PAX_BYTES, "an extended header"), pending, kind == b"g"
            )
        elif kind in (b"L", b"K"):
            names = pending.names if kind == b"L" else pending.links
            names.append(
                _strict_text(_data(source, size, MAX_NAME_BYTES, "a long name").rstrip(b"\0"))
            )
            pending.any = True
        else:
            _member(source, block, size, pending, counter, inspect)
            pending = _Pending()
        block = source.read(BLOCK_SIZE)
    if pending.any:
        raise Broken("an extended header has no member")
    while rest := source.read(CHUNK_BYTES):
        if rest.strip(b"\0"):
            raise ArchiveRefused("there is data after the end of the archive")


def _member(
    source: Reader,
    block: bytes,
    size: int,
    pending: _Pending,
    counter: ArchiveCounter,
    inspect: Inspect,
) -> None:
    kind = block[156:157]
    headers = _header_names(block)
    names = pending.names or headers
    counter.member(names, *map(_whole, headers if pending.names else ()))
    name = names[-1]
    for declared in pending.sizes:
        if declared != size and declared < LARGE:
            raise ArchiveRefused(f"{name!r} has two sizes, {size} and {declared}")
        size = declared
    folder = name.endswith("/") and kind in _REGULAR
    if size and (folder or kind in (b"1", b"2", b"5", b"V")):
        raise ArchiveRefused(
            f"{name!r} is no file but has content: readers differ on where it ends"
        )
    if kind in (b"1", b"2"):
        targets = pending.links or [_text(block[157:257])]
        if kind == b"1":
            counter.hard_link(targets)
        else:
            counter.link(names, targets)
    elif kind in (b"3", b"4", b"6"):
        raise ArchiveRefused(f"{name!r} is a device, and no file")
    elif kind == b"D":
        _require_plain_dump(_data(source, size, MAX_PAX_BYTES, "a list of a folder"), name)
    elif kind == b"S":
        if block[257:265] != _GNU or pending.sparse:
            raise ArchiveRefused(f"{name!r} is sparse in a way that readers differ on")
        real = _gnu_sparse_size(source, block)
        _file(source, size, counter, inspect, real)
    elif kind in _REGULAR:
        real = max(pending.real_sizes, default=0)
        _file(source, size, counter, inspect, real, pending.map_in_data)
    elif kind not in (b"5", b"V"):
        raise ArchiveRefused(f"{name!r} is of a kind that readers differ on: {kind!r}")


def _header_names(block: bytes) -> list[str]:
    """The names that readers make of a header: not all use the prefix in the same formats."""
    name, prefix = _text(block[:100]), _text(block[345:500])
    if not prefix:
        return [name]
    joined = f"{prefix}/{name}"
    return [joined] if block[257:265] == _POSIX else [name, joined]


def _whole(name: str) -> str:
    """A name of a header without its last component where that may be cut off: `..x` to `..`."""
    return (
        name
        if len(name.encode(errors="surrogateescape")) < MOST_CUT
        else name.rpartition("/")[0] or "x"
    )


def _file(
    source: Reader,
    size: int,
    counter: ArchiveCounter,
    inspect: Inspect,
    real: int,
    map_in_data: bool = False,
) -> None:
    counter.content(max(real, size))
    content = _TarMemberReader(source, size)
    head = content.read(BLOCK_SIZE)
    if map_in_data:
        real = _sparse_map_end(head, content) - max(real, size)
        counter.content(max(real, 0))
    inspect(content, head, counter)
    while content.read(CHUNK_BYTES):
        pass
    _skip(source, -size % BLOCK_SIZE)


class _TarMemberReader:
    """Reader of a member's bytes."""

    def __init__(self, source: Reader, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        found = self._source.read(min(wanted, CHUNK_BYTES))
        if not found:
            raise Broken("it is truncated")
        self._left -= len(found)
        return found


def _data(source: Reader, size: int, most: int, what: str) -> bytes:
    if size > most:
        raise ArchiveRefused(f"{what} has {size} bytes, over {most}")
    data = _exactly(source, size)
    _skip(source, -size % BLOCK_SIZE)
    return data


def _exactly(source: Reader, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = source.read(size - len(data))
        if not chunk:
            raise Broken("it is truncated")
        data += chunk
    return bytes(data)


def _skip(source: Reader, size: int) -> None:
    _exactly(source, size)


def _read_pax(data: bytes, pending: _Pending, everywhere: bool) -> None:
    for key, value in _records(data):
        if everywhere and (key in ("path", "linkpath", "size") or key.startswith("GNU.sparse")):
            raise ArchiveRefused(f"a global header has {key!r} for all members: readers differ")
        if key in ("path", "GNU.sparse.name"):
            pending.names.append(_strict_text(value))
        elif key == "linkpath":
            pending.links.append(_strict_text(value))
        elif key == "size":
            pending.sizes.append(_decimal(value))
        elif key in _SIZES:
            pending.real_sizes.append(_decimal(value))
        elif key == "GNU.sparse.map":
            numbers = [_decimal(number) for number in value.split(b",") if number]
            pending.real_sizes += map(sum, zip(numbers[::2], numbers[1::2], strict=False))
        elif key == "GNU.sparse.offset":
            pending.real_sizes.append(_decimal(value))
        elif key == "GNU.sparse.major":
            pending.map_in_data = value != b"0"
        pending.sparse |= key.startswith("GNU.sparse")
    pending.any |= not everywhere


def _records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the records `length key=value` of an extended header; each length must be exact."""
    at = 0
    while at < len(data):
        if not data[at:].strip(b"\0"):
            return  # some writers fill the header up
        found = _RECORD.match(data, at)
        end = at + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ArchiveRefused(
                "an extended header is malformed: readers interpret it differently"
            )
        yield found[2].decode(errors="surrogateescape"), data[found.end() : end - 1]
        at = end


def _gnu_sparse_size(source: Reader, block: bytes) -> int:
    """The size of an old GNU sparse file; reads the headers that continue its map."""
    real = _number(block[483:495], "size")
    spans, more = block[386:482], block[482] != 0
    while True:
        for at in range(0, len(spans) // 24 * 24, 24):
            offset, length = spans[at : at + 12], spans[at + 12 : at + 24]
            real = max(real, _number(offset, "offset") + _number(length, "size"))
        if not more:
            return real
        extension = _exactly(source, BLOCK_SIZE)
        spans, more = extension[:504], extension[504] != 0


def _sparse_map_end(head: bytes, content: _TarMemberReader) -> int:
    """The end of the last span of a map before the data (GNU sparse format 1.0)."""
    text, numbers, wanted = head, list[int](), 1
    while len(numbers) < wanted:
        line, newline, text = text.partition(b"\n")
        if not newline:
            more = content.read(BLOCK_SIZE)
            if not more or len(line) > BLOCK_SIZE:
                raise Broken("the map of a sparse file is malformed")
            text = line + more
            continue
        numbers.append(_decimal(line))
        wanted = 1 + 2 * numbers[0]
    return max((a + b for a, b in zip(numbers[1::2], numbers[2::2], strict=False)), default=0)


def _require_plain_dump(data: bytes, name: str) -> None:
    """An incremental archive's list of a folder may also rename files when it is extracted."""
    for entry in data.split(b"\0"):
        if entry and entry[:1] not in (b"Y", b"N", b"D"):
            raise ArchiveRefused(f"the list of the folder {name!r} does more than name its files")


def _number(field: bytes, what: str) -> int:
    """A number in octal, or in base 256 as GNU writes large ones. Raises Broken."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field)
    if found is None:
        raise Broken(f"a {what} is no number: {field!r}")
    return int(found[1] or b"0", 8)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise Broken(f"an extended header has a size that is no number: {value[:40]!r}")
    return int(value)


def _text(field: bytes) -> str:
    """A field up to its first NUL."""
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _strict_text(value: bytes) -> str:
    if b"\0" in value:
        raise ArchiveRefused(
            "an extended header has a name with a NUL: readers differ on where it ends"
        )
    return value.decode(errors="surrogateescape")
