"""Which paths the upload protocols answer."""

from __future__ import annotations

from aiohttp import hdrs, web

from interfaces.services import SERVICES
from interfaces.uploads.body import hold
from interfaces.uploads.content import artifact, content, download
from interfaces.uploads.endpoints import UPLOADS, at_collection
from interfaces.uploads.resumable import resource as resumable
from interfaces.uploads.serving import prepare
from interfaces.uploads.tus import resource as tus

UPLOAD = "/v1/uploads/{id}"
BATCH_UPLOADS = "/v1/batches/{id}/uploads"


def add_routes(app: web.Application) -> None:
    """Adds uploads and content to an application that has its SERVICES.

    Which of the two protocols a request speaks follows from its headers. Every endpoint is also
    found with a slash at its end, which clients of tus add.

    `POST /v1/batches/{id}/uploads` is shared with the list of files in JSON: its own route
    hands it to `tus.create` where `tus.speaks_tus(request)`.
    """
    prepare(app)
    router = app.router
    _add_collection(app, UPLOADS)
    router.add_get(f"{UPLOAD}/content", content)
    router.add_get(f"{UPLOAD}/artifacts/{{name}}", artifact)
    if endpoint := app[SERVICES].settings.tus_path.rstrip("/"):
        _add_collection(app, endpoint, tus_endpoint=True)
    # The last one, so that the list of files in JSON joins it at the same place of the router.
    router.add_route(hdrs.METH_OPTIONS, f"{BATCH_UPLOADS}/", resumable.discover)
    router.add_route(hdrs.METH_OPTIONS, BATCH_UPLOADS, resumable.discover)


def _add_collection(app: web.Application, path: str, *, tus_endpoint: bool = False) -> None:
    """Add a collection and its resources; a `tus_endpoint` answers GET with the bytes, as tusd."""
    either = resumable.either
    collection = (
        (hdrs.METH_OPTIONS, resumable.discover),
        (hdrs.METH_POST, either(tus.create, resumable.create)),
    )
    resource = (
        (hdrs.METH_OPTIONS, resumable.discover),
        (hdrs.METH_HEAD, either(tus.tell_offset, resumable.tell_offset)),
        (hdrs.METH_PATCH, either(tus.append, resumable.append)),
        (hdrs.METH_DELETE, either(tus.terminate, resumable.cancel)),
        (hdrs.METH_POST, either(tus.override, resumable.override)),
        *(((hdrs.METH_GET, download),) if tus_endpoint else ()),
    )
    for at, routes in ((path, collection), (f"{path}/{{id}}", resource)):
        for spelled in (at, f"{at}/"):
            for method, handler in routes:
                answer = at_collection(path, handler) if tus_endpoint else handler
                expect = hold if method in (hdrs.METH_POST, hdrs.METH_PATCH) else None
                app.router.add_route(method, spelled, answer, expect_handler=expect)
