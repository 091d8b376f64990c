"""Streaming parser of multipart/form-data, and the buffered stream of a body that it reads.

Source of the rules: RFC 7578, RFC 2046 section 5.1, and the encoding of names in the HTML
standard.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web

from interfaces.common.problems import Problem
from interfaces.common.requests import Body

Source = Callable[[], AsyncIterator[bytes]]


class Malformed(Problem):
    """Raised for a body that does not match its media type; files received before it are kept."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, "malformed_body", detail)


class ByteStream:
    """Buffered reader of a body; holds one chunk, and a line or separator that crosses chunks."""

    def __init__(self, source: Source, *, ahead: bytes = b"") -> None:
        self._source = source
        self._chunks = source()
        self._buffer = ahead
        self._at = 0

    async def read_exactly(self, size: int) -> bytes:
        """Read exactly `size` bytes into memory. Raises Malformed, TransferAborted."""
        while len(self._buffer) - self._at < size:
            await self._fill()
        return self._consume(self._at + size)

    async def read_some(self, most: int) -> bytes:
        """Read from 1 to `most` bytes. Raises Malformed, TransferAborted."""
        if self._at == len(self._buffer):
            await self._fill()
        return self._consume(min(len(self._buffer), self._at + most))

    async def read_line(self, most: int) -> bytes:
        """Read a line of at most `most` bytes, without its CRLF.

        Raises Malformed, also for a longer line, and TransferAborted.
        """
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > most:
                break
            await self._fill()
        if end < 0 or end - self._at > most:
            raise Malformed(f"a line must be at most {most} bytes")
        line = self._consume(end)
        self._at += 2
        return line

    async def read_until(self, separator: bytes) -> bytes:
        """Read some of the bytes before the separator; at the separator, skip it and return none.

        Raises Malformed if the body ends without it, and TransferAborted.
        """
        while True:
            found = self._buffer.find(separator, self._at)
            if found == self._at:
                self._at += len(separator)
                return b""
            # The end of the buffer may be the beginning of the separator.
            end = found if found > 0 else len(self._buffer) - len(separator) + 1
            if end > self._at:
                return self._consume(end)
            await self._fill()

    async def read_rest(self) -> AsyncIterator[bytes]:
        """Yield the rest of the body. Raises TransferAborted."""
        if self._at < len(self._buffer):
            yield self._consume(len(self._buffer))
        while chunk := await self._next_chunk():
            yield chunk

    def _consume(self, end: int) -> bytes:
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    async def _fill(self) -> None:
        chunk = await self._next_chunk()
        if not chunk:
            raise Malformed("the body ends too soon")
        self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
        self._at = 0

    async def _next_chunk(self) -> bytes:
        """Return the next chunk, empty at the end. Raises TransferAborted."""
        try:
            return await anext(self._chunks, b"")
        except asyncio.CancelledError:
            # The transfer of one file was cancelled: the body goes on with the next file.
            self._chunks = self._source()
            raise


def body_stream(request: web.Request, *, ahead: bytes = b"") -> ByteStream:
    """Return a reader of the request's body, with the bytes `ahead` in front of it."""
    return ByteStream(lambda: Body(request), ahead=ahead)


