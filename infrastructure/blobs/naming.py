"""What a blob may be called: names that can lead nowhere else, in a folder or in a bucket."""

from __future__ import annotations

import re

MAX_NAME = 250

_NAME = re.compile(r"[a-z0-9-][a-z0-9.-]*(/[a-z0-9-][a-z0-9.-]*)*")


def checked(name: str) -> str:
    """The name. Raises ValueError for one that no caller should choose."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a blob")
    return name
