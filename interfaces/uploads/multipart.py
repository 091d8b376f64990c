"""A request's body to be read by those who take it apart: so many bytes, a line, up to a mark."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web

from interfaces.common.body import Body
from interfaces.common.problems import Problem

Source = Callable[[], AsyncIterator[bytes]]


class Malformed(Problem):
    """A body that is not what its media type says; what was read before it stays taken."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, "malformed_body", detail)


class ByteStream:
    """Bytes of a body in order. Memory: the chunk at hand and a line or mark that it cuts."""

    def __init__(self, source: Source, *, ahead: bytes = b"") -> None:
        self._source = source
        self._chunks = source()
        self._buffer = ahead
        self._at = 0

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes: few, they are held in memory. Raises Malformed, Ended."""
        while len(self._buffer) - self._at < size:
            await self._more()
        return self._taken(self._at + size)

    async def some(self, most: int) -> bytes:
        """At least one of the next bytes, at most `most`. Raises Malformed, Ended."""
        if self._at == len(self._buffer):
            await self._more()
        return self._taken(min(len(self._buffer), self._at + most))

    async def line(self, most: int) -> bytes:
        """The next line without its CRLF. Raises Malformed, also for a longer one, Ended."""
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > most:
                break
            await self._more()
        if end < 0 or end - self._at > most:
            raise Malformed(f"a line must be at most {most} bytes")
        line = self._taken(end)
        self._at += 2
        return line

    async def before(self, mark: bytes) -> bytes:
        """Some of the bytes before the mark; none at the mark, which is then behind us.

        Raises Malformed where the body ends without it, Ended.
        """
        while True:
            found = self._buffer.find(mark, self._at)
            if found == self._at:
                self._at += len(mark)
                return b""
            # The end of what is here may be the beginning of the mark.
            end = found if found > 0 else len(self._buffer) - len(mark) + 1
            if end > self._at:
                return self._taken(end)
            await self._more()

    async def rest(self) -> AsyncIterator[bytes]:
        """All that is left of the body. Raises Ended."""
        if self._at < len(self._buffer):
            yield self._taken(len(self._buffer))
        while chunk := await self._next():
            yield chunk

    def _taken(self, end: int) -> bytes:
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    async def _more(self) -> None:
        chunk = await self._next()
        if not chunk:
            raise Malformed("the body ends too soon")
        self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
        self._at = 0

    async def _next(self) -> bytes:
        """The next chunk, none at the end. Raises Ended."""
        try:
            return await anext(self._chunks, b"")
        except asyncio.CancelledError:
            # Whoever waited for one file was called off: the body goes on for the next one.
            self._chunks = self._source()
            raise


def stream_of(request: web.Request, *, ahead: bytes = b"") -> ByteStream:
    """The body of a request."""
    return ByteStream(lambda: Body(request), ahead=ahead)


# A multipart/form-data body as it streams by: one part after the other.
#
# Source of the rules: RFC 7578, RFC 2046 section 5.1, and the encoding of names in the HTML
# standard.

MEDIA_TYPE = "multipart/form-data"
MAX_HEADERS = 16  # of one part
MAX_HEADER = 8 * 1024  # bytes
MAX_PADDING = 256  # bytes of blanks behind a boundary
MAX_EPILOGUE = 64 * 1024  # bytes that nobody reads

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(
    r"""\s*;\s*(?:([\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*)?"""
)
_EXTENDED = re.compile(r"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE)  # RFC 8187 section 3.2
_ENCODED = re.compile(r"(?:[A-Za-z0-9_.~-]|%[0-9A-Fa-f]{2})*")
_PLAIN = frozenset({"7bit", "8bit", "binary"})


class Part(msgspec.Struct, frozen=True):
    """A field, or a file where there is a `filename`: as its sender names it.

    `media_type` is empty where none is given.
    """

    name: str
    filename: str | None
    media_type: str


class FormReader:
    """The parts of a form in their order. Raises Malformed, and Ended of the stream.

    The stream must begin with CRLF, which in front of the first boundary is not sent.
    """

    def __init__(self, stream: ByteStream, boundary: str, *, percent_encoded: bool = False) -> None:
        """Read the parts of `stream`; with `percent_encoded`, every file name is decoded."""
        self._stream = stream
        self._percent_encoded = percent_encoded
        self._mark = b"\r\n--" + boundary.encode()
        self._within = True  # at first: within whatever stands in front of the first boundary

    async def next(self) -> Part | None:
        """The next part; None behind the last. What is left of the one before is skipped."""
        async for _ in self.chunks():
            pass
        behind = await self._stream.exactly(2)
        if behind == b"--":
            await self._skip_epilogue()
            return None
        if behind != b"\r\n" and (behind + await self._stream.line(MAX_PADDING)).strip(b" \t"):
            raise Malformed("a boundary has something behind it")
        self._within = True
        return _part(await self._headers(), percent_encoded=self._percent_encoded)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the part at hand."""
        while self._within:
            chunk = await self._stream.before(self._mark)
            self._within = bool(chunk)
            if chunk:
                yield chunk

    async def text(self, most: int) -> str:
        """The part at hand as text. Raises Malformed for more bytes than `most`, or no UTF-8."""
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
        while line := await self._stream.line(MAX_HEADER):
            name, colon, value = line.partition(b":")
            lines += 1
            if not colon or lines > MAX_HEADERS:
                raise Malformed("the headers of a part cannot be read")
            known = name.decode("latin-1").lower()
            text = value.strip().decode("utf-8", "surrogateescape")
            if headers.setdefault(known, text) != text:
                raise Malformed(f"a part has the header {known} twice, each time otherwise")
        return headers

    async def _skip_epilogue(self) -> None:
        skipped = 0
        async for chunk in self._stream.rest():
            skipped += len(chunk)
            if skipped > MAX_EPILOGUE:
                raise Malformed("there is more behind the end of the form")


def boundary_of(request: web.Request) -> str:
    """What stands between the parts. Raises a 400 Problem."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    _, semicolon, rest = content_type.partition(";")
    boundary = (header_parameters(semicolon + rest) or {}).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem(400, "malformed_body", "Content-Type must name the boundary of the parts")
    return boundary


def _part(headers: dict[str, str], *, percent_encoded: bool) -> Part:
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
    return Part(_unescaped(parameters["name"]), filename, media_type)


def names_are_percent_encoded(request: web.Request) -> bool:
    """Whether the client percent-encodes all of a file's name, without a mark on the name itself.

    aiohttp's does (`quote_fields`, on by default): "My Photo.jpg" comes as "My%20Photo.jpg".
    """
    return "aiohttp/" in request.headers.get(hdrs.USER_AGENT, "")


def file_name(parameters: Mapping[str, str], *, percent_encoded: bool = False) -> str | None:
    """The name of a file in Content-Disposition; None where there is none.

    `filename*` goes before `filename`, as RFC 6266 section 4.3 has it. Bytes that are not text in
    the charset stay as surrogates, for the name to be refused.
    """
    extended = _EXTENDED.fullmatch(parameters.get("filename*", ""))
    filename = parameters.get("filename")
    if extended is not None and (extended[2] or filename is None):
        return unquote(extended[2], encoding=extended[1], errors="surrogateescape")
    if filename is None and "filename*" in parameters:
        return parameters["filename*"]  # not as RFC 8187 has it: whole, if it is a name at all
    if filename is None:
        return None
    if percent_encoded and _ENCODED.fullmatch(filename):
        return unquote(filename, errors="surrogateescape")
    return _unescaped(filename)


UNREADABLE_PARAMETERS = (
    "Content-Disposition cannot be read: put a name with blanks in quotes, and escape quotes in it"
)


def header_parameters(text: str) -> dict[str, str] | None:
    """Parameters of a header; None where some of it is none, or two alike differ.

    Reading on behind what is not understood would make another name of a file's.
    """
    found: dict[str, str] = {}
    place = 0
    while match := _PARAMETER.match(text, place):
        place = match.end()
        if match[1] is None:  # ";" alone
            continue
        value = match[3] or re.sub(r'\\(["\\])', r"\1", match[2] or "")
        if found.setdefault(match[1].lower(), value) != value:
            return None
    return found if not text[place:].strip() else None


def _unescaped(name: str) -> str:
    """What browsers, curl, requests and httpx escape in a name, and nothing else.

    Source: https://html.spec.whatwg.org, multipart/form-data encoding algorithm.
    """
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
