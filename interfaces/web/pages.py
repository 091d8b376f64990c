"""Serve the files of the dashboard. They are public and contain no data."""

from __future__ import annotations

import mimetypes
from hashlib import sha256
from pathlib import Path

import msgspec
from aiohttp import ETag, web

from domain.catalogue import EVENT_CLASSES

STATIC = Path(__file__).parent / "static"
EVENT_DECLARATIONS = "js/history/event-declarations.js"

# The page loads files and data from its own origin only: no inline code, no frames.
CONTENT_SECURITY_POLICY = "; ".join(
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
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # revalidated on each use: updates apply at once
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_CONTENT_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(msgspec.Struct, frozen=True):
    """Content of a file, read once."""

    body: bytes
    content_type: str
    etag: str

    @classmethod
    def read(cls, file: Path) -> Asset:
        return cls.from_bytes(file, file.read_bytes())

    @classmethod
    def from_bytes(cls, file: Path, body: bytes) -> Asset:
        content_type = (
            _CONTENT_TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "text/plain"
        )
        return cls(body, content_type, sha256(body).hexdigest()[:32])


def add_routes(app: web.Application) -> None:
    """Add the page at `/`, its files below `/static/`, and its icon."""
    assets = Assets(STATIC)
    app.router.add_get("/", assets.page)
    app.router.add_get("/favicon.ico", assets.icon)
    app.router.add_get("/static/{path:.+}", assets.file)


def event_declarations() -> bytes:
    """Return the script that holds label, icon, tone and details of every event type."""
    declarations = {
        topic: {"label": it.label, "icon": it.icon, "tone": it.tone, "details": it.details}
        for topic, event in EVENT_CLASSES.items()
        for it in (event.declaration,)
    }
    return b"// Generated from the declarations of the events.\nexport const EVENTS = %s;\n" % (
        msgspec.json.format(msgspec.json.encode(declarations))
    )


class Assets:
    """Files of a folder, in memory. Requests can name only these."""

    def __init__(self, folder: Path) -> None:
        files = (file for file in folder.rglob("*") if file.is_file())
        self._assets = {file.relative_to(folder).as_posix(): Asset.read(file) for file in files}
        self._assets[EVENT_DECLARATIONS] = Asset.from_bytes(
            Path(EVENT_DECLARATIONS), event_declarations()
        )

    async def page(self, request: web.Request) -> web.Response:
        return self._respond(request, "index.html")

    async def icon(self, request: web.Request) -> web.Response:
        return self._respond(request, "icon.svg")

    async def file(self, request: web.Request) -> web.Response:
        return self._respond(request, request.match_info["path"])

    def _respond(self, request: web.Request, name: str) -> web.Response:
        asset = self._assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        known_tags = request.if_none_match or ()
        is_cached = any(tag.value in (asset.etag, "*") for tag in known_tags)
        response = web.Response(status=304 if is_cached else 200, headers=_HEADERS)
        response.etag = ETag(asset.etag)
        if not is_cached:
            response.body = asset.body
            response.content_type = asset.content_type
            response.charset = "utf-8"
        return response
