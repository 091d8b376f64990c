"""Signatures of what we send to users' services.

Source of the rules: the Standard Webhooks specification, version 1 (symmetric signatures).
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a key


def key_of(secret: str) -> bytes:
    """The key in `whsec_<base64>`. Raises ValueError, which never shows the secret."""
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not (secret.startswith(PREFIX) and SHORTEST <= len(key) <= LONGEST):
        raise ValueError(f"must be {PREFIX} and {SHORTEST} to {LONGEST} bytes in base64")
    return key


def signed(key: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that let a service see who sent this, and when (seconds since 1970)."""
    mac = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(mac).decode()}",
    }
