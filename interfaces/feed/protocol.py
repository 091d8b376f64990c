"""How rows and frames look on the wire; the subprotocol chooses.

A row is encoded once, however many clients receive it; a frame is its head and its rows, joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Literal, Protocol, TypeAlias, TypeVar

import msgspec
from aiohttp import WSMsgType

from application.views import AttemptView, BatchView, UploadView
from interfaces.common.api_types import public_view

# What travels on the feed: the client's messages, the server's frames, and how a socket ends.


class Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Something a client says."""


class Authenticate(Message, frozen=True, tag="authenticate"):
    """An API key: who speaks, where the request could not say so, or the key to go on with."""

    token: str


class Subscribe(Message, frozen=True, tag="subscribe"):
    """What to follow from now on, in place of what was followed before.

    `batches` names batches to follow with their uploads and attempts; `*` follows the batch rows
    of all. `after` is the cursor of the last frame applied for this very list.

    With `min_position` no rows come before they reflect that position, or with `latest` whatever
    was recorded before the server read this message; after a few seconds that is an error of the
    code `position_not_reached`, and nothing is followed.
    """

    batches: list[str] | Literal["*"]
    after: str | None = None
    min_position: Annotated[int, msgspec.Meta(ge=0)] | Literal["latest"] | None = None


class Ping(Message, frozen=True, tag="ping"):
    """Asks for a pong."""


class Pong(Message, frozen=True, tag="pong"):
    """Answers a ping; anything a client says shows that it lives."""


ClientMessage: TypeAlias = Authenticate | Subscribe | Ping | Pong


class Frame(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Something the server says."""


class AuthenticateRequest(Frame, frozen=True, tag="authenticate"):
    """Nobody is known yet: say `authenticate` within so many seconds."""

    within: float


class Welcome(Frame, frozen=True, tag="welcome"):
    """Who the server takes the client for, first and after each new key.

    `heartbeat`: never longer silent, in seconds. `expires_at`: when the credential
    ends, if it does.
    """

    principal: str
    owner: str
    heartbeat: float
    expires_at: datetime | None = None


class Expiring(Frame, frozen=True, tag="expiring"):
    """The credential ends soon, in so many seconds; say `authenticate` with another to stay."""

    expires_at: datetime
    within: float


class Heartbeat(Frame, frozen=True, tag="ping"):
    """The connection lives."""


class PongFrame(Frame, frozen=True, tag="pong"):
    """Answers a client's ping."""


class Reset(Frame, frozen=True, tag="reset"):
    """The cursor cannot be resumed: forget everything, a snapshot follows.

    `reason` is `unreadable`, `ahead` (of the log) or `rebuilt` (the read model was).
    """

    reason: str


class Error(Frame, frozen=True, tag="error"):
    """Something that was said cannot be done; the rest goes on. `batch` is the one it concerns."""

    code: str
    message: str
    batch: str | None = None


class SnapshotHead(Frame, frozen=True, tag="snapshot"):
    """Rows as they are follow; part 1 replaces everything the client has.

    `cursor` is None until the part that has no `more` after it.
    """

    part: int
    position: int
    more: bool
    cursor: str | None


class ChangesHead(Frame, frozen=True, tag="changes"):
    """Rows that changed beyond `from`, up to `to`, follow: applied iff `from` <= position < `to`.

    With `more`, the next frame follows at once, and `cursor` stays that of the last whole frame.
    """

    after: int = msgspec.field(name="from")
    to: int
    more: bool
    cursor: str | None


Head: TypeAlias = SnapshotHead | ChangesHead


class StreamEnd(Frame, frozen=True, tag="ended"):
    """The last frame of an event stream, which has no close codes: why it ends.

    `again`: whether to connect again.
    """

    code: int
    reason: str
    again: bool


class CloseCode(IntEnum):
    """Why a socket ends. 4000 to 4099: connect again. 4500 to 4599: that would not help."""

    RESTARTING = 4000
    TOO_SLOW = 4001
    SILENT = 4002
    FAILED = 4003
    UNAUTHENTICATED = 4500
    SIGNED_OUT = 4501
    MISUSED = 4502
    TOO_MANY_SOCKETS = 4503

    @property
    def again(self) -> bool:
        """Whether connecting again would help."""
        return self < 4500


class ConnectionClosed(Exception):
    """The socket is to be closed with this code."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


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
        return self._encode(public_row(row))

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
        return self._encode(msgspec.to_builtins(public_row(row)))

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


def public_row(row: Row) -> msgspec.Struct:
    """The row as clients may see it."""
    return public_view(row) if isinstance(row, UploadView) else row


def _array_of(length: int) -> bytes:
    """The head of a MessagePack array."""
    if length < 16:
        return bytes((FIXARRAY + length,))
    return bytes((ARRAY32,)) + length.to_bytes(4)
