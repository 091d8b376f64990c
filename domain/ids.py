"""Deterministic ids, so that repeating a creation is idempotent.

`secret` is that of the database: owner and path without it do not lead to an id. It is empty for
databases that were made before there was one; their ids stay as they are.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from unicodedata import normalize
from uuid import UUID, uuid5

_PARTS = UUID("6f0d1c1e-98a5-5d0b-9a53-51a3c5f0b9c2")  # the namespace of parts
_TIME = 6  # bytes of a UUIDv7 that hold its creation time


def batch_id_for(owner: str, idempotency_key: str, secret: bytes) -> UUID:
    """The batch that this owner means by this key (UUIDv8, RFC 9562 section 5.8)."""
    named = b"batch\0" + owner.encode() + b"\0" + idempotency_key.encode()
    return _uuid8(_digest(named, secret)[:16])


def command_id_for(owner: str, idempotency_key: str) -> UUID:
    """The command that this owner means by this key."""
    digest = sha256(b"command\0" + owner.encode() + b"\0" + idempotency_key.encode())
    return _uuid8(digest.digest()[:16])


@lru_cache(1024)  # asked several times of one file
def upload_id_for(batch: UUID, path: str, secret: bytes) -> UUID:
    """The upload of this path in this batch.

    It opens with the batch's own first bytes, so that a batch's streams lie side by side
    in the index however many millions of others there are. Spellings of a path that look alike
    (é as one character or as two, Unicode Standard Annex 15) are one upload.
    """
    return unnormalised_upload_id_for(batch, normalize("NFC", path), secret)


def unnormalised_upload_id_for(batch: UUID, path: str, secret: bytes) -> UUID:
    """The id that version 0.1 derived for a path, from its spelling."""
    digest = _digest(b"upload\0" + batch.bytes + path.encode(), secret)
    return _uuid8(batch.bytes[:_TIME] + digest[:10])


def partial_upload_id_for(token: UUID) -> UUID:
    """The part of an upload that somebody announced by this token (UUIDv5, section 5.5).

    A part is a piece of a file that comes by itself, to be joined with others into an upload.
    The version of its id tells it from everything else, so that whoever follows the log can
    pass over it.
    """
    return uuid5(_PARTS, str(token))


def is_partial_upload(stream: UUID) -> bool:
    """Whether this is a part, and not an upload: it is counted and processed nowhere."""
    return (stream.int >> 76) & 0xF == 5


def concatenated_batch_id_for(parts: Sequence[UUID], secret: bytes) -> UUID:
    """The batch of an upload that is joined from these parts, in this order, and stands alone."""
    named = b"joined\0" + b"".join(part.bytes for part in parts)
    return _uuid8(_digest(named, secret)[:16])


def rejection_id_for(batch: UUID, path: str, reason: str, secret: bytes) -> UUID:
    """The refusal of this path for this reason; the path itself stays free to be added."""
    named = b"rejected\0" + batch.bytes + path.encode() + b"\0" + reason.encode()
    return _uuid8(batch.bytes[:_TIME] + _digest(named, secret)[:10])


def _digest(named: bytes, secret: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104); without a secret plain SHA-256, as in version 0.1."""
    return hmac.digest(secret, named, "sha256") if secret else sha256(named).digest()


def key_stream_for(key: str) -> UUID:
    """The stream of an API key, by the key's public id."""
    return _uuid8(sha256(b"key\0" + key.encode()).digest()[:16])


def sign_in_stream_for(kind: str, token_hash: bytes) -> UUID:
    """The stream of a login link or a browser session, by the hash that its token is checked by."""
    return _uuid8(sha256(kind.encode() + b"\0" + token_hash).digest()[:16])


def _uuid8(octets: bytes) -> UUID:
    number = int.from_bytes(octets, "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=number)
