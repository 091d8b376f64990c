"""Signatures of what we send to users' services.

Source of the rules: the Standard Webhooks specification, version 1 (symmetric signatures).
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from secrets import token_bytes

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a key
FRESH = 32  # bytes of a new one


def key_of(secret: str) -> bytes:
    """The key in `whsec_<base64>`. Raises ValueError, which never shows the secret."""
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not (secret.startswith(PREFIX) and SHORTEST <= len(key) <= LONGEST):
        raise ValueError(f"must be {PREFIX} and {SHORTEST} to {LONGEST} bytes in base64")
    return key


def signed(id: str, timestamp: int, body: bytes, *keys: bytes) -> dict[str, str]:
    """The headers that let a receiver see who sent this, and when (seconds since 1970).

    There is one signature for each key: while a secret is being renewed, old and new are good.
    """
    content = f"{id}.{timestamp}.".encode() + body
    macs = (hmac.digest(key, content, "sha256") for key in keys)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{b64encode(mac).decode()}" for mac in macs),
    }


def new_secret() -> str:
    """A secret nobody could guess."""
    return PREFIX + b64encode(token_bytes(FRESH)).decode()
