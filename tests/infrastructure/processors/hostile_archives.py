"""Archives that readers interpret differently, block by block."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable

BLOCK = 512
END = bytes(2 * BLOCK)
POSIX, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
OUT = "../evil.txt"


def header(
    name: str | bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    link: str | bytes = b"",
    magic: bytes = POSIX,
    prefix: str | bytes = b"",
) -> bytes:
    """One header of a tar, with a correct checksum; other fields may be invalid."""
    block = bytearray(BLOCK)
    for at, length, value in ((0, 100, name), (157, 100, link), (345, 155, prefix)):
        raw = value.encode() if isinstance(value, str) else value
        block[at : at + length] = raw.ljust(length, b"\0")[:length]
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"%011o\0" % 1_700_000_000
    block[156:157], block[257:265] = kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str | bytes, data: bytes = b"x", **fields: object) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def extended(kind: bytes = b"x", **records: str | bytes) -> bytes:
    data = b""
    for key, value in records.items():
        raw = value.encode() if isinstance(value, str) else value
        line = b" " + key.replace("__", ".").encode() + b"=" + raw + b"\n"
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        data += str(length).encode() + line
    return header("PaxHeaders/x", kind=kind, size=len(data)) + padded(data)


def long(kind: bytes, name: bytes) -> bytes:
    return header("././@LongLink", kind=kind, size=len(name), magic=GNU) + padded(name)


def gnu_sparse(name: str, real: int) -> bytes:
    block = bytearray(header(name, kind=b"S", size=1, magic=GNU))
    block[386:398], block[398:410] = b"%011o\0" % (real - 1), b"%011o\0" % 1
    block[483:495] = b"%011o\0" % real
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(b"x")


GOOD = member("ok.txt")

TARS: dict[str, bytes] = {
    "name with parent": member(OUT) + END,
    "absolute name": member("/tmp/evil-archive-test") + END,
    "backslashes": member("..\\evil.txt") + END,
    "drive": member("C:evil.txt") + END,
    "share": member("\\\\server\\share\\evil") + END,
    "empty name": member("") + END,
    "dots with blanks": member(".. /evil.txt") + END,
    "prefix that GNU tar ignores": member("../../evil.txt", magic=GNU, prefix="a/b/c") + END,
    "prefix of v7 that Python uses": member("evil.txt", magic=V7, prefix="../..") + END,
    "prefix of GNU that Python uses": member("evil.txt", magic=GNU, prefix="../..") + END,
    "prefix with a strange version": member(OUT, magic=b"ustar\0  ", prefix="a/b") + END,
    "prefix with a blank in the magic": member(OUT, magic=b"ustar \0\0", prefix="a/b") + END,
    "prefix of POSIX": member("evil.txt", prefix="../..") + END,
    "pax path": extended(path=OUT) + GOOD + END,
    "pax path over a good one": extended(path=OUT) + extended(path="ok.txt") + GOOD + END,
    "pax path under a good one": extended(path="ok.txt") + extended(path=OUT) + GOOD + END,
    "pax path twice": extended(path=OUT, Path="x") + GOOD + END,
    "pax path for all": extended(b"g", path=OUT) + GOOD + END,
    "pax path in Solaris' header": extended(b"X", path=OUT) + GOOD + END,
    "pax path with NUL": extended(path=b"ok\0/../../evil") + GOOD + END,
    "pax name of a sparse file": extended(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name=OUT
    )
    + member("ok.txt", padded(b"1\n0\n1\n") + b"x")
    + END,
    "pax header malformed": header("x", kind=b"x", size=20)
    + padded(b"99 path=../evil.txt\n")
    + GOOD
    + END,
    "pax size over the header's": extended(size="1024")
    + header("a.txt", size=0)
    + member(OUT, b"x" * 512)
    + END,
    "pax size under the header's": extended(size="0") + member("a.txt", member(OUT)) + END,
    "GNU long name": long(b"L", OUT.encode() + b"\0") + member("ok.txt", magic=GNU) + END,
    "GNU long name before pax": long(b"L", OUT.encode()) + extended(path="ok.txt") + GOOD + END,
    "GNU long name with NUL": long(b"L", b"ok.txt\0/../../evil\0") + GOOD + END,
    "GNU long name twice": long(b"L", OUT.encode()) + long(b"L", b"ok.txt\0") + GOOD + END,
    "GNU long link": long(b"K", b"../../../evil\0")
    + header("l", kind=b"2", link="ok", magic=GNU)
    + END,
    "link and a member behind it": header("l", kind=b"2", link="/tmp") + member("l/evil") + END,
    "relative link out": header("d/l", kind=b"2", link="../..") + member("d/l/evil") + END,
    "link to the folder itself": header("d", kind=b"2", link=".") + member("d/x") + END,
    "link by another case": header("L", kind=b"2", link="ok") + member("l/x") + END,
    "link by another form": header("e\u0301", kind=b"2", link="x") + member("\u00e9/x") + END,
    "link through a link": header("a", kind=b"2", link="b/c")
    + header("a/up", kind=b"2", link="..")
    + END,
    "link by pax": extended(linkpath="../../..")
    + header("l", kind=b"2", link="ok")
    + member("l/evil")
    + END,
    "hard link out": header("h", kind=b"1", link="../canary") + END,
    "hard link by an absolute name": header("h", kind=b"1", link="/etc/hostname") + END,
    "hard link with content": header("h", kind=b"1", link="ok.txt", size=512) + member(OUT) + END,
    "folder with content": header("d/", kind=b"5", size=1024) + member(OUT) + END,
    "v7 folder with content": header("d/", size=1024, magic=V7) + member(OUT) + END,
    "device": header("disk", kind=b"4") + END,
    "pipe": header("pipe", kind=b"6") + END,
    "volume label out": header("../label", kind=b"V") + END,
    "old name of GNU": header("x", kind=b"N", size=512) + bytes(512) + END,
    "unknown kind": header("x", kind=b"A", size=1024) + member(OUT) + END,
    "sparse without GNU": GOOD + gnu_sparse("s", 10).replace(GNU, POSIX) + END,
    "folder list that renames": member("d/", b"R/etc\0T/x\0\0", kind=b"D", magic=GNU) + END,
    "size with a sign": header("ok.txt", size=b"-0000000010\0") + END,
    "size in Python's octal": header("ok.txt", size=b"0o000002000\0") + member(OUT) + END,
    "size beyond any": header("ok.txt", size=b"\xff" * 12) + END,
    "member after the end": GOOD + END + member(OUT) + END,
    "member after one zero block": GOOD + bytes(BLOCK) + member(OUT) + END,
    "member after much padding": GOOD + bytes(20 * BLOCK) + member(OUT) + END,
    "garbage after the end": GOOD + END + b"hidden".ljust(BLOCK, b"\0"),
    "header of nothing": GOOD + extended(path=OUT) + END,
    "wrong checksum": GOOD + b"\xff" + member("x")[1:] + END,
}


def archive_zip(
    name: bytes = b"ok.txt",
    *,
    local: bytes | None = None,
    extra: bytes = b"",
    local_extra: bytes = b"",
    data: bytes = b"words",
    flags: int = 0,
    mode: int = stat.S_IFREG | 0o644,
    size: int | None = None,
    packed: bytes | None = None,
    method: int = 0,
    made_by: int = 3,
) -> bytes:
    """A zip of one member, whose two headers need not agree."""
    local = name if local is None else local
    packed = data if packed is None else packed
    size = len(data) if size is None else size
    common = struct.pack("<5H3L", 20, flags, method, 0, 0x5A21, zlib.crc32(data), len(packed), size)
    first = (
        b"PK\3\4" + common + struct.pack("<2H", len(local), len(local_extra)) + local + local_extra
    )
    entry = b"PK\1\2" + struct.pack("<BB", 20, made_by) + common
    entry += struct.pack("<5H2L", len(name), len(extra), 0, 0, 0, mode << 16, 0) + name + extra
    return first + packed + entry + end_of(1, len(entry), len(first) + len(packed))


def end_of(count: int, size: int, offset: int, comment: bytes = b"") -> bytes:
    return (
        b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, size, offset, len(comment)) + comment
    )


def unicode_path(name: bytes, path: bytes, right: bool = True) -> bytes:
    value = struct.pack("<BL", 1, zlib.crc32(name) if right else 7) + path
    return struct.pack("<HH", 0x7075, len(value)) + value


def _built(*names: str, **modes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, "words")
    return buffer.getvalue()


def linked_zip(name: str, target: str, *files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename, info.create_system = name, 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
        for file in files:
            archive.writestr(file, "words")
    return buffer.getvalue()


def _hidden_member() -> bytes:
    """A member in front of the directory that the directory does not know."""
    one, two = archive_zip(), archive_zip(b"../evil.txt")
    at, at_two = one.index(b"PK\1\2"), two.index(b"PK\1\2")
    entries = one[at : one.index(b"PK\5\6")]
    return one[:at] + two[:at_two] + entries + end_of(1, len(entries), at + at_two)


def _overlap(count: int) -> bytes:
    """Many entries that share one member: the bomb of David Fifield in its simplest form."""
    packed = zlib.compress(bytes(10**6), 9)[2:-4]
    one = archive_zip(b"a" * 6, data=bytes(10**6), packed=packed, method=8)
    at = one.index(b"PK\1\2")
    entry = one[at : one.index(b"PK\5\6")]
    return one[:at] + entry * count + end_of(count, len(entry) * count, at)


def _deflated(data: bytes, more: bytes = b"", size: int | None = None) -> bytes:
    packed = zlib.compress(data)[2:-4] + more
    return archive_zip(data=data, packed=packed, method=8, size=size)


def _in_comment() -> bytes:
    """Two ends: which one counts depends on where a reader begins to search."""
    other = archive_zip(b"../evil.txt")
    return archive_zip()[:-2] + struct.pack("<H", len(other)) + other


ZIPS: dict[str, bytes] = {
    "name with parent": _built(OUT),
    "absolute name": _built("/tmp/evil-archive-test"),
    "backslashes": archive_zip(b"..\\evil.txt", made_by=0),
    "drive": archive_zip(b"C:evil.txt"),
    "name with NUL": archive_zip(b"ok.txt\0/../../evil"),
    "empty name": archive_zip(b""),
    "path goes up inside": _built("a/../../evil.txt"),
    "unicode path": archive_zip(extra=unicode_path(b"ok.txt", b"../../evil.txt")),
    "unicode path in the local header": archive_zip(
        local_extra=unicode_path(b"ok.txt", b"../../evil.txt")
    ),
    "unicode path with a wrong checksum": archive_zip(
        extra=unicode_path(b"ok.txt", b"../../evil.txt", right=False)
    ),
    "unicode path twice": archive_zip(
        extra=unicode_path(b"ok.txt", b"ok.txt") + unicode_path(b"ok.txt", b"ok.txt")
    ),
    "other name in the local header": archive_zip(local=b"../x.t"),
    "other method in the local header": archive_zip().replace(
        b"PK\1\2\x14\x03\x14\0\0\0\0\0", b"PK\1\2\x14\x03\x14\0\0\0\x08\0"
    ),
    "link out": linked_zip("l", "../..", "l/evil.txt"),
    "link by an absolute name": linked_zip("l", "/tmp", "l/evil-archive-test"),
    "member behind a link": linked_zip("l", "d", "l/evil.txt"),
    "device": archive_zip(mode=stat.S_IFBLK | 0o644),
    "folder with content": archive_zip(b"d/"),
    "hidden member": _hidden_member(),
    "data before": b"#!/bin/sh\n" + archive_zip(),
    "data after": archive_zip() + b"hidden",
    "zip after zip": archive_zip() + archive_zip(b"../evil.txt"),
    "end in a comment": _in_comment(),
    "overlapping members": _overlap(200),
    "data after a member's stream": _deflated(b"words" * 100, b"hidden"),
    "more than it says": _deflated(bytes(100_000), size=10),
    "directory counts too few": archive_zip().replace(
        b"PK\5\6\0\0\0\0\1\0\1\0", b"PK\5\6\0\0\0\0\0\0\0\0"
    ),
    "one of several": archive_zip().replace(b"PK\5\6\0\0\0\0", b"PK\5\6\1\0\1\0"),
    "encrypted without saying so": archive_zip(flags=1 << 13),
}


def _nested(make: Callable[[bytes], bytes], content: bytes, times: int) -> bytes:
    for _ in range(times):
        content = make(content)
    return content


def zip_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _zeros() -> bytes:
    return bytes(40 * 1024 * 1024)


def _packed() -> bytes:
    return gzip.compress(_zeros(), 6, mtime=0)


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros after the end.tar.gz": lambda: gzip.compress(GOOD + _zeros(), 6, mtime=0),
    "only zeros.tar.gz": _packed,
    "several streams.tar.gz": lambda: gzip.compress(GOOD, mtime=0) + _packed() + _packed(),
    "pax header.tar.gz": lambda: gzip.compress(
        header("x", kind=b"x", size=40 * 1024 * 1024) + _zeros(), 6, mtime=0
    ),
    "many small members.tar.gz": lambda: gzip.compress(
        b"".join(member("d/x", bytes(4096)) for _ in range(9000)), 9, mtime=0
    ),
    "sparse.tar": lambda: gnu_sparse("s", 2**32) + END,
    "sparse.tar.gz": lambda: gzip.compress(gnu_sparse("s", 2**29) + END, mtime=0),
    "sparse by pax.tar": lambda: (
        extended(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="1000000000")
        + member("s", padded(b"1\n0\n1\n") + b"x")
        + END
    ),
    "sparse by its map.tar": lambda: (
        extended(GNU__sparse__major="1", GNU__sparse__minor="0")
        + member("s", padded(b"1\n4000000000\n1\n") + b"x")
        + END
    ),
    "zip in zip.zip": lambda: zip_of(("a.zip", zip_of(("zeros", _zeros())))),
    "tar in zip.zip": lambda: zip_of(("a.tar.gz", gzip.compress(GOOD + _zeros(), mtime=0))),
    "document in zip.zip": lambda: zip_of(
        ("a.docx", zip_of(("[Content_Types].xml", b""), ("word/document.xml", _zeros())))
    ),
    "zip in tar.tar": lambda: member("a.zip", zip_of(("zeros", _zeros()))) + END,
    "deep.zip": lambda: _nested(lambda inner: zip_of(("a.zip", inner)), b"words", 10),
    "overlap.zip": lambda: _overlap(2000),
}
"""Names of files, and what makes their bytes, which unpack to far more than they are."""
