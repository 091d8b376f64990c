"""Content-Digest and Repr-Digest (RFC 9530), of the algorithms that are safe."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64

from aiohttp import web

from application.transfer.checksums import Checksum
from interfaces.uploads.resumable.problems import invalid_digest, unsupported_digest

CONTENT_DIGEST = "Content-Digest"
REPR_DIGEST = "Repr-Digest"

_SIZES = {"sha-256": 32, "sha-512": 64}  # bytes of a digest
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*", re.ASCII)


def digest_in(request: web.Request, header: str) -> Checksum | None:
    """A digest that we can check, sha-256 first; None without the header.

    Raises a 400 Problem where there is none we can check: it was sent to be checked.
    """
    text = ",".join(request.headers.getall(header, []))
    if not text.strip():
        return None
    found = dict(_member(header, text) for text in text.split(","))
    for name in _SIZES:
        if name in found:
            return Checksum(name.replace("-", ""), _decoded(header, name, found[name]))
    raise unsupported_digest(" or ".join(_SIZES))


def declared(digest: Checksum | None) -> str | None:
    """As the checksum of a declaration, which the pipeline holds the whole file against."""
    if digest is None or digest.algorithm != "sha256":
        return None
    return f"sha256:{digest.digest.hex()}"


def _member(header: str, text: str) -> tuple[str, str]:
    found = _MEMBER.fullmatch(text)
    if found is None:
        raise invalid_digest(header)
    return found[1], found[2]


def _decoded(header: str, algorithm: str, text: str) -> bytes:
    try:
        digest = b64decode(text, validate=True)
    except NotBase64:
        raise invalid_digest(header) from None
    if len(digest) != _SIZES[algorithm]:
        raise invalid_digest(header)
    return digest
