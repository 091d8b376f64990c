"""Tar bundles: one request with many files of a batch, and the streaming reader of the archive.

Source of the format: IEEE Std 1003.1 (pax), and the GNU tar manual on its long names. Nothing is
unpacked to a file system: a member is a name, a size and bytes. Only plain files are accepted.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import AsyncIterator
from enum import Enum

import msgspec
from aiohttp import web

from application.handlers.uploads import FileResult
from application.transfers.multi_file import MultiFileReceiver
from domain.file import FileDeclaration
from interfaces.common.access import load_batch, require
from interfaces.common.api_types import ReceivedFilesResponse
from interfaces.common.operations import UPLOAD_SCOPES
from interfaces.common.requests import Query, path_id, reject_content_encoding
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.uploads.multipart import ByteStream, Malformed, body_stream
from interfaces.uploads.setup import limit_files, multi_file_receiver

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION_BYTES = 64 * 1024  # of a pax header or a long name
MAX_EXTENSIONS = 16  # in front of one member
END = bytes(BLOCK)

_TYPES_WITHOUT_DATA = frozenset(
    {
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
    }
)
_POSIX = b"ustar\0"
_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")


class Kind(Enum):
    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"


class Member(msgspec.Struct, frozen=True):
    """One member: `name` is its path in the archive, `size` the number of its bytes."""

    name: str
    size: int
    kind: Kind


class _Header(msgspec.Struct, frozen=True):
    name: str
    size: int
    type: bytes


class TarReader:
    """Reader of the members of an archive, in order. Raises Malformed and TransferAborted."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = 0  # unread bytes of the current member
        self._padding = 0

    async def next(self) -> Member | None:
        """Return the next member, None after the last. Skips the rest of the member before."""
        await self._skip()
        extended: dict[str, str] = {}
        for _ in range(MAX_EXTENSIONS):
            block = await self._stream.read_exactly(BLOCK)
            if block == END:
                await self._require_end()
                return None
            header = _header(block)
            if not await self._read_extended_header(header, extended):
                return self._member(header, extended)
        raise Malformed(f"more than {MAX_EXTENSIONS} extended headers in front of one member")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the current member."""
        while self._left:
            chunk = await self._stream.read_some(self._left)
            self._left -= len(chunk)
            yield chunk

    def _member(self, header: _Header, extended: dict[str, str]) -> Member:
        name = extended.get("path", header.name)
        size = _size(extended["size"]) if "size" in extended else header.size
        kind = Kind.FILE if header.type in _FILES else Kind.OTHER
        if header.type == tarfile.DIRTYPE or (kind is Kind.FILE and name.endswith("/")):
            kind = Kind.FOLDER
        if any(key.startswith("GNU.sparse.") for key in extended):
            kind = Kind.OTHER
        if header.type in _TYPES_WITHOUT_DATA:
            size = 0
        self._begin_content(size)
        # `tar -C folder .` puts `./` in front of every name.
        return Member(name.removeprefix("./"), size, kind)

    async def _read_extended_header(self, header: _Header, extended: dict[str, str]) -> bool:
        """Return whether it is an extended header; if so, put its fields in `extended`."""
        match header.type:
            case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                extended.update(_pax(await self._read_extension(header)))
            case tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text((await self._read_extension(header)).rstrip(b"\0"))
            case tarfile.GNUTYPE_LONGLINK | tarfile.XGLTYPE:
                await self._read_extension(header)  # of links, or global: not needed
            case _:
                return False
        return True

    async def _read_extension(self, header: _Header) -> bytes:
        if header.size > MAX_EXTENSION_BYTES:
            raise Malformed(f"an extended header must be at most {MAX_EXTENSION_BYTES} bytes")
        self._begin_content(header.size)
        content = await self._stream.read_exactly(header.size)
        self._left = 0
        await self._skip()
        return content

    def _begin_content(self, size: int) -> None:
        if size < 0:
            raise Malformed("a member has a negative size")
        self._left, self._padding = size, -size % BLOCK

    async def _skip(self) -> None:
        async for _ in self.chunks():
            pass
        await self._stream.read_exactly(self._padding)
        self._padding = 0

    async def _require_end(self) -> None:
        """Require that only zeros follow: a second archive must not be dropped silently."""
        async for chunk in self._stream.read_rest():
            if chunk.count(0) != len(chunk):
                raise Malformed("there is more after the end of the archive")


def _header(block: bytes) -> _Header:
    """Parse the fields of a header block that are needed; `tarfile` parses all, more slowly."""
    # The sum of all bytes, with blanks in place of the checksum field.
    if sum(block) - sum(block[148:156]) + 8 * 0x20 != _number(block[148:156]):
        raise Malformed("this is no tar archive: a header has a wrong checksum")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == _POSIX else b""
    return _Header(
        _text(prefix + b"/" + name if prefix else name),
        _number(block[124:136]),
        block[156:157],
    )


def _number(field: bytes) -> int:
    """Parse a number in octal digits, or in GNU tar's binary format for large numbers."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise Malformed("this is no tar archive: a header holds no number") from None


def _pax(content: bytes) -> dict[str, str]:
    """Parse the records of a pax header: `length key=value\\n`, where length counts all of it."""
    records, at = {}, 0
    while at < len(content):
        length = _PAX_LENGTH.match(content, at)
        end = at + int(length[1]) if length else 0
        key, equals, value = content[length.end() if length else at : end - 1].partition(b"=")
        if not at < end <= len(content) or content[end - 1] != 0x0A or not equals:
            raise Malformed("an extended header cannot be read")
        records[_text(key)] = _text(value)
        at = end
    return records


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Malformed("a member has no sound size")
    return int(text)


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")


TYPES = frozenset({"application/x-tar", "application/tar"})


def is_bundle(request: web.Request) -> bool:
    return request.content_type in TYPES


async def receive_tar(request: web.Request) -> web.Response:
    """Receive the files of a tar bundle, each accepted or rejected by itself.

    The response is sent once all accepted files are durable and recorded.
    """
    principal = require(request, *UPLOAD_SCOPES)
    Query(request, ())
    reject_content_encoding(request)
    batch = (await load_batch(request, path_id(request))).id
    stream = body_stream(request)
    reader = TarReader(stream)
    async with multi_file_receiver(request, batch, principal) as receiver:
        while (member := await reader.next()) is not None:
            if member.kind is not Kind.FOLDER:
                limit_files(request, receiver)
                await _receive_member(receiver, member, reader)
        files = await receiver.close()
    return await _tar_response(request, files, receiver.position)


async def _tar_response(
    request: web.Request, files: tuple[FileResult, ...], position: int
) -> web.Response:
    position = position or await request.app[SERVICES].log.head()
    return json_response(tar_result(files, position), position=position)


def tar_result(files: tuple[FileResult, ...], position: int) -> ReceivedFilesResponse:
    statuses = [file.status for file in files]
    return ReceivedFilesResponse(
        files=files,
        received=statuses.count("received"),
        known=statuses.count("known"),
        rejected=statuses.count("rejected"),
        position=position,
    )


async def _receive_member(receiver: MultiFileReceiver, member: Member, reader: TarReader) -> None:
    file = FileDeclaration(path=member.name, size=member.size)
    if member.kind is Kind.FILE:
        await receiver.add_file(file, reader.chunks())
    else:
        await receiver.reject(file, "not_a_file", "only plain files are taken")
