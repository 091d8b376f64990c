"""Masking of webhook addresses, which may contain a token, for readers without access to them."""

from __future__ import annotations

from urllib.parse import urlsplit
from uuid import UUID


def masked(notify: str) -> str:
    """Return a batch's `notify` without secret parts: an id unchanged, only the host of a URL."""
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
