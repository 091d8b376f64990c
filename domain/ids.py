"""Deterministic ids, so that repeating a creation is idempotent.

`secret` is stored in the database: without it no id can be computed from owner and path. It is
empty in databases of version 0.1, whose ids stay as they are.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from unicodedata import normalize
from uuid import UUID, uuid5

_PARTIAL_UPLOADS = UUID("6f0d1c1e-98a5-5d0b-9a53-51a3c5f0b9c2")  # namespace (RFC 9562, 6.6)
_TIME_BYTES = 6  # bytes of a UUIDv7 that hold its creation time


def batch_id_for(owner: str, idempotency_key: str, secret: bytes) -> UUID:
    """Return the id of the batch of this owner and key (UUIDv8, RFC 9562 section 5.8)."""
    named = b"batch\0" + owner.encode() + b"\0" + idempotency_key.encode()
    return _uuid8(_digest(named, secret)[:16])


def command_id_for(owner: str, idempotency_key: str) -> UUID:
    """Return the id of the command of this owner and key."""
    digest = sha256(b"command\0" + owner.encode() + b"\0" + idempotency_key.encode())
    return _uuid8(digest.digest()[:16])


@lru_cache(1024)  # needed several times for one file
def upload_id_for(batch: UUID, path: str, secret: bytes) -> UUID:
    """Return the id of the upload of this path in this batch.

    It begins with the first bytes of the batch's id, so that the streams of a batch are neighbours
    in the index. Composed and decomposed spellings of a path (é as one character or as two,
    Unicode Standard Annex 15) have one id.
    """
    return unnormalised_upload_id_for(batch, normalize("NFC", path), secret)


def unnormalised_upload_id_for(batch: UUID, path: str, secret: bytes) -> UUID:
    """Return the id that version 0.1 derived for a path, without normalisation."""
    digest = _digest(b"upload\0" + batch.bytes + path.encode(), secret)
    return _uuid8(batch.bytes[:_TIME_BYTES] + digest[:10])


def partial_upload_id_for(token: UUID) -> UUID:
    """Return the id of the tus partial upload with this token (UUIDv5, RFC 9562 section 5.5).

    Only ids of partial uploads have this UUID version, so that readers of the log can skip them.
    """
    return uuid5(_PARTIAL_UPLOADS, str(token))


def is_partial_upload(stream: UUID) -> bool:
    """Return whether this stream is a partial upload, which is neither counted nor processed."""
    return (stream.int >> 76) & 0xF == 5


def concatenated_batch_id_for(parts: Sequence[UUID], secret: bytes) -> UUID:
    """Return the batch id of a standalone upload, concatenated from these partial uploads."""
    named = b"joined\0" + b"".join(part.bytes for part in parts)
    return _uuid8(_digest(named, secret)[:16])


def rejection_id_for(batch: UUID, path: str, reason: str, secret: bytes) -> UUID:
    """Return the id of the rejection of a path for this reason; the path can still be added."""
    named = b"rejected\0" + batch.bytes + path.encode() + b"\0" + reason.encode()
    return _uuid8(batch.bytes[:_TIME_BYTES] + _digest(named, secret)[:10])


def _digest(named: bytes, secret: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104); without a secret plain SHA-256, as in version 0.1."""
    return hmac.digest(secret, named, "sha256") if secret else sha256(named).digest()


def key_stream_for(key: str) -> UUID:
    """Return the stream of an API key, given the public id of the key."""
    return _uuid8(sha256(b"key\0" + key.encode()).digest()[:16])


def sign_in_stream_for(kind: str, token_hash: bytes) -> UUID:
    """Return the stream of a login link or browser session, given the hash of its token."""
    return _uuid8(sha256(kind.encode() + b"\0" + token_hash).digest()[:16])


def _uuid8(octets: bytes) -> UUID:
    number = int.from_bytes(octets, "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=number)
