"""Addresses of webhooks for those who must not have them: they may hold a token."""

from __future__ import annotations

from urllib.parse import urlsplit
from uuid import UUID


def masked(notify: str) -> str:
    """What a batch's `notify` names, without secret parts: an id as it is, of a URL the host."""
    try:
        return str(UUID(notify))
    except ValueError:
        pass
    try:
        parts = urlsplit(notify)
        host = parts.hostname or ""
    except ValueError:
        return "..."
    return f"{parts.scheme}://{host}/..." if host else "..."
