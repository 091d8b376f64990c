"""Decoder that looks through archives: nothing is written, everything is counted.

Names, links and sizes are judged as every common extractor may read them; then every member is
decompressed and discarded, because the sizes that an archive declares may be false. Nested
archives are unpacked as well, as far as memory allows: they count against the limits, but their
names are not judged.
"""

from __future__ import annotations

import codecs
from io import BytesIO
from typing import IO

from infrastructure.processors.archive_rules import (
    ArchiveCounter,
    ArchiveRefused,
    Broken,
    LeadsOutside,
    LimitExceeded,
    Reader,
)
from infrastructure.processors.archive_streams import DecompressedStream, format_of
from infrastructure.processors.archive_tar import BLOCK_SIZE, inspect_tar, is_header
from infrastructure.processors.archive_zip import inspect_zip
from infrastructure.processors.decoder_server import Answer, Order

ZIP = (b"PK\3\4", b"PK\5\6")
LOCKED = (b"7z\xbc\xaf", b"Rar!")  # archives that are counted and cannot be opened here
MAX_HELD_SHARE = 1 / 8  # of the memory, for a zip inside: it is not read in order

# What a zip begins with that people take for one document or program, not for an archive: OOXML,
# ODF and EPUB, Java, Android, XPS, 3MF, iWork, KMZ.
_DOCUMENTS = (
    *(b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"xl/", b"ppt/", b"mimetype"),
    *(b"META-INF/", b"AndroidManifest.xml", b"customXml/", b"FixedDoc", b"3D/", b"Index/"),
    b"doc.kml",
)


class _Joined:
    """Reader of bytes that were read already, then of the rest."""

    def __init__(self, head: bytes, rest: Reader) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int = -1, /) -> bytes:
        if not self._head:
            return self._rest.read(size)
        found = self._head if size < 0 else self._head[:size]
        self._head = self._head[len(found) :]
        wanted = -1 if size < 0 else size - len(found)
        return found + self._rest.read(wanted) if wanted else found


def prepare() -> None:
    """Load the codecs of names, which a child could not: it can open nothing."""
    for name in ("ascii", "cp437", "latin-1", "utf-8"):
        codecs.lookup(name)


def inspect(source: IO[bytes], order: Order) -> Answer:
    """Return what was counted, or what is wrong with the archive."""
    counter = ArchiveCounter(order)
    try:
        if order["kind"] == "zip":
            inspect_zip(source, order["packed"], counter, look_inside)
        elif (stream := _tar_stream(source, order, counter)) is not None:
            inspect_tar(stream, counter, look_inside)
        else:
            return {"skipped": "it is compressed, and no archive"}
        counter.end()
    except ArchiveRefused as error:
        return {"refused": str(error)}
    except Broken as error:
        return {"broken": str(error)}
    return {"found": counter.found}


def look_inside(content: Reader, head: bytes, counter: ArchiveCounter) -> None:
    """Count what an archive inside of the archive unpacks to, however broken it is.

    Raises LimitExceeded.
    """
    try:
        _look_inside(content, head, counter)
    except LimitExceeded:
        raise
    except (ArchiveRefused, Broken):
        return


def _look_inside(content: Reader, head: bytes, counter: ArchiveCounter) -> None:
    whole = _Joined(head, content)
    if head.startswith(ZIP):
        if not head[30:].startswith(_DOCUMENTS):
            counter.nested()
        most = int(counter.limits["memory"] * MAX_HELD_SHARE)
        held = whole.read(most)
        if len(held) < most:
            inspect_zip(BytesIO(held), len(held), counter.inside(), look_inside)
    elif is_header(head):
        counter.nested()
        inspect_tar(whole, counter.inside(), look_inside)
    elif (magic := format_of(head)) is not None:
        inner = counter.inside()
        stream = DecompressedStream(whole, magic, inner, names=False)
        block = stream.read(BLOCK_SIZE)
        if is_header(block):
            counter.nested()
            inspect_tar(_Joined(block, stream), inner, look_inside)
    elif head.startswith(LOCKED):
        counter.nested()


def _tar_stream(source: IO[bytes], order: Order, counter: ArchiveCounter) -> Reader | None:
    """The bytes of the tar; None where the file may be no tar, and is none."""
    magic = format_of(source.read(BLOCK_SIZE))
    source.seek(0)
    if magic is None:
        return source
    stream = DecompressedStream(source, magic, counter)
    try:
        block = stream.read(BLOCK_SIZE)
    except (ArchiveRefused, Broken) as error:
        if order["unsure"] and not isinstance(error, LeadsOutside):
            return None
        raise
    if order["unsure"] and not is_header(block):
        return None
    return _Joined(block, stream)
