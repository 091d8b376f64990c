"""Where a client stands: `epoch:position`, given out with every frame of rows."""

from __future__ import annotations

import re

import msgspec

_CURSOR = re.compile(r"([0-9A-Za-z-]{1,64}):([0-9]{1,18})", re.ASCII)


class Cursor(msgspec.Struct, frozen=True):
    """A position, in the life of one read model."""

    epoch: str
    position: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.position}"


def parse(text: str) -> Cursor | None:
    """The cursor a client hands back; None for what the server cannot have given out."""
    if (match := _CURSOR.fullmatch(text)) is None:
        return None
    return Cursor(match[1], int(match[2]))
