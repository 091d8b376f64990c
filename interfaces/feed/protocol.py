"""Messages, frames and close codes of the feed, and their encodings as JSON and MessagePack.

A row is encoded once for all clients that receive it; a frame is its head and its rows, joined. The
WebSocket's subprotocol chooses the encoding.
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


class Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """A message from a client."""


class Authenticate(Message, frozen=True, tag="authenticate"):
    """Authenticates with an API key: as the first message, or later with a new key."""

    token: str


class Subscribe(Message, frozen=True, tag="subscribe"):
    """Replaces the subscription.

    `batches` are ids of batches to follow with their uploads and attempts; `*` follows the rows of
    all batches, without uploads. `after` is the cursor of the last frame applied for the same list.

    With `min_position`, rows are sent once they reflect that position, or with `latest` all events
    recorded before the server read this message. If that takes more than a few seconds, the
    server sends an error with the code `position_not_reached`, and there is no subscription.
    """

    batches: list[str] | Literal["*"]
    after: str | None = None
    min_position: Annotated[int, msgspec.Meta(ge=0)] | Literal["latest"] | None = None


class Ping(Message, frozen=True, tag="ping"):
    """Asks for a pong."""


class Pong(Message, frozen=True, tag="pong"):
    """Answers a ping; any message from a client keeps the connection alive."""


ClientMessage: TypeAlias = Authenticate | Subscribe | Ping | Pong


class Frame(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """A frame from the server."""


class AuthenticateRequest(Frame, frozen=True, tag="authenticate"):
    """Requests authentication: send `authenticate` within so many seconds."""

    within: float


class Welcome(Frame, frozen=True, tag="welcome"):
    """The authenticated principal, sent first and after each new key.

    `heartbeat`: the longest silence of the server, in seconds. `expires_at`: when the credential
    expires, if it does.
    """

    principal: str
    owner: str
    heartbeat: float
    expires_at: datetime | None = None


class Expiring(Frame, frozen=True, tag="expiring"):
    """The credential expires in so many seconds; send `authenticate` with another to continue."""

    expires_at: datetime
    within: float


class Heartbeat(Frame, frozen=True, tag="ping"):
    """Keep-alive."""


class PongFrame(Frame, frozen=True, tag="pong"):
    """Answers a client's ping."""


class Reset(Frame, frozen=True, tag="reset"):
    """The cursor cannot be resumed: drop all rows, a snapshot follows.

    `reason` is `unreadable`, `ahead` (of the log) or `rebuilt` (of the read model).
    """

    reason: str


class Error(Frame, frozen=True, tag="error"):
    """A message was rejected; the connection continues. `batch` is the batch concerned."""

    code: str
    message: str
    batch: str | None = None


class SnapshotHead(Frame, frozen=True, tag="snapshot"):
    """Current rows follow; part 1 replaces all rows of the client.

    `cursor` is None until the last part, which has no `more`.
    """

    part: int
    position: int
    more: bool
    cursor: str | None


class ChangesHead(Frame, frozen=True, tag="changes"):
    """Rows changed after `from`, up to `to`, follow: apply them iff `from` <= position < `to`.

    With `more`, the next frame follows at once, and `cursor` is that of the last complete frame.
    """

    after: int = msgspec.field(name="from")
    to: int
    more: bool
    cursor: str | None


Head: TypeAlias = SnapshotHead | ChangesHead


class StreamEnd(Frame, frozen=True, tag="ended"):
    """The last frame of an event stream, in place of a close code.

    `again`: whether to reconnect.
    """

    code: int
    reason: str
    again: bool


class CloseCode(IntEnum):
    """Close codes. 4000 to 4099: reconnect. 4500 to 4599: reconnecting does not help."""

    RESTARTING = 4000
    TOO_SLOW = 4001
    SILENT = 4002
    FAILED = 4003
    UNAUTHENTICATED = 4500
    SIGNED_OUT = 4501
    MISUSED = 4502
    TOO_MANY_SOCKETS = 4503

    @property
    def should_reconnect(self) -> bool:
        """Return whether reconnecting can help."""
        return self < 4500


