"""Bodies that can be checked: what the sender says they hash to, and what they do hash to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec


class Hasher(Protocol):
    """A hash under way, as those of hashlib."""

    def update(self, chunk: bytes, /) -> None:
        """Takes more bytes in."""

    def digest(self) -> bytes:
        """The hash of all bytes so far."""


class Digest(msgspec.Struct, frozen=True):
    """What one body must hash to; `begin` starts the hash of that kind.

    Nothing of such a body counts before all of it is here and found right.
    """

    value: bytes
    begin: Callable[[], Hasher]


class Check:
    """One body on its way past its digest; without a digest, every body is right."""

    def __init__(self, digest: Digest | None) -> None:
        self._digest = digest
        self._hasher = digest.begin() if digest else None

    @property
    def needed(self) -> bool:
        return self._hasher is not None

    def update(self, chunk: bytes) -> None:
        if self._hasher is not None:
            self._hasher.update(chunk)

    def passed(self) -> bool:
        """Whether what was taken in so far is what was announced."""
        if self._digest is None or self._hasher is None:
            return True
        return self._hasher.digest() == self._digest.value
