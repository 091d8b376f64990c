"""Zip archives, read as all common extractors read them together.

Format: APPNOTE.TXT 6.3.10 (PKWARE); extra fields of Info-ZIP. Every byte before the central
directory must belong to one member, both headers of a member must agree, and nothing may precede or
follow, so that a reader of the directory and a reader of the stream see the same members.
"""

from __future__ import annotations

import bz2
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import SEEK_SET
from typing import IO, NamedTuple

from infrastructure.processors.archive_rules import (
    CHUNK_BYTES,
    MAX_LINK_TARGET_BYTES,
    ArchiveCounter,
    ArchiveRefused,
    Broken,
)
from infrastructure.processors.archive_streams import ERRORS, Decompressor, Inflate, zstd
from infrastructure.processors.archive_tar import Inspect

HEAD_BYTES = 512  # bytes of a member by which a nested archive is detected
MAX_PADDING_BYTES = 64 * 1024  # bytes of zeros after the end

_LOCAL, _ENTRY, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64, _LOCATOR64, _DESCRIPTOR = b"PK\6\6", b"PK\6\7", b"PK\7\x08"
_LOCAL_FIELDS = struct.Struct("<4s5H3L2H")
_ENTRY_FIELDS = struct.Struct("<4s6H3L5H2L")
_END_FIELDS = struct.Struct("<4s4H2LH")
_END64_FIELDS = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64_FIELDS = struct.Struct("<4sLQL")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _STREAMED, _STRONG, _UTF8, _MASKED = 1 << 0, 1 << 3, 1 << 6, 1 << 11, 1 << 13
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_APK_SIGNATURE = b"APK Sig Block 42"  # Android signs packages with a block before the directory


class _Directory(NamedTuple):
    start: int
    size: int
    members: int


