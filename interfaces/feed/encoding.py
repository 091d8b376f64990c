"""How rows and frames look on the wire; the subprotocol chooses.

A row is encoded once, however many clients receive it; a frame is its head and its rows, joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import WSMsgType

from application.views import AttemptView, BatchView, UploadView
from interfaces.feed.place import Head

Row = BatchView | UploadView | AttemptView

KINDS = ("batches", "uploads", "attempts")

# Where the bytes lie is nobody's business outside.
_HIDDEN = frozenset({"blob"})
_PublicUpload = msgspec.defstruct(
    "PublicUpload",
    [
        (field.name, field.type, msgspec.field(name=field.encode_name))
        for field in msgspec.structs.fields(UploadView)
        if field.name not in _HIDDEN
    ],
)


class Encoding(Protocol):
    """One way to write frames down."""

    @property
    def subprotocol(self) -> str:
        """Its name in Sec-WebSocket-Protocol."""

    @property
    def kind(self) -> WSMsgType:
        """The kind of WebSocket message it travels in."""

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

    def row(self, row: Row) -> bytes:
        return self._encode(public(row))

    def plain(self, frame: msgspec.Struct) -> bytes:
        return self._encode(frame)

    def rows(self, *lists: Sequence[bytes]) -> bytes:
        pairs = zip(KINDS, lists, strict=True)
        return b",".join(b'"%b":[%b]' % (kind.encode(), b",".join(rows)) for kind, rows in pairs)

    def frame(self, head: Head, rows: bytes) -> bytes:
        return b"%b,%b}" % (self._encode(head.fields)[:-1], rows)


JSON = Json()
ENCODINGS: dict[str, Encoding] = {JSON.subprotocol: JSON}


def public(row: Row) -> Any:
    """The row as clients may see it."""
    if isinstance(row, UploadView):
        return msgspec.convert(row, _PublicUpload, from_attributes=True)
    return row
