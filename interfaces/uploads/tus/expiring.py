"""Until when an unfinished upload is kept: `Upload-Expires` of the tus extension expiration.

Source of the rules: https://tus.io/protocols/resumable-upload, section Expiration.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

from application.errors import NotFound
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState
from interfaces.services import SERVICES

EXPIRES = "Upload-Expires"


def expires(request: web.Request, upload: Upload, since: datetime | None = None) -> dict[str, str]:
    """The header for an upload that waits for bytes; nothing for one that has them all.

    `since` is when something was last recorded of it, None for just now.
    """
    if not _waits(upload):
        return {}
    services = request.app[SERVICES]
    kept = timedelta(seconds=services.settings.upload_expiry)
    return {EXPIRES: format_datetime((since or services.now()) + kept, usegmt=True)}


async def expires_as_recorded(request: web.Request, upload: Upload) -> dict[str, str]:
    """The same where only a question was asked, which does not make the upload live longer."""
    if not _waits(upload):
        return {}
    try:
        row = await request.app[SERVICES].queries.upload(upload.id, owner=None)
    except NotFound:  # registered a moment ago
        return expires(request, upload)
    return expires(request, upload, row.updated_at)


def _waits(upload: Upload) -> bool:
    """For bytes, or, being a part, to be joined with others."""
    if is_partial_upload(upload.id):
        return upload.state in (*INCOMING, UploadState.RECEIVED)
    return upload.state in INCOMING
