"""A tar archive as it streams by: one member after the other, each with its bytes.

Source of the format: IEEE Std 1003.1 (pax), and the GNU tar manual on its long names. Nothing
is ever unpacked: a member is a name, a size and bytes, and what is no plain file has no bytes.
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
from interfaces.common.body import reject_content_encoding
from interfaces.common.requests import Query, path_id
from interfaces.common.responses import json_response
from interfaces.common.routing import UPLOAD_SCOPES
from interfaces.common.services import SERVICES
from interfaces.uploads.multipart import ByteStream, Malformed, stream_of
from interfaces.uploads.setup import limit_files, multi_file_receiver

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION = 64 * 1024  # bytes of a pax header or a long name
MAX_EXTENSIONS = 16  # in front of one member
END = bytes(BLOCK)

_DATALESS = frozenset(
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
    """One member: `name` is its path in the archive, `size` its bytes that follow."""

    name: str
    size: int
    kind: Kind


class _Header(msgspec.Struct, frozen=True):
    name: str
    size: int
    type: bytes


class TarReader:
    """The members of an archive in their order. Raises Malformed, and Ended of the stream."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = 0  # bytes of the member at hand that nobody has read
        self._padding = 0

    async def next(self) -> Member | None:
        """The next member; None after the last one. What is left of the one before is skipped."""
        await self._skip()
        extended: dict[str, str] = {}
        for _ in range(MAX_EXTENSIONS):
            block = await self._stream.exactly(BLOCK)
            if block == END:
                await self._require_end()
                return None
            header = _header(block)
            if not await self._extends(header, extended):
                return self._member(header, extended)
        raise Malformed(f"more than {MAX_EXTENSIONS} extended headers in front of one member")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the member at hand."""
        while self._left:
            chunk = await self._stream.some(self._left)
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
        if header.type in _DATALESS:
            size = 0
        self._expect(size)
        # `tar -C folder .` names everything from there.
        return Member(name.removeprefix("./"), size, kind)

    async def _extends(self, header: _Header, extended: dict[str, str]) -> bool:
        """Whether the header speaks of the next member; what it says goes into `extended`."""
        match header.type:
            case tarfile.XHDTYPE | tarfile.SOLARIS_XHDTYPE:
                extended.update(_pax(await self._content(header)))
            case tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text((await self._content(header)).rstrip(b"\0"))
            case tarfile.GNUTYPE_LONGLINK | tarfile.XGLTYPE:
                await self._content(header)  # of links, and of all members: nothing we keep
            case _:
                return False
        return True

    async def _content(self, header: _Header) -> bytes:
        if header.size > MAX_EXTENSION:
            raise Malformed(f"an extended header must be at most {MAX_EXTENSION} bytes")
        self._expect(header.size)
        content = await self._stream.exactly(header.size)
        self._left = 0
        await self._skip()
        return content

    def _expect(self, size: int) -> None:
        if size < 0:
            raise Malformed("a member has a negative size")
        self._left, self._padding = size, -size % BLOCK

    async def _skip(self) -> None:
        async for _ in self.chunks():
            pass
        await self._stream.exactly(self._padding)
        self._padding = 0

    async def _require_end(self) -> None:
        """Zeros only: a second archive behind the first one must not be lost in silence."""
        async for chunk in self._stream.rest():
            if chunk.count(0) != len(chunk):
                raise Malformed("there is more after the end of the archive")


def _header(block: bytes) -> _Header:
    """The fields of a header block that we need; `tarfile` reads them all, and takes its time."""
    # The sum of all bytes, those of the sum itself taken for blanks.
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
    """Octal digits; or, as GNU tar writes large ones, the bytes of the number after a mark."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise Malformed("this is no tar archive: a header holds no number") from None


def _pax(content: bytes) -> dict[str, str]:
    """The records of a pax header: `length key=value\\n`, the length being that of it all."""
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


# A bundle: one request with many files of one batch in it, as a tar archive.

TYPES = frozenset({"application/x-tar", "application/tar"})


def is_bundle(request: web.Request) -> bool:
    return request.content_type in TYPES


async def receive_tar(request: web.Request) -> web.Response:
    """Each member is judged by itself; none is answered before it is durable and on record."""
    principal = require(request, *UPLOAD_SCOPES)
    Query(request, ())
    reject_content_encoding(request)
    batch = (await load_batch(request, path_id(request))).id
    stream = stream_of(request)
    reader = TarReader(stream)
    async with multi_file_receiver(request, batch, principal) as receiver:
        while (member := await reader.next()) is not None:
            if member.kind is not Kind.FOLDER:
                limit_files(request, receiver)
                await _take(receiver, member, reader)
        files = await receiver.close()
    return await answer(request, files, receiver.position)


async def answer(
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


async def _take(receiver: MultiFileReceiver, member: Member, reader: TarReader) -> None:
    file = FileDeclaration(path=member.name, size=member.size)
    if member.kind is Kind.FILE:
        await receiver.add_file(file, reader.chunks())
    else:
        await receiver.reject(file, "not_a_file", "only plain files are taken")
