"""Sandboxed decoder that detects the media type of a file's first bytes with libmagic."""

from __future__ import annotations

from functools import cache
from typing import IO

import magic

from infrastructure.processors.decoder_server import Answer, Order


def prepare() -> None:
    """Load libmagic's database, which a child could not: it can open nothing."""
    _library().from_buffer(b"\x89")


def identify(source: IO[bytes], order: Order) -> Answer:
    """Return the media type that libmagic gives to the bytes."""
    return {"type": str(_library().from_buffer(source.read()))}


@cache
def _library() -> magic.Magic:
    return magic.Magic(mime=True)
