"""Which paths the upload protocols answer."""

from __future__ import annotations

from aiohttp import hdrs, web

from interfaces.uploads import tus
from interfaces.uploads.body import hold
from interfaces.uploads.content import artifact, content
from interfaces.uploads.serving import prepare

UPLOADS = "/v1/uploads"
UPLOAD = "/v1/uploads/{id}"
BATCH_UPLOADS = "/v1/batches/{id}/uploads"


def add_routes(app: web.Application) -> None:
    """Adds uploads and content to an application that has its SERVICES.

    `POST /v1/batches/{id}/uploads` is shared with the list of files in JSON: its own route
    hands it to `tus.create` where `tus.speaks_tus(request)`.
    """
    prepare(app)
    router = app.router
    for path in (UPLOADS, BATCH_UPLOADS, UPLOAD):
        router.add_route(hdrs.METH_OPTIONS, path, tus.discover)
    router.add_route(hdrs.METH_POST, UPLOADS, tus.create, expect_handler=hold)
    router.add_route(hdrs.METH_HEAD, UPLOAD, tus.tell_offset)
    router.add_route(hdrs.METH_PATCH, UPLOAD, tus.append, expect_handler=hold)
    router.add_route(hdrs.METH_DELETE, UPLOAD, tus.terminate)
    router.add_route(hdrs.METH_POST, UPLOAD, tus.override, expect_handler=hold)
    router.add_get(f"{UPLOAD}/content", content)
    router.add_get(f"{UPLOAD}/artifacts/{{name}}", artifact)
