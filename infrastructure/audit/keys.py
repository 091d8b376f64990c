"""The key that signs seals (Ed25519, RFC 8032): a file only its owner can read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from application.audit.seal import Seal
from infrastructure.secret_files import write_secret

_log = structlog.get_logger(__name__)


class BadKey(Exception):
    """A file that should hold an Ed25519 key does not."""

    hint = "seal_key names a private key as `openssl genpkey -algorithm ed25519` makes it"


class SealKey:
    """A private key, and what it can do."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def new(cls) -> SealKey:
        return cls(Ed25519PrivateKey.generate())

    def sign(self, statement: bytes) -> bytes:
        return self._private.sign(statement)

    def pem(self) -> bytes:
        """PKCS #8 (RFC 5958), not encrypted."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signed(seal: Seal) -> bool:
    """Whether the seal's signature is that of its key over its statement."""
    try:
        public = Ed25519PublicKey.from_public_bytes(seal.key)
        public.verify(seal.signature, seal.statement())
    except (InvalidSignature, ValueError):  # a key of another length
        return False
    return True


def ensure_key(file: Path) -> SealKey:
    """The key in the file, which is made if it is not there. Raises BadKey, OSError."""
    with suppress(FileNotFoundError):
        return read_key(file)
    if write_key(file, SealKey.new(), replace=False):
        _log.info("seal_key_written", file=str(file))
    return read_key(file)  # of two processes that start at once, both use the one that was first


def read_key(file: Path) -> SealKey:
    """Raises FileNotFoundError, BadKey. A file that others may read is closed to them first."""
    if os.name == "posix" and file.stat().st_mode & 0o077:
        with suppress(OSError):  # a secret that is mounted is as it is
            file.chmod(0o600)
            _log.warning("seal_key_was_readable_by_others", file=str(file))
    try:
        private = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise BadKey(f"{file} holds no private key: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise BadKey(f"{file} holds a key that is not Ed25519")
    return SealKey(private)


def write_key(file: Path, key: SealKey, *, replace: bool) -> bool:
    """Whether the file now holds this key: it appears whole, or is another's already."""
    return write_secret(file, key.pem(), replace=replace)


def public_pem(key: bytes) -> str:
    """A public key as other programs read it (RFC 8410). Raises ValueError."""
    public = Ed25519PublicKey.from_public_bytes(key)
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public(pem: bytes) -> bytes:
    """The raw key in a PEM of one. Raises BadKey."""
    try:
        public = load_pem_public_key(pem)
    except ValueError as error:
        raise BadKey(f"this is no public key: {error}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise BadKey("this public key is not Ed25519")
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
