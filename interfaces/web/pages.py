"""Serves the page's own files; they are public, and hold no data."""

from __future__ import annotations

import mimetypes
from hashlib import sha256
from pathlib import Path

import msgspec
from aiohttp import ETag, web

from domain.catalogue import EVENT_CLASSES

STATIC = Path(__file__).parent / "static"
EVENT_LABELS = "js/history/event-labels.js"

# The page may load itself, talk to its own origin, and nothing else: no inline code, no frames.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for each time: an update is seen at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_KINDS = {".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(msgspec.Struct, frozen=True):
    """One file, read once."""

    body: bytes
    kind: str
    etag: str

    @classmethod
    def read(cls, file: Path) -> Asset:
        return cls.of(file, file.read_bytes())

    @classmethod
    def of(cls, file: Path, body: bytes) -> Asset:
        kind = _KINDS.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "text/plain"
        return cls(body, kind, sha256(body).hexdigest()[:32])


def add_routes(app: web.Application) -> None:
    """The page at `/`, its files under `/static/`, its icon where browsers look for it."""
    assets = Assets(STATIC)
    app.router.add_get("/", assets.page)
    app.router.add_get("/favicon.ico", assets.icon)
    app.router.add_get("/static/{path:.+}", assets.file)


def event_labels() -> bytes:
    """Return the module of the page with the label of every event type."""
    labels = {topic: event.declaration.label for topic, event in EVENT_CLASSES.items()}
    return b"// Generated from the declarations of the events.\nexport const LABELS = %s;\n" % (
        msgspec.json.format(msgspec.json.encode(labels))
    )


class Assets:
    """The files of a folder, in memory: a request can name these and no others."""

    def __init__(self, folder: Path) -> None:
        files = (file for file in folder.rglob("*") if file.is_file())
        self._assets = {file.relative_to(folder).as_posix(): Asset.read(file) for file in files}
        self._assets[EVENT_LABELS] = Asset.of(Path(EVENT_LABELS), event_labels())

    async def page(self, request: web.Request) -> web.Response:
        return self._answer(request, "index.html")

    async def icon(self, request: web.Request) -> web.Response:
        return self._answer(request, "icon.svg")

    async def file(self, request: web.Request) -> web.Response:
        return self._answer(request, request.match_info["path"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        asset = self._assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        known = request.if_none_match or ()
        fresh = any(tag.value in (asset.etag, "*") for tag in known)
        response = web.Response(status=304 if fresh else 200, headers=_HEADERS)
        response.etag = ETag(asset.etag)
        if not fresh:
            response.body = asset.body
            response.content_type = asset.kind
            response.charset = "utf-8"
        return response