class _Entry(NamedTuple):
    """Entry of the central directory."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int
    extra: dict[int, bytes]


def inspect_zip(source: IO[bytes], size: int, counter: ArchiveCounter, inspect: Inspect) -> None:
    """Judge and count every member; `inspect` looks into its content.

    Raises ArchiveRefused, LimitExceeded, Broken.
    """
    directory = _find_directory(source, size)
    counter.require_members(directory.members)
    at = 0
    entries = sorted(_read_directory(source, directory), key=lambda entry: entry.offset)
    for entry in entries:
        if entry.offset < at:
            raise ArchiveRefused(f"{_name(entry)!r} overlaps another member")
        _require_empty(source, at, entry.offset)
        at = _member(source, entry, directory.start, counter, inspect)
    _require_empty(source, at, directory.start)


def _find_directory(source: IO[bytes], size: int) -> _Directory:
    used = _without_padding(source, size)
    tail = _read_at(source, max(0, used - _MAX16 - _END_FIELDS.size), size)
    found = tail.rfind(_END)
    if found < 0 or len(tail) - found < _END_FIELDS.size:
        raise Broken("it has no central directory: truncated, or no zip")
    _, disk, first_disk, here, count, length, offset, comment = _END_FIELDS.unpack_from(tail, found)
    end = size - len(tail) + found
    if end + _END_FIELDS.size + comment > size:
        raise Broken("its comment is truncated")
    if end + _END_FIELDS.size + comment < used:
        raise ArchiveRefused("there is data after the end of the archive")
    at = end
    locator = _read_at(source, max(0, end - _LOCATOR64_FIELDS.size), end)
    if locator.startswith(_LOCATOR64):
        plain = (disk, first_disk, here, count, length, offset)
        most = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
        at, large = _read_end64(source, end, locator)
        for value, limit, value64 in zip(plain, most, large, strict=True):
            if value not in (limit, value64):
                raise ArchiveRefused("its two ends differ on where the directory is")
        disk, first_disk, here, count, length, offset = large
    if disk or first_disk or here != count:
        raise ArchiveRefused("it is one part of several")
    if offset + length != at:
        raise ArchiveRefused("its directory is not where declared: there is data before or between")
    return _Directory(offset, length, count)


def _without_padding(source: IO[bytes], size: int) -> int:
    """The size without the zeros at the end, with which bsdtar fills up what it pipes."""
    tail = _read_at(source, max(0, size - MAX_PADDING_BYTES), size)
    return size - len(tail) + len(tail.rstrip(b"\0"))


def _read_end64(
    source: IO[bytes], end: int, locator: bytes
) -> tuple[int, tuple[int, int, int, int, int, int]]:
    _, disk, at, disks = _LOCATOR64_FIELDS.unpack(locator)
    record = _read_at(source, at, end - _LOCATOR64_FIELDS.size)
    if disk or disks > 1 or len(record) < _END64_FIELDS.size or not record.startswith(_END64):
        raise ArchiveRefused("its zip64 end record is not at the declared offset")
    fields = _END64_FIELDS.unpack_from(record)
    if fields[1] + 12 != len(record):
        raise ArchiveRefused("there is data after its zip64 end")
    return at, fields[4:10]


def _read_directory(source: IO[bytes], directory: _Directory) -> Iterator[_Entry]:
    data = _read_at(source, directory.start, directory.start + directory.size)
    at = 0
    for _ in range(directory.members):
        if len(data) - at < _ENTRY_FIELDS.size or data[at : at + 4] != _ENTRY:
            raise Broken("its directory is malformed")
        fields = _ENTRY_FIELDS.unpack_from(data, at)
        (_, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, outer, offset) = fields
        at += _ENTRY_FIELDS.size
        name, extra = data[at : at + lengths[0]], data[at + lengths[0] :][: lengths[1]]
        at += sum(lengths)
        if at > len(data):
            raise Broken("its directory is truncated")
        more = _extra_fields(extra)
        wide = (size == _MAX32, packed == _MAX32, offset == _MAX32)
        size, packed, offset = _zip64(more, wide, (size, packed, offset))
        if disk not in (0, _MAX16):
            raise ArchiveRefused("it is one part of several")
        yield _Entry(name, flags, method, crc, packed, size, offset, outer >> 16, more)
    if at != len(data):
        raise ArchiveRefused("its directory is longer than its entries")


def _member(
    source: IO[bytes], entry: _Entry, end: int, counter: ArchiveCounter, inspect: Inspect
) -> int:
    """Judge, unpack and count one member; return where its bytes end."""
    start, flags, local = _local_header(source, entry)
    names = _names(entry.raw_name, entry.flags, entry.extra, local)
    name = names[0]
    counter.member(names)
    kind = stat.S_IFMT(entry.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):  # a pipe is what `zip a.zip -` reads
        raise ArchiveRefused(f"{name!r} is a device, and no file")
    if start + entry.packed > end:
        raise Broken(f"{name!r} is truncated")
    if entry.size and name.endswith("/"):
        raise ArchiveRefused(f"{name!r} is a folder with content: readers differ")
    counter.content(entry.size)
    if entry.flags & _ENCRYPTED:
        counter.encrypted(name)
        if kind == stat.S_IFLNK:
            raise ArchiveRefused(f"{name!r} is an encrypted link: its target cannot be checked")
    else:
        content = _ZipMemberReader(source, entry, start)
        head = content.read(MAX_LINK_TARGET_BYTES if kind == stat.S_IFLNK else HEAD_BYTES)
        if kind == stat.S_IFLNK:
            counter.link(names, [head.decode(errors="surrogateescape")])
        else:
            inspect(content, head, counter)
        content.finish()
    return _descriptor_end(source, entry, start + entry.packed, flags)


def _local_header(source: IO[bytes], entry: _Entry) -> tuple[int, int, dict[int, bytes]]:
    """Return content offset, flags and extra fields. Raises ArchiveRefused if headers differ."""
    at = entry.offset
    header = _read_at(source, at, at + _LOCAL_FIELDS.size)
    if len(header) < _LOCAL_FIELDS.size or not header.startswith(_LOCAL):
        raise Broken(f"{_name(entry)!r} is not at the offset in the directory")
    _, _, flags, method, _, _, crc, packed, size, name, more = _LOCAL_FIELDS.unpack(header)
    at += _LOCAL_FIELDS.size
    tail = _read_at(source, at, at + name + more)
    if len(tail) < name + more:
        raise Broken(f"{_name(entry)!r} is truncated")
    extra = _extra_fields(tail[name:])
    size, packed = _zip64(extra, (size == _MAX32, packed == _MAX32), (size, packed))
    if tail[:name] != entry.raw_name:
        other = tail[:name].decode(errors="replace")
        raise ArchiveRefused(f"{_name(entry)!r} is named {other!r} in its other header")
    agreed = _ENCRYPTED | _STRONG | _MASKED
    local, central = (crc, packed, size), (entry.crc, entry.packed, entry.size)
    streamed = flags & _STREAMED and all(a in (0, b) for a, b in zip(local, central, strict=True))
    if (
        method != entry.method
        or (flags ^ entry.flags) & agreed
        or not (local == central or streamed)
    ):
        raise ArchiveRefused(f"the two headers of {_name(entry)!r} differ")
    if flags & (_STRONG | _MASKED) and not flags & _ENCRYPTED:
        raise ArchiveRefused(f"{_name(entry)!r} is encrypted and does not say so")
    return at + name + more, flags, extra


class _ZipMemberReader:
    """Reader of a member's unpacked bytes, which must be as many as both headers say."""

    def __init__(self, source: IO[bytes], entry: _Entry, start: int) -> None:
        self._source = source
        self._entry = entry
        self._at, self._end = start, start + entry.packed
        self._name = _name(entry)
        self._decompressor = _decompressor(entry.method)
        self._size = self._crc = 0
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; fewer only at the end."""
        found = bytearray(self._rest)
        while size < 0 or len(found) < size:
            try:
                chunk = self._next()
            except (*ERRORS, RuntimeError) as error:
                raise Broken(f"{self._name!r}: {error or type(error).__name__}") from None
            if not chunk:
                break
            found += chunk
        if size < 0:
            size = len(found)
        self._rest = bytes(found[size:])
        return bytes(found[:size])

    def finish(self) -> None:
        """Unpack what is left. Raises Broken unless size and checksum are as promised."""
        while self.read(CHUNK_BYTES):
            pass
        if self._size != self._entry.size or self._crc != self._entry.crc:
            raise Broken(f"{self._name!r} does not match its header")
        if self._at != self._end:
            raise ArchiveRefused(f"there is data after the end of {self._name!r}")

    def _next(self) -> bytes:
        if self._decompressor is None:
            chunk = self._input()
        else:
            chunk = b""
            while not chunk and not self._decompressor.eof:
                wanted = self._decompressor.needs_input
                data = self._input() if wanted else b""
                if wanted and not data:
                    break
                chunk = self._decompressor.decompress(data, CHUNK_BYTES)
            if self._decompressor.eof and self._decompressor.unused_data:
                raise ArchiveRefused(f"there is data after the end of {self._name!r}")
        self._size += len(chunk)
        if self._size > self._entry.size:
            raise Broken(f"{self._name!r} has more bytes than its header declares")
        self._crc = zlib.crc32(chunk, self._crc)
        return chunk

    def _input(self) -> bytes:
        data = _read_at(self._source, self._at, min(self._at + CHUNK_BYTES, self._end))
        self._at += len(data)
        return data


class _Lzma:
    """LZMA as in a zip (APPNOTE section 5.8): version, size and properties before the data."""

    def __init__(self) -> None:
        self._head = b""
        self._inner: lzma.LZMADecompressor | None = None

    @property
    def eof(self) -> bool:
        return self._inner is not None and self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._inner is None or self._inner.needs_input

    @property
    def unused_data(self) -> bytes:
        return b"" if self._inner is None else self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if self._inner is not None:
            return self._inner.decompress(data, max_length)
        self._head += data
        if len(self._head) < 9:
            return b""
        if self._head[2:4] != b"\5\0":
            raise lzma.LZMAError("its properties are malformed")
        settings = self._head[4]
        properties = {
            "id": lzma.FILTER_LZMA1,
            "lc": settings % 9,
            "lp": settings // 9 % 5,
            "pb": settings // 45,
            "dict_size": int.from_bytes(self._head[5:9], "little"),
        }
        self._inner = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[properties])
        return self._inner.decompress(self._head[9:], max_length)


def _decompressor(method: int) -> Decompressor | None:
    """None for what is stored. Raises Broken for methods that Python has no code for."""
    if method == zipfile.ZIP_STORED:
        return None
    known: dict[int, Callable[[], Decompressor]] = {
        zipfile.ZIP_DEFLATED: lambda: Inflate(-15),
        zipfile.ZIP_BZIP2: bz2.BZ2Decompressor,
        zipfile.ZIP_LZMA: _Lzma,
    }
    if make_zstd := zstd():
        known[93] = make_zstd
    if method not in known:
        raise Broken(f"its compression method {method} is not supported")
    return known[method]()


def _descriptor_end(source: IO[bytes], entry: _Entry, at: int, flags: int) -> int:
    """Skip the descriptor that follows a streamed member, with or without its signature."""
    if not (entry.flags | flags) & _STREAMED:
        return at
    data = _read_at(source, at, at + 24)
    for layout in ("<4sLQQ", "<4sLLL", "<LQQ", "<LLL"):
        length = struct.calcsize(layout)
        if len(data) < length:
            continue
        fields = struct.unpack_from(layout, data)
        if layout.startswith("<4s") and fields[0] != _DESCRIPTOR:
            continue
        if fields[-3:] == (entry.crc, entry.packed, entry.size):
            return at + length
    if entry.flags & flags & _STREAMED:
        raise ArchiveRefused(f"the descriptor of {_name(entry)!r} differs from its headers")
    return at  # only one of the two headers has the flag for streaming


def _require_empty(source: IO[bytes], start: int, end: int) -> None:
    """Raise ArchiveRefused unless bytes between members are padding or an Android signature."""
    at = start
    while at < end:
        chunk = _read_at(source, at, min(at + CHUNK_BYTES, end))
        if chunk.strip(b"\0"):
            break
        at += len(chunk)
    if at < end and not _is_apk_signature(source, start, end):
        raise ArchiveRefused("there is data that belongs to no member")


def _is_apk_signature(source: IO[bytes], start: int, end: int) -> bool:
    if end - start < 32:
        return False
    foot = _read_at(source, end - 24, end)
    length = int.from_bytes(foot[:8], "little")
    if foot[8:] != _APK_SIGNATURE or not 24 <= length <= end - start - 8:
        return False
    begin = end - length - 8  # what is before it is padding
    head = _read_at(source, begin, begin + 8)
    return head == foot[:8] and not _read_at(source, start, begin).strip(b"\0")


def _extra_fields(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while len(data) - at >= 4:
        key, length = struct.unpack_from("<HH", data, at)
        value = data[at + 4 : at + 4 + length]
        if len(value) < length:
            raise Broken("an extra field is malformed")
        if key in found and key in (_ZIP64, _UNICODE_PATH):
            raise ArchiveRefused("an extra field is there twice: readers differ")
        found[key] = value
        at += 4 + length
    return found


def _zip64(extra: dict[int, bytes], wide: tuple[bool, ...], values: tuple[int, ...]) -> list[int]:
    """Replace the values that did not fit their fields."""
    data, found = extra.get(_ZIP64, b""), list(values)
    for index, is_wide in enumerate(wide):
        if is_wide and _ZIP64 in extra:
            if len(data) < 8:
                raise Broken("a zip64 extra field is malformed")
            found[index], data = int.from_bytes(data[:8], "little"), data[8:]
    return found


def _names(raw: bytes, flags: int, *extras: dict[int, bytes]) -> list[str]:
    """Every name that a reader may give a member: two encodings, and a field that replaces it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        if flags & _UTF8:
            raise Broken("a name is not in its declared encoding") from None
        names = [raw.decode("cp437")]
    else:
        names = [text] if flags & _UTF8 or raw.isascii() else [text, raw.decode("cp437")]
    for extra in extras:
        if _UNICODE_PATH in extra:  # version, checksum, name: the checksum is not believed
            names.append(extra[_UNICODE_PATH][5:].decode(errors="surrogateescape"))
    return names


def _name(entry: _Entry) -> str:
    return _names(entry.raw_name, 0)[0]


def _read_at(source: IO[bytes], start: int, end: int) -> bytes:
    source.seek(start, SEEK_SET)
    return source.read(max(0, end - start))
