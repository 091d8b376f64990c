"""Decoder that looks through archives: nothing is written, everything is counted.

Names, links and sizes are judged as they are listed; then every member is unpacked into nothing,
because what an archive says of itself need not be true.
"""

from __future__ import annotations

import codecs
import lzma
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from itertools import dropwhile
from typing import IO

from infrastructure.processors.decoder_server import Answer, Order

CHUNK = 256 * 1024
LONGEST_TARGET = 4096  # bytes of a link
HARMLESS = 1024 * 1024  # bytes below which no ratio makes a bomb
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # among them NotImplementedError, for a method of compression
)

_NESTED = (b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!")


class Refused(Exception):
    """The archive breaks a rule of the pipeline."""


class Tally:
    """What was found so far, held against the limits of the order. Raises Refused."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.found = {"members": 0, "bytes": 0, "nested": 0, "encrypted": 0, "links": 0}
        self._names: list[str] = []
        self._links: set[str] = set()

    def member(self, name: str, size: int) -> None:
        _require_inside(name, "a member is named")
        self._names.append(name)
        self.found["members"] += 1
        self.found["bytes"] += size
        self._require("members", "max_members", "members")
        self._require("bytes", "max_bytes", "bytes when unpacked")
        total, packed = self.found["bytes"], self._order["packed"]
        if total > HARMLESS and total > self._order["max_ratio"] * packed:
            ratio = self._order["max_ratio"]
            raise Refused(f"{packed} bytes unpack to more than {total}: over {ratio} times as much")

    def link(self, name: str, target: str) -> None:
        self.found["links"] += 1
        self._links.add(posixpath.normpath(name))
        up = target.replace("\\", "/").split("/")
        if ".." in dropwhile("..".__eq__, up):
            raise Refused(f"a link leads back and forth: {target!r}")
        _require_inside(target, "a link leads to", posixpath.dirname(name))

    def encrypted(self, name: str) -> None:
        self.found["encrypted"] += 1
        if not self._order["allow_encrypted"]:
            raise Refused(f"{name!r} is encrypted: nobody can tell what it holds")

    def end(self) -> None:
        """Nothing may lie behind a link: where it would land, names do not tell."""
        for name in self._names if self._links else ():
            while name := posixpath.dirname(posixpath.normpath(name)):
                if name in self._links:
                    raise Refused(f"a member lies behind the link {name!r}")

    def head(self, content: bytes) -> None:
        self.found["nested"] += content.startswith(_NESTED) or content[257:262] == b"ustar"
        self._require("nested", "max_nested", "archives inside")

    def _require(self, counted: str, limit: str, what: str) -> None:
        if self.found[counted] > self._order[limit]:
            raise Refused(f"more than {self._order[limit]} {what}")


def prepare() -> None:
    """Load the codecs of names, which a child could not: it can open nothing."""
    for name in ("ascii", "cp437", "latin-1", "utf-8"):
        codecs.lookup(name)


def inspect(source: IO[bytes], order: Order) -> Answer:
    """What was counted, or what is wrong with the archive."""
    look: dict[str, Callable[[IO[bytes], Order, Tally], None]] = {"zip": _zip, "tar": _tar}
    tally = Tally(order)
    try:
        look[order["kind"]](source, order, tally)
        tally.end()
    except Refused as error:
        return {"refused": str(error)}
    except BROKEN as error:
        if order["unsure"] and not tally.found["members"]:
            return {"skipped": "it is compressed, and no archive"}
        return {"broken": str(error) or type(error).__name__}
    return {"found": tally.found}


def _zip(source: IO[bytes], order: Order, tally: Tally) -> None:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            tally.member(info.orig_filename, info.file_size)
        for info in archive.infolist():
            if info.flag_bits & 1:
                tally.encrypted(info.filename)
            elif not info.is_dir():
                with archive.open(info) as content:
                    head = _read_all(content, tally)
                if stat.S_ISLNK(info.external_attr >> 16):
                    tally.link(info.filename, head[:LONGEST_TARGET].decode())


def _tar(source: IO[bytes], order: Order, tally: Tally) -> None:
    with tarfile.open(fileobj=source, mode="r:*") as archive:
        for info in archive:
            tally.member(info.name, info.size)
            if info.issym():
                tally.link(info.name, info.linkname)
            elif info.islnk():
                tally.link("", info.linkname)  # counted from the top of the archive
            elif info.isfile():
                with archive.extractfile(info) as content:  # type: ignore[union-attr]
                    _read_all(content, tally)
            elif not info.isdir():
                raise Refused(f"{info.name!r} is a device, and no file")


def _read_all(content: IO[bytes], tally: Tally) -> bytes:
    """Unpacks a member to its end; returns how it begins."""
    head = content.read(CHUNK)
    tally.head(head)
    while content.read(CHUNK):
        pass
    return head


def _require_inside(path: str, told: str, folder: str = "") -> None:
    """Judged as the strictest system would: by both separators, with drives."""
    parts = path.replace("\\", "/").split("/")
    if "\0" in path or parts[0] == "" or parts[0][1:2] == ":":
        raise Refused(f"{told} {path!r}, which lies outside of it")
    depth = 0
    for part in (*folder.replace("\\", "/").split("/"), *parts):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise Refused(f"{told} {path!r}, which lies outside of it")
