"""Collections in which uploads are created, and the URLs of the uploads below them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Handler

from interfaces.rest.forwarding import public_url
from interfaces.services import SERVICES

UPLOADS = "/v1/uploads"

_COLLECTION: web.RequestKey[str] = web.RequestKey("upload_collection", str)
_RESOURCE = re.compile(r"(.*)/([0-9a-f-]{36})/?")


def tus_collection(request: web.Request) -> str | None:
    """Return the path of the endpoint that behaves as tusd's, without its last slash."""
    return request.app[SERVICES].settings.tus_path.rstrip("/") or None


def is_tus_endpoint(request: web.Request) -> bool:
    """Return whether the request is for that endpoint, or an upload below it."""
    return _COLLECTION in request


def at_collection(path: str, handler: Handler) -> Handler:
    """Return the handler for this collection: uploads that it creates are below `path`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        request[_COLLECTION] = path
        return await handler(request)

    return answer


def upload_url(request: web.Request, id: UUID) -> str:
    """Return the URL of an upload, below the collection that the request went to."""
    return public_url(request, f"{request.get(_COLLECTION, UPLOADS)}/{id}")


def upload_at(request: web.Request, address: str) -> UUID | None:
    """Return the upload that a URL names; None for one that names none here.

    Absolute or relative, below either collection, behind whatever prefix a proxy adds.
    """
    found = _RESOURCE.fullmatch(urlsplit(address).path)
    collections = tuple(filter(None, (UPLOADS, tus_collection(request))))
    if found is None or not f"/{found[1]}".endswith(collections):
        return None
    try:
        return UUID(found[2])
    except ValueError:
        return None