MEDIA_TYPE = "multipart/form-data"
MAX_PART_HEADERS = 16
MAX_HEADER_BYTES = 8 * 1024
MAX_PADDING_BYTES = 256  # blanks behind a boundary
MAX_EPILOGUE_BYTES = 64 * 1024  # skipped behind the last boundary

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(
    r"""\s*;\s*(?:([\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*)?"""
)
_EXTENDED = re.compile(r"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE)  # RFC 8187 section 3.2
_ENCODED = re.compile(r"(?:[A-Za-z0-9_.~-]|%[0-9A-Fa-f]{2})*")
_PLAIN = frozenset({"7bit", "8bit", "binary"})


class FormPart(msgspec.Struct, frozen=True):
    """A form field, or a file if it has a `filename`. `media_type` is empty if not given."""

    name: str
    filename: str | None
    media_type: str


class FormReader:
    """Reader of the parts of a form, in order. Raises Malformed and TransferAborted.

    The stream must begin with CRLF, which clients omit in front of the first boundary.
    """

    def __init__(self, stream: ByteStream, boundary: str, *, percent_encoded: bool = False) -> None:
        """Read the parts of `stream`; with `percent_encoded`, every file name is decoded."""
        self._stream = stream
        self._percent_encoded = percent_encoded
        self._delimiter = b"\r\n--" + boundary.encode()
        self._in_part = True  # at first: in the preamble before the first boundary

    async def next(self) -> FormPart | None:
        """Return the next part, None after the last. Skips the rest of the part before."""
        async for _ in self.chunks():
            pass
        ending = await self._stream.read_exactly(2)
        if ending == b"--":
            await self._skip_epilogue()
            return None
        if ending != b"\r\n":
            padding = ending + await self._stream.read_line(MAX_PADDING_BYTES)
            if padding.strip(b" \t"):
                raise Malformed("a boundary has something behind it")
        self._in_part = True
        return _part(await self._headers(), percent_encoded=self._percent_encoded)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the current part."""
        while self._in_part:
            chunk = await self._stream.read_until(self._delimiter)
            self._in_part = bool(chunk)
            if chunk:
                yield chunk

    async def text(self, most: int) -> str:
        """Read the current part as text. Raises Malformed beyond `most` bytes, or if not UTF-8."""
        content = bytearray()
        async for chunk in self.chunks():
            content += chunk
            if len(content) > most:
                raise Malformed(f"a field must be at most {most} bytes")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise Malformed("a field is no UTF-8 text") from None

    async def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        lines = 0
        while line := await self._stream.read_line(MAX_HEADER_BYTES):
            name, colon, value = line.partition(b":")
            lines += 1
            if not colon or lines > MAX_PART_HEADERS:
                raise Malformed("the headers of a part cannot be read")
            known = name.decode("latin-1").lower()
            text = value.strip().decode("utf-8", "surrogateescape")
            if headers.setdefault(known, text) != text:
                raise Malformed(f"a part has the header {known} twice, each time otherwise")
        return headers

    async def _skip_epilogue(self) -> None:
        skipped = 0
        async for chunk in self._stream.read_rest():
            skipped += len(chunk)
            if skipped > MAX_EPILOGUE_BYTES:
                raise Malformed("there is more behind the end of the form")


def boundary_of(request: web.Request) -> str:
    """Return the boundary between the parts, from Content-Type. Raises a 400 Problem."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    _, semicolon, rest = content_type.partition(";")
    boundary = (header_parameters(semicolon + rest) or {}).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem(400, "malformed_body", "Content-Type must name the boundary of the parts")
    return boundary


def _part(headers: dict[str, str], *, percent_encoded: bool) -> FormPart:
    kind, semicolon, rest = headers.get("content-disposition", "").partition(";")
    parameters = header_parameters(semicolon + rest)
    if parameters is None:
        raise Malformed(UNREADABLE_PARAMETERS)
    if kind.strip().lower() != "form-data" or "name" not in parameters:
        raise Malformed("a part has no Content-Disposition: form-data with a name")
    coding = headers.get("content-transfer-encoding", "binary").lower()
    if coding not in _PLAIN or headers.get("content-encoding", "identity") != "identity":
        raise Malformed("parts must be sent as they are, without an encoding")
    media_type = headers.get("content-type", "").strip()
    filename = file_name(parameters, percent_encoded=percent_encoded)
    return FormPart(_unescaped(parameters["name"]), filename, media_type)


def names_are_percent_encoded(request: web.Request) -> bool:
    """Return whether the client percent-encodes file names without marking them as encoded.

    aiohttp does (`quote_fields`, on by default): "My Photo.jpg" arrives as "My%20Photo.jpg".
    """
    return "aiohttp/" in request.headers.get(hdrs.USER_AGENT, "")


def file_name(parameters: Mapping[str, str], *, percent_encoded: bool = False) -> str | None:
    """Return the file name of Content-Disposition, None without one.

    `filename*` takes precedence over `filename` (RFC 6266 section 4.3). Bytes that are invalid in
    the charset become surrogates, for which the name is rejected later.
    """
    extended = _EXTENDED.fullmatch(parameters.get("filename*", ""))
    filename = parameters.get("filename")
    if extended is not None and (extended[2] or filename is None):
        return unquote(extended[2], encoding=extended[1], errors="surrogateescape")
    if filename is None and "filename*" in parameters:
        return parameters["filename*"]  # not in the format of RFC 8187: taken as a plain name
    if filename is None:
        return None
    if percent_encoded and _ENCODED.fullmatch(filename):
        return unquote(filename, errors="surrogateescape")
    return _unescaped(filename)


UNREADABLE_PARAMETERS = (
    "Content-Disposition cannot be read: put a name with blanks in quotes, and escape quotes in it"
)


def header_parameters(text: str) -> dict[str, str] | None:
    """Parse the parameters of a header; None if some text is malformed, or two values differ.

    Skipping malformed text could change the name of a file.
    """
    found: dict[str, str] = {}
    at = 0
    while match := _PARAMETER.match(text, at):
        at = match.end()
        if match[1] is None:  # ";" alone
            continue
        value = match[3] or re.sub(r'\\(["\\])', r"\1", match[2] or "")
        if found.setdefault(match[1].lower(), value) != value:
            return None
    return found if not text[at:].strip() else None


def _unescaped(name: str) -> str:
    """Undo the escaping of names by browsers, curl, requests and httpx, and nothing else.

    Source: https://html.spec.whatwg.org, multipart/form-data encoding algorithm.
    """
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
