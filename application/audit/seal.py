"""A seal: a signed statement that these events, and no others, stood in the log at this time."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256

import msgspec

FIRST = bytes(32)  # what the first seal names instead of the one before it


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The `count` events beyond position `after`, up to and with position `through`.

    `root` is that of the tree over their entries, `previous` the digest of the seal before.
    `key` is the public half (Ed25519, RFC 8032) of what signed it, `next_key` of what signs from
    the next seal on, where that changes.
    """

    number: int
    after: int
    through: int
    count: int
    root: bytes
    previous: bytes
    at: datetime
    key: bytes
    next_key: bytes | None = None
    signature: bytes = b""

    def statement(self) -> bytes:
        """What is signed: lines that any program can write again from the fields."""
        lines = (
            "uptrail seal 1",
            f"number {self.number}",
            f"after {self.after}",
            f"through {self.through}",
            f"count {self.count}",
            f"root {_text(self.root)}",
            f"previous {_text(self.previous)}",
            f"at {self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            f"key {_text(self.key)}",
            f"next {_text(self.next_key) if self.next_key else '-'}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the statement, by which the next seal names this one."""
        return sha256(self.statement()).digest()


def _text(value: bytes) -> str:
    return b64encode(value).decode()
