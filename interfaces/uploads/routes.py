"""Which paths the upload protocols answer."""

from __future__ import annotations

from aiohttp import hdrs, web

from interfaces.uploads.body import hold
from interfaces.uploads.content import artifact, content
from interfaces.uploads.resumable import resource as resumable
from interfaces.uploads.serving import prepare
from interfaces.uploads.tus import resource as tus

UPLOADS = "/v1/uploads"
UPLOAD = "/v1/uploads/{id}"
BATCH_UPLOADS = "/v1/batches/{id}/uploads"


def add_routes(app: web.Application) -> None:
    """Adds uploads and content to an application that has its SERVICES.

    Which of the two protocols a request speaks follows from its headers.

    `POST /v1/batches/{id}/uploads` is shared with the list of files in JSON: its own route
    hands it to `tus.create` where `tus.speaks_tus(request)`.
    """
    prepare(app)
    router, either = app.router, resumable.either
    router.add_route(hdrs.METH_OPTIONS, UPLOADS, resumable.discover)
    router.add_route(
        hdrs.METH_POST, UPLOADS, either(tus.create, resumable.create), expect_handler=hold
    )
    router.add_route(hdrs.METH_OPTIONS, UPLOAD, resumable.discover)
    router.add_route(hdrs.METH_HEAD, UPLOAD, either(tus.tell_offset, resumable.tell_offset))
    router.add_route(
        hdrs.METH_PATCH, UPLOAD, either(tus.append, resumable.append), expect_handler=hold
    )
    router.add_route(hdrs.METH_DELETE, UPLOAD, either(tus.terminate, resumable.cancel))
    router.add_route(
        hdrs.METH_POST, UPLOAD, either(tus.override, resumable.override), expect_handler=hold
    )
    router.add_get(f"{UPLOAD}/content", content)
    router.add_get(f"{UPLOAD}/artifacts/{{name}}", artifact)
    # The last one, so that the list of files in JSON joins it at the same place of the router.
    router.add_route(hdrs.METH_OPTIONS, BATCH_UPLOADS, resumable.discover)
