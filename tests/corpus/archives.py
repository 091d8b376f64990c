"""Builders of archives and compressed files: valid ones of each kind, and a few hostile ones."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, TypeAlias

from tests.corpus.documents import zipped

NOTES = {"notes.txt": b"words\n" * 50, "folder/more.txt": b"more words\n"}

Change: TypeAlias = Callable[[tarfile.TarInfo], None]


def tarred(
    members: Mapping[str, bytes] = NOTES, compression: str = "", change: Change | None = None
) -> bytes:
    buffer = BytesIO()
    mode: Any = f"w:{compression}"
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None:
                change(info)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def plain_zip() -> bytes:
    return zipped(NOTES)


def empty_zip() -> bytes:
    return zipped({})


def streamed_zip() -> bytes:
    """A zip written to a pipe: sizes follow the data of each member."""

    class Pipe(BytesIO):
        def seekable(self) -> bool:
            return False

    buffer = Pipe()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in NOTES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def self_extracting_zip() -> bytes:
    """A zip behind a program: its directory is at the end, as every reader looks for it."""
    return b"MZ" + bytes(510) + plain_zip()


def encrypted_zip() -> bytes:
    """A zip whose members are marked as encrypted."""
    content = bytearray(zipped({"secret.txt": b"words"}))
    content[6] |= 1
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    return bytes(content)


def zip_bomb() -> bytes:
    return zipped({"zeros": bytes(64 * 1024 * 1024)})


def symlink_out() -> bytes:
    def to_root(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"

    return tarred({"a": b""}, change=to_root)


def gzipped() -> bytes:
    return gzip.compress(b"words\n" * 100, mtime=0)


def bzipped() -> bytes:
    return bz2.compress(b"words\n" * 100)


def xz() -> bytes:
    return lzma.compress(b"words\n" * 100)


def zstandard() -> bytes:
    return b"\x28\xb5\x2f\xfd\x24\x06\x31\0\0words\n" + bytes(16)


def lz4() -> bytes:
    return b"\x04\x22\x4d\x18\x64\x40\xa7\x06\0\0\x80words\n" + bytes(16)


def seven_zip() -> bytes:
    return b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(24) + bytes(128)


def rar_5() -> bytes:
    return b"Rar!\x1a\x07\x01\0" + bytes(128)


def rar_4() -> bytes:
    return b"Rar!\x1a\x07\0\xcf\x90\x73\0\0\x0d" + bytes(128)


def cabinet() -> bytes:
    return (
        b"MSCF"
        + bytes(4)
        + struct.pack("<IIII", 600, 0, 44, 0)
        + b"\x03\x01\x01\0\x01\0"
        + bytes(580)
    )


def ar_archive(first: bytes) -> bytes:
    header = first.ljust(16) + b"1700000000  0     0     100644  4         `\n"
    return b"!<arch>\n" + header + b"2.0\n" + b"control.tar.xz  " + header[16:] + bytes(256)


def rpm() -> bytes:
    return (
        b"\xed\xab\xee\xdb\x03\0\0\0\0\x01name-1.0".ljust(96, b"\0")
        + b"\x8e\xad\xe8\x01"
        + bytes(256)
    )


def cpio() -> bytes:
    return b"070701" + b"0" * 104 + b"notes.txt\0" + bytes(256)


def iso_image() -> bytes:
    return bytes(32768) + b"\x01CD001\x01\0" + bytes(2040 + 2048)
