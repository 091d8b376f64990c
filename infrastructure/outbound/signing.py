"""Signatures of outgoing requests, by Standard Webhooks version 1 (symmetric signatures)."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from secrets import token_bytes

from standardwebhooks import Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
NEW_KEY_BYTES = 32


def require_secret(secret: str) -> None:
    """Raise ValueError unless the text is `whsec_<base64>`; the error never shows the secret."""
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not (secret.startswith(SECRET_PREFIX) and MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES):
        raise ValueError(
            f"must be {SECRET_PREFIX} and {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes in base64"
        )


def signature_headers(id: str, timestamp: int, body: bytes, *secrets: str) -> dict[str, str]:
    """Return the headers that prove sender and time (seconds since 1970) to a receiver.

    There is one signature for each secret, so that a receiver may know the old or the new one
    while a secret is rotated. `body` is UTF-8.
    """
    at, text = datetime.fromtimestamp(timestamp, UTC), body.decode()
    signatures = [Webhook(secret).sign(id, at, text) for secret in secrets]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def new_secret() -> str:
    """Return a random secret."""
    return SECRET_PREFIX + b64encode(token_bytes(NEW_KEY_BYTES)).decode()
