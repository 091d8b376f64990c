"""How rows and frames look on the wire; the subprotocol chooses.

A row is encoded once, however many clients receive it; a frame is its head and its rows, joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from aiohttp import WSMsgType

from application.views import AttemptView, BatchView, UploadView
from interfaces.feed.messages import ClientMessage, Head
from interfaces.rest.answers import public

Said = TypeVar("Said")
Decode = Callable[[Said], ClientMessage]
Row = BatchView | UploadView | AttemptView

KINDS = ("batches", "uploads", "attempts")

FIXMAP, FIXARRAY, ARRAY32 = 0x80, 0x90, 0xDD  # of MessagePack


class Encoding(Protocol):
    """One way to write frames down, and to read what a client says."""

    @property
    def subprotocol(self) -> str:
        """Its name in Sec-WebSocket-Protocol."""

    @property
    def kind(self) -> WSMsgType:
        """The kind of WebSocket message it travels in."""

    def decode(self, said: bytes | str) -> ClientMessage:
        """What a client said. Raises msgspec.DecodeError, UnicodeError, RecursionError."""

    def row(self, row: Row) -> bytes:
        """One row."""

    def plain(self, frame: msgspec.Struct) -> bytes:
        """A frame without rows."""

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        """The encoded rows of each of KINDS, ready to follow a head."""

    def frame(self, head: Head, rows: bytes) -> bytes:
        """A frame of a head and what `rows` made."""


class Json:
    """`uptrail.v1.json`: text messages."""

    subprotocol = "uptrail.v1.json"
    kind = WSMsgType.TEXT

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decode: Decode[bytes | str] = msgspec.json.Decoder(ClientMessage).decode

    def decode(self, said: bytes | str) -> ClientMessage:
        return self._decode(said)

    def row(self, row: Row) -> bytes:
        return self._encode(as_seen(row))

    def plain(self, frame: msgspec.Struct) -> bytes:
        return self._encode(frame)

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        pairs = zip(KINDS, lists, strict=True)
        return b",".join(b'"%b":[%b]' % (kind.encode(), b",".join(rows)) for kind, rows in pairs)

    def frame(self, head: Head, rows: bytes) -> bytes:
        return b"%b,%b}" % (self._encode(head)[:-1], rows)


class MessagePack:
    """`uptrail.v1.msgpack`: binary messages with the very values of JSON, times as text too.

    So a client that decoded a frame need not care how it came. Source of the format:
    https://github.com/msgpack/msgpack/blob/master/spec.md.
    """

    subprotocol = "uptrail.v1.msgpack"
    kind = WSMsgType.BINARY

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Decode[bytes] = msgspec.msgpack.Decoder(ClientMessage).decode
        self._keys = tuple(map(self._encode, KINDS))

    def decode(self, said: bytes | str) -> ClientMessage:
        if isinstance(said, str):
            raise msgspec.DecodeError("a text message is not MessagePack")
        return self._decode(said)

    def row(self, row: Row) -> bytes:
        return self._encode(msgspec.to_builtins(as_seen(row)))

    def plain(self, frame: msgspec.Struct) -> bytes:
        return self._encode(msgspec.to_builtins(frame))

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        pairs = zip(self._keys, lists, strict=True)
        return b"".join(b"".join((key, _array_of(len(rows)), *rows)) for key, rows in pairs)

    def frame(self, head: Head, rows: bytes) -> bytes:
        encoded = self._encode(head)
        assert encoded[0] & 0xF0 == FIXMAP, "a head has fewer than sixteen fields"
        return b"%c%b%b" % (encoded[0] + len(KINDS), encoded[1:], rows)


JSON = Json()
ENCODINGS: dict[str, Encoding] = {
    encoding.subprotocol: encoding for encoding in (JSON, MessagePack())
}


def as_seen(row: Row) -> msgspec.Struct:
    """The row as clients may see it."""
    return public(row) if isinstance(row, UploadView) else row


def _array_of(length: int) -> bytes:
    """The head of a MessagePack array."""
    if length < 16:
        return bytes((FIXARRAY + length,))
    return bytes((ARRAY32,)) + length.to_bytes(4)
