"""The first key: made at the first start, left in a file only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from application.ports.keys import Scope
from infrastructure.auth.keys import PostgresKeys
from infrastructure.auth.tokens import parse_key
from infrastructure.secret_files import write_secret

FIRST_OWNER = "default"

_log = structlog.get_logger(__name__)


async def ensure_admin_key(keys: PostgresKeys, file: Path) -> str:
    """The admin key in `file`, made and written (mode 0600) if there is none for this database.

    A file whose key another database knew is replaced. One whose key was revoked is left alone:
    somebody meant it. Of two processes that start at once, one makes the key.
    """
    text = _read(file)
    stale = text is not None
    if text is not None and (parts := parse_key(text)) is not None:
        if await keys.authenticate(text) is not None:
            return text
        if await keys.find(parts.id) is not None:
            _log.warning("admin_key_does_not_hold", file=str(file), key=parts.id)
            return text
    key, text = await keys.create(owner=FIRST_OWNER, scope=Scope.ADMIN, label="first start")
    if write_secret(file, f"{text}\n".encode(), replace=stale):
        _log.info("admin_key_written", file=str(file), key=key.id)
        return text
    await keys.revoke(key.id, owner=None)
    return _read(file) or ""


def _read(file: Path) -> str | None:
    """The key in the file; a file that others may read is closed to them first."""
    try:
        if file.stat().st_mode & 0o077 and os.name == "posix":
            _log.warning("admin_key_was_readable_by_others", file=str(file))
            file.chmod(0o600)
        return file.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
