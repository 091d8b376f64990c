"""Checksums that senders give along with bytes, computed while the bytes arrive."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5, sha1, sha256, sha512
from hmac import compare_digest
from typing import Protocol

import msgspec
from google_crc32c import Checksum as Crc32c

from application.transfer.errors import ChecksumMismatch


class Running(Protocol):
    """A checksum of what it was fed so far."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


# md5 and sha1 tell damage from none; nobody relies on them against malice.
ALGORITHMS: dict[str, Callable[[], Running]] = {
    "sha1": lambda: sha1(usedforsecurity=False),
    "sha256": sha256,
    "sha512": sha512,
    "crc32c": Crc32c,
    "md5": lambda: md5(usedforsecurity=False),
}
"""By the names that the tus protocol has for them."""


class Checksum(msgspec.Struct, frozen=True):
    """What the bytes of one body must come to; `algorithm` is a key of ALGORITHMS."""

    algorithm: str
    digest: bytes

    def verify(self, content: bytes) -> None:
        """Raises ChecksumMismatch unless the content is what its sender meant."""
        check = Check(self)
        check.update(content)
        check.verify()


class Check:
    """A checksum while its body arrives."""

    def __init__(self, expected: Checksum) -> None:
        self._expected = expected
        self._running = ALGORITHMS[expected.algorithm]()
        self.update = self._running.update

    def verify(self) -> None:
        """Raises ChecksumMismatch unless every byte so far is what its sender meant."""
        if not compare_digest(self._running.digest(), self._expected.digest):
            raise ChecksumMismatch(self._expected.algorithm)
