"""Compressed streams, decompressed to their end with bounded memory: gzip, bzip2, xz, zstd.

Several streams in a row are one, as for the tools of these formats. Zeros may follow (tapes have
them); anything else after the end is refused, because some readers skip what others report.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from infrastructure.processors.archive_rules import (
    CHUNK_BYTES,
    ArchiveCounter,
    ArchiveRefused,
    Broken,
    Reader,
    require_inside,
)

MAX_HEADER_BYTES = 64 * 1024  # bytes of a gzip header, with its name and comment
_EXTRA, _NAME = 4, 8  # flags of a gzip header (RFC 1952)

ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class Decompressor(Protocol):
    """The interface of `bz2.BZ2Decompressor` and its like."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Inflate:
    """zlib with the interface of the other decompressors; -15 is raw deflate, 31 is gzip."""

    def __init__(self, window: int) -> None:
        self._object = zlib.decompressobj(window)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    @property
    def needs_input(self) -> bool:
        return not self.eof and not self._full and not self._object.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        found = self._object.decompress(self._object.unconsumed_tail + data, max_length)
        self._full = len(found) == max_length  # there may be more without more input
        return found


def zstd() -> Callable[[], Decompressor] | None:
    """The decompressor for zstd, which Python has since 3.14."""
    try:
        module: Any = importlib.import_module("compression.zstd")
    except ImportError:
        return None
    found: Callable[[], Decompressor] = module.ZstdDecompressor
    return found


FORMATS: dict[bytes, Callable[[], Decompressor]] = {
    b"\x1f\x8b": lambda: Inflate(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
if _zstd := zstd():
    FORMATS[b"\x28\xb5\x2f\xfd"] = _zstd
"""Decompressors by the bytes that a stream begins with."""


def format_of(head: bytes) -> bytes | None:
    """Return the magic bytes of the compressed format that `head` begins with."""
    return next((magic for magic in FORMATS if head.startswith(magic)), None)


class DecompressedStream:
    """Reader of the decompressed bytes. Raises ArchiveRefused, Broken.

    `name` judges the file name in a gzip header, which 7z takes for the name of what it writes.
    """

    def __init__(
        self, source: Reader, magic: bytes, counter: ArchiveCounter, *, names: bool = True
    ) -> None:
        self._chunks = _chunks(source, magic, names)
        self._counter = counter
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""
        found = bytearray(self._rest)
        while size < 0 or len(found) < size:
            try:
                chunk = next(self._chunks, b"")
            except ERRORS as error:
                raise Broken(str(error) or type(error).__name__) from None
            if not chunk:
                break
            self._counter.stream(len(chunk))
            found += chunk
        if size < 0:
            size = len(found)
        self._rest = bytes(found[size:])
        return bytes(found[:size])


def _chunks(source: Reader, magic: bytes, names: bool) -> Iterator[bytes]:
    data = source.read(CHUNK_BYTES)
    while data.startswith(magic):
        if names and magic == b"\x1f\x8b":
            _judge_name(data)
        decompressor = FORMATS[magic]()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = source.read(CHUNK_BYTES)
                if not data:
                    raise Broken("it is truncated")
            chunk = decompressor.decompress(data, CHUNK_BYTES)
            data = b""
            if chunk:
                yield chunk
        data = decompressor.unused_data
        data += source.read(max(0, CHUNK_BYTES - len(data)))
        if magic == b"\xfd7zXZ\0":  # padding between streams (section 2.2 of its specification)
            data = data.lstrip(b"\0")
    while data:
        if data.strip(b"\0"):
            raise ArchiveRefused("there is data after the end of the compressed stream")
        data = source.read(CHUNK_BYTES)


def _judge_name(head: bytes) -> None:
    if len(head) < 10:
        return
    at, flags = 10, head[3]
    if flags & _EXTRA:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    if flags & _NAME:
        end = head.find(b"\0", at)
        if not at <= end < MAX_HEADER_BYTES:
            raise ArchiveRefused(
                f"the header of a compressed stream is over {MAX_HEADER_BYTES} bytes"
            )
        if name := head[at:end].decode("latin-1"):
            require_inside(name, "the compressed file is named")
