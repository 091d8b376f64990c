"""What clients get as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from application.handlers.uploads import FileResult
from application.ports.auth import Key
from application.views import UploadView

POSITION = "Uptrail-Position"

Row = TypeVar("Row")

_encode = msgspec.json.Encoder().encode


class StartedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was started; `uploads` are the ids of the files sent, in their order."""

    id: UUID
    owner: str
    label: str
    state: str
    pipeline: str
    priority: int
    started_at: datetime
    version: int
    uploads: tuple[UUID, ...]
    position: int


class CommandAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a command leads to: the state, whether the batch is paused now, or its priority."""

    id: UUID
    state: str | None = None
    paused: bool | None = None
    priority: int | None = None
    position: int = 0


class AddedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each file of a list, in its order."""

    files: list[FileResult]
    added: int
    known: int
    rejected: int
    position: int


class PageAnswer(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """Some rows; `next` goes into the next request (`cursor`, or `after` of a history)."""

    items: list[Row]
    next: str | int | None
    position: int


class HistoryItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recorded event; `command` and `trace` say what caused it, where that is known."""

    position: int
    version: int
    stream: UUID
    type: str
    at: str
    by: str
    command: UUID | None = None
    trace: str | None = None
    data: dict[str, Any]


class NewKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; `text` is shown this once and never again."""

    key: Key
    text: str


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`lag` is how many positions the read model is behind the log."""

    status: str
    head: int | None = None
    position: int | None = None
    lag: int | None = None


# Where the bytes lie is nobody's business outside.
PublicUpload: type[msgspec.Struct] = msgspec.defstruct(
    "Upload",
    [
        (field.name, field.type)
        for field in msgspec.structs.fields(UploadView)
        if field.name != "blob"
    ],
    kw_only=True,
)


def public(upload: UploadView) -> msgspec.Struct:
    """The upload as clients may see it."""
    return msgspec.convert(upload, PublicUpload, from_attributes=True)


def json_answer(
    value: Any,
    *,
    status: int = 200,
    position: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The value as JSON; `position` is the place in the log it reflects, at least."""
    sent = dict(headers or {})
    if position is not None:
        sent[POSITION] = str(position)
    return web.Response(
        status=status, body=_encode(value), content_type="application/json", headers=sent
    )
