"""Secrets of 256 random bits, of which only the SHA-256 is stored.

A plain hash is sufficient for a random secret: there is no dictionary of 256-bit numbers, and
every request pays for the check.
"""

from __future__ import annotations

import re
import secrets
from hashlib import sha256

import msgspec

KEY_LENGTH = 63  # characters of a key's text
_KEY = re.compile(r"up_([0-9a-f]{16})_([\w-]{43})", re.ASCII)
_TOKEN = re.compile(r"[\w-]{43}", re.ASCII)


class KeyText(msgspec.Struct, frozen=True):
    """The two parts of `up_<id>_<secret>`."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"up_{self.id}_{self.secret}"


def new_key() -> KeyText:
    return KeyText(secrets.token_hex(8), secrets.token_urlsafe(32))


def parse_key(text: str) -> KeyText | None:
    """Return the parts of a key; None for a text that cannot be a key."""
    found = _KEY.fullmatch(text)
    return KeyText(found[1], found[2]) if found else None


def new_token() -> str:
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Return whether this may be a token, to avoid queries for anything else."""
    return _TOKEN.fullmatch(text) is not None


def token_hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
