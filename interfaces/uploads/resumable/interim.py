"""104 (Upload Resumption Supported): where an upload is, and how far, while its body arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from aiohttp import HttpVersion11, hdrs, web

from interfaces.services import SERVICES
from interfaces.uploads.resumable.request import INTEROP, LIMIT, OFFSET, interop_of, limits

EVERY = 1.0  # seconds between two words on how far it is, at least


PROXIED = (
    "Via",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Real-IP",
)
"""Headers that show a proxy: nginx takes 104 for the final response, Go fails after five."""


def is_carried(request: web.Request) -> bool:
    """Whether an interim response reaches the client, by the setting `interim_responses`.

    `auto` sends none where a proxy is in front, by the settings or by what the request shows.
    """
    settings = request.app[SERVICES].settings
    if settings.interim_responses != "auto":
        return settings.interim_responses == "on"
    return not settings.trust_forwarded and not any(name in request.headers for name in PROXIED)


async def announce(request: web.Request, location: str) -> None:
    """Tells the client where the upload is, so that it can go on after a cut."""
    await _send(request, {hdrs.LOCATION: location, LIMIT: limits(request)})


async def progressing(
    request: web.Request, upload: UUID, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """The chunks; now and then the client is told how much of them is durable and recorded."""
    loop = asyncio.get_running_loop()
    due, told = loop.time() + EVERY, 0
    async for chunk in chunks:
        yield chunk
        if loop.time() >= due:
            due = loop.time() + EVERY
            received = (await request.app[SERVICES].log.upload(upload)).received
            if received > told:
                told = received
                await _send(request, {OFFSET: str(received)})


async def _send(request: web.Request, headers: dict[str, str]) -> None:
    """Nothing to a client of another version, as all drafts demand, nor to one of HTTP/1.0."""
    version = interop_of(request)
    if version is None or request.version < HttpVersion11 or not is_carried(request):
        return
    lines = [f"{name}: {value}" for name, value in {INTEROP: str(version), **headers}.items()]
    head = "\r\n".join(["HTTP/1.1 104 Upload Resumption Supported", *lines, "", ""])
    await request.writer.write(head.encode("latin-1"))
    request.writer.output_size = 0  # the answer proper has not begun
