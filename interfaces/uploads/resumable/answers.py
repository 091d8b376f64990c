"""What clients of the IETF's resumable uploads are answered when all went well."""

from __future__ import annotations

from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from domain.upload.aggregate import Upload
from interfaces.rest.answers import json_answer
from interfaces.uploads.endpoints import upload_url
from interfaces.uploads.resumable.request import (
    COMPLETE,
    LIMIT,
    OFFSET,
    interop_of,
    limits,
)


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is all here, durable and on record."""

    id: UUID
    batch: UUID
    path: str
    size: int
    state: str


def stored(request: web.Request, upload: Upload) -> web.Response:
    """The final response. It follows from the upload alone, so that it can be given again."""
    answer = StoredAnswer(
        id=upload.id,
        batch=upload.batch,
        path=upload.path,
        size=upload.received,
        state=upload.state,
    )
    headers = {
        hdrs.LOCATION: upload_url(request, upload.id),
        COMPLETE: "?1",
        OFFSET: str(upload.received),
    }
    return json_answer(answer, status=201, headers=headers)


def begun(request: web.Request, upload: Upload) -> web.Response:
    """An upload was created, and its file is not complete."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), **_so_far(request, upload)}
    return web.Response(status=201, headers=headers)


def appended(request: web.Request, upload: Upload) -> web.Response:
    """Bytes were added, and the client says that there are more."""
    status = 201 if interop_of(request) == 5 else 204
    return web.Response(status=status, headers=_so_far(request, upload))


def _so_far(request: web.Request, upload: Upload) -> dict[str, str]:
    return {COMPLETE: "?0", OFFSET: str(upload.received), LIMIT: limits(request)}