class ConnectionClosed(Exception):
    """Raised to close the connection with this code."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


Data = TypeVar("Data")
Decode = Callable[[Data], ClientMessage]
Row = BatchView | UploadView | AttemptView

ROW_KINDS = ("batches", "uploads", "attempts")

FIXMAP, FIXARRAY, ARRAY32 = 0x80, 0x90, 0xDD  # of MessagePack


class Encoding(Protocol):
    """Encoding of frames and decoding of messages."""

    @property
    def subprotocol(self) -> str:
        """Name in Sec-WebSocket-Protocol."""

    @property
    def kind(self) -> WSMsgType:
        """Type of its WebSocket messages."""

    def decode(self, data: bytes | str) -> ClientMessage:
        """Decode a message. Raises msgspec.DecodeError, UnicodeError, RecursionError."""

    def row(self, row: Row) -> bytes:
        """Encode one row."""

    def control(self, frame: msgspec.Struct) -> bytes:
        """Encode a frame without rows."""

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        """Join the encoded rows of each of ROW_KINDS, to follow a head."""

    def frame(self, head: Head, rows: bytes) -> bytes:
        """Return a frame from its head and the result of `rows`."""


class Json:
    """`uptrail.v1.json`: text messages."""

    subprotocol = "uptrail.v1.json"
    kind = WSMsgType.TEXT

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decode: Decode[bytes | str] = msgspec.json.Decoder(ClientMessage).decode

    def decode(self, data: bytes | str) -> ClientMessage:
        return self._decode(data)

    def row(self, row: Row) -> bytes:
        return self._encode(public_row(row))

    def control(self, frame: msgspec.Struct) -> bytes:
        return self._encode(frame)

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        pairs = zip(ROW_KINDS, lists, strict=True)
        return b",".join(b'"%b":[%b]' % (kind.encode(), b",".join(rows)) for kind, rows in pairs)

    def frame(self, head: Head, rows: bytes) -> bytes:
        return b"%b,%b}" % (self._encode(head)[:-1], rows)


class MessagePack:
    """`uptrail.v1.msgpack`: binary messages with the same values as in JSON, times as text too.

    So decoded frames are the same for both encodings. Source of the format:
    https://github.com/msgpack/msgpack/blob/master/spec.md.
    """

    subprotocol = "uptrail.v1.msgpack"
    kind = WSMsgType.BINARY

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Decode[bytes] = msgspec.msgpack.Decoder(ClientMessage).decode
        self._keys = tuple(map(self._encode, ROW_KINDS))

    def decode(self, data: bytes | str) -> ClientMessage:
        if isinstance(data, str):
            raise msgspec.DecodeError("a text message is not MessagePack")
        return self._decode(data)

    def row(self, row: Row) -> bytes:
        return self._encode(msgspec.to_builtins(public_row(row)))

    def control(self, frame: msgspec.Struct) -> bytes:
        return self._encode(msgspec.to_builtins(frame))

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        pairs = zip(self._keys, lists, strict=True)
        return b"".join(b"".join((key, _array_of(len(rows)), *rows)) for key, rows in pairs)

    def frame(self, head: Head, rows: bytes) -> bytes:
        encoded = self._encode(head)
        assert encoded[0] & 0xF0 == FIXMAP, "a head has fewer than sixteen fields"
        return b"%c%b%b" % (encoded[0] + len(ROW_KINDS), encoded[1:], rows)


JSON = Json()
ENCODINGS: dict[str, Encoding] = {
    encoding.subprotocol: encoding for encoding in (JSON, MessagePack())
}


def public_row(row: Row) -> msgspec.Struct:
    """Return the row without its internal fields."""
    return public_view(row) if isinstance(row, UploadView) else row


def _array_of(length: int) -> bytes:
    """Return the head of a MessagePack array."""
    if length < 16:
        return bytes((FIXARRAY + length,))
    return bytes((ARRAY32,)) + length.to_bytes(4)
