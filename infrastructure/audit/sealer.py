"""The key that signs seals (Ed25519, RFC 8032): a file only its owner can read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import LiteralString, NamedTuple

import msgspec
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

from application.audit.merkle import SealedEntry, StoredEventRow, merkle_root, pack_entries
from application.audit.seals import FIRST, AuditSeal
from infrastructure import files
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import SEAL_LOCK, SEALER_LOCK, run_as_leader
from infrastructure.settings import Settings

_log = structlog.get_logger(__name__)


class InvalidKeyFile(Exception):
    """A file that should hold an Ed25519 key does not."""

    hint = "seal_key names a private key as `openssl genpkey -algorithm ed25519` makes it"


class SealKey:
    """Private Ed25519 key that signs seals."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def new(cls) -> SealKey:
        return cls(Ed25519PrivateKey.generate())

    def sign(self, statement: bytes) -> bytes:
        return self._private.sign(statement)

    def pem(self) -> bytes:
        """Return the key as PKCS #8 (RFC 5958), not encrypted."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def verify_signature(seal: AuditSeal) -> bool:
    """Return whether the signature is that of the seal's key over its statement."""
    try:
        public = Ed25519PublicKey.from_public_bytes(seal.key)
        public.verify(seal.signature, seal.statement())
    except (InvalidSignature, ValueError):  # a key of another length
        return False
    return True


def ensure_key(file: Path) -> SealKey:
    """Return the key in the file; create it if there is none. Raises InvalidKeyFile, OSError."""
    with suppress(FileNotFoundError):
        key = read_key(file)
        # The process that wrote it may have been killed before its name was durable, and what is
        # signed with it is. The folder of a mounted secret is as it is.
        with suppress(OSError):
            files.sync_folder(file.parent)
        return key
    if write_key(file, SealKey.new(), replace=False):
        _log.info("seal_key_written", file=str(file))
    return read_key(file)  # of two processes that start at once, both use the one that was first


def read_key(file: Path) -> SealKey:
    """Return the key in the file. Raises FileNotFoundError, InvalidKeyFile.

    A file that other users may read is made private first.
    """
    if os.name == "posix" and file.stat().st_mode & 0o077:
        with suppress(OSError):  # a secret that is mounted is as it is
            file.chmod(0o600)
            _log.warning("seal_key_was_readable_by_others", file=str(file))
    try:
        private = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise InvalidKeyFile(f"{file} holds no private key: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidKeyFile(f"{file} holds a key that is not Ed25519")
    return SealKey(private)


def write_key(file: Path, key: SealKey, *, replace: bool) -> bool:
    """Write the key atomically; return False if the file holds another key already."""
    return files.write_file_atomically(file, key.pem(), replace=replace)


def public_pem(key: bytes) -> str:
    """Return a public key as PEM (RFC 8410). Raises ValueError."""
    public = Ed25519PublicKey.from_public_bytes(key)
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public(pem: bytes) -> bytes:
    """Return the raw public key of a PEM. Raises InvalidKeyFile."""
    try:
        public = load_pem_public_key(pem)
    except ValueError as error:
        raise InvalidKeyFile(f"this is no public key: {error}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise InvalidKeyFile("this public key is not Ed25519")
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


# The rows of `audit.seals`, and the events that they are about.

NO_END = 2**63 - 1  # a position that no event has

FIELDS = tuple(field.name for field in msgspec.structs.fields(AuditSeal))

_SEALS: LiteralString = """SELECT number, after, through, count, root, previous, at, key, next_key,
signature FROM audit.seals"""
_PAGE = f"{_SEALS} WHERE number > %s ORDER BY number LIMIT %s"
_COPIES = f"{_SEALS} WHERE number = %s OFFSET %s"
_LAST = f"{_SEALS} ORDER BY number DESC LIMIT 1"
_OVER = f"""{_SEALS} WHERE through >= %s AND count > 0
ORDER BY through, number LIMIT 1"""
_REACHING = """SELECT min(number) FROM audit.seals WHERE through > %s"""
_ROTATIONS = f"""{_SEALS}
WHERE (next_key IS NOT NULL OR number - 1 IN (
    SELECT number FROM audit.seals WHERE next_key IS NOT NULL))
AND number > %s AND number < %s ORDER BY number LIMIT %s"""  # noqa: S608
_KEYS = "SELECT key, min(number) FROM audit.seals GROUP BY key ORDER BY 2"
_HEAD = "SELECT coalesce(max(notification_id), 0) FROM stored_events"
_ENTRIES = "SELECT entries FROM audit.seals WHERE number = %s"
_INSERT = """INSERT INTO audit.seals (number, after, through, count, root, previous, at, key,
next_key, signature, entries)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"""

_EVENT: LiteralString = "SELECT originator_id, originator_version, notification_id, topic, state"
_EVENTS = f"""{_EVENT} FROM stored_events
WHERE notification_id > %s AND notification_id <= %s ORDER BY notification_id LIMIT %s"""
_AT = f"{_EVENT} FROM stored_events WHERE notification_id = ANY(%s) ORDER BY notification_id"


async def page(connection: Connection, after: int, limit: int) -> list[AuditSeal]:
    return await _seals(connection, _PAGE, after, limit)


async def read_last_seal(connection: Connection) -> AuditSeal | None:
    return next(iter(await _seals(connection, _LAST)), None)


async def first_seal_reaching(connection: Connection, position: int) -> AuditSeal | None:
    """Return the first seal up to this position or beyond, if there is one yet.

    It begins beyond the position if the seal that covered it is missing.
    """
    return next(iter(await _seals(connection, _OVER, position)), None)


async def copies(connection: Connection, number: int, *, skipped: int) -> list[AuditSeal]:
    """Return the seals of this number, without the first ones: none unless a row was copied."""
    return await _seals(connection, _COPIES, number, skipped)


async def first_seal_after(connection: Connection, position: int) -> int | None:
    """Return the number of the first seal that ends after this position."""
    row = await (await connection.execute(_REACHING, (position,))).fetchone()
    return row[0] if row else None


async def rotations(connection: Connection, after: int, before: int, limit: int) -> list[AuditSeal]:
    """Return the seals between these numbers that name the next key, and the first ones of it."""
    return await _seals(connection, _ROTATIONS, after, before, limit)


async def keys(connection: Connection) -> list[tuple[bytes, int]]:
    """Return every key that signed, with the number of the first seal that it signed."""
    cursor = await connection.execute(_KEYS, binary=True)
    return [(key, number) for key, number in await cursor.fetchall()]


async def head(connection: Connection) -> int:
    """Return the position of the last event; 0 for an empty log."""
    row = await (await connection.execute(_HEAD)).fetchone()
    return row[0] if row else 0


async def entries_of(connection: Connection, number: int) -> bytes:
    """Return the packed entries of a seal; none if it is missing."""
    row = await (await connection.execute(_ENTRIES, (number,), binary=True)).fetchone()
    return row[0] if row else b""


async def insert(connection: Connection, seal: AuditSeal, entries: bytes) -> None:
    values = [getattr(seal, name) for name in FIELDS]
    await connection.execute(_INSERT, (*values, entries))


async def events(
    connection: Connection, after: int, through: int, limit: int
) -> list[StoredEventRow]:
    """Return events beyond position `after` and up to `through`, byte for byte."""
    return await _events(connection, _EVENTS, after, through, limit)


async def events_at(connection: Connection, positions: Sequence[int]) -> list[StoredEventRow]:
    return await _events(connection, _AT, list(positions))


async def _seals(connection: Connection, query: LiteralString, *parameters: int) -> list[AuditSeal]:
    cursor = await connection.execute(query, parameters, binary=True)
    return [AuditSeal(**dict(zip(FIELDS, row, strict=True))) for row in await cursor.fetchall()]


async def _events(
    connection: Connection, query: LiteralString, *parameters: object
) -> list[StoredEventRow]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(query, parameters, prepare=True)
    return [StoredEventRow(*row) for row in await cursor.fetchall()]


# What a machine remembers of the last seal it made: a file beside the database, not in it.


class LastSeal(msgspec.Struct, frozen=True):
    """Number, digest and last position of a seal."""

    number: int
    digest: bytes
    through: int


class LastSealFile:
    """File with the last seal, outside of the database and its access rights."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def seen(self) -> LastSeal | None:
        """Return the last seal made here; None if there is none or the file is unreadable."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=LastSeal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("seal_witness_unreadable", file=str(self._file), error=str(error))
            return None

    def save(self, seal: AuditSeal) -> None:
        """Save this seal as the last one, durably. Raises OSError."""
        content = msgspec.json.encode(LastSeal(seal.number, seal.digest, seal.through))
        files.write_file_atomically(self._file, content)


# Makes the next seal: reads what was recorded since the last, signs, and files it.

MAX_SEAL_EVENTS = 16_384  # events under one seal
EVENTS_PER_READ = 500  # events that are read and hashed at a time

WITNESS_FILE = "seal.last"


class _End(NamedTuple):
    """End of the chain: number, digest and position of its last seal."""

    number: int
    digest: bytes
    through: int


class Sealer:
    """Maker of seals, with the key in a file that is read each time: it may have been rotated."""

    def __init__(self, key_file: Path, witness: LastSealFile, now: Callable[[], datetime]) -> None:
        self.key_file = key_file
        self.witness = witness
        self._now = now

    async def seal(
        self, connection: Connection, *, next_key: SealKey | None = None, empty: bool = False
    ) -> AuditSeal | None:
        """Seal the events that no seal covers yet; return None if there are none.

        A seal has a maximum number of events. A seal that names the next key, or is requested as
        `empty`, is made without events too. Takes no lock that writers to the log take, and reads
        only committed events: positions rise in the order of commits, so no event can still appear
        before the sealed ones. Raises psycopg.Error, InvalidKeyFile, OSError.
        """
        key = await asyncio.to_thread(ensure_key, self.key_file)
        async with connection.transaction():
            await SEAL_LOCK.acquire_in_transaction(connection)
            last = await read_last_seal(connection)
            if last is not None and key.public != (last.next_key or last.key):
                _log.warning("seal_key_is_another", after=last.number, file=str(self.key_file))
            end = await self._end(connection, last)
            entries = await _entries_beyond(connection, end.through)
            if not entries and next_key is None and not empty:
                return None
            # Hashing all of them takes tens of milliseconds, in which others want the loop.
            seal = await asyncio.to_thread(self._signed, key, end, entries, next_key)
            await insert(connection, seal, pack_entries(entries))
        await asyncio.to_thread(self.witness.save, seal)
        # Wherever logs are kept, they vouch for the chain as well.
        digest = seal.digest.hex()
        _log.info(
            "sealed", seal=seal.number, through=seal.through, events=seal.count, digest=digest
        )
        return seal

    async def rotate(self, connection: Connection) -> AuditSeal:
        """Create a new key, named by the last seal of the old one, and its first seal.

        Trust in either key then suffices: the new key's seal confirms the earlier ones.
        """
        new = SealKey.new()
        fresh = self.key_file.with_name(f"{self.key_file.name}.next")
        await asyncio.to_thread(write_key, fresh, new, replace=True)
        await self.seal(connection, next_key=new)
        # Until here the old key signs on: it is trusted as well.
        await asyncio.to_thread(fresh.replace, self.key_file)
        first = await self.seal(connection, empty=True)
        assert first is not None
        return first

    def _signed(
        self, key: SealKey, end: _End, entries: list[SealedEntry], next_key: SealKey | None
    ) -> AuditSeal:
        seal = AuditSeal(
            number=end.number + 1,
            after=end.through,
            through=entries[-1].position if entries else end.through,
            count=len(entries),
            root=merkle_root(map(bytes, entries)),
            previous=end.digest,
            at=self._now(),
            key=key.public,
            next_key=next_key.public if next_key else None,
        )
        return msgspec.structs.replace(seal, signature=key.sign(seal.statement()))

    async def _end(self, connection: Connection, last: AuditSeal | None) -> _End:
        """Return the end of the chain that the next seal continues.

        If the last seal of this machine is missing from the database or is another one there, the
        next seal follows that of this machine: then no later seal confirms the altered one.
        """
        seen = self.witness.seen()
        end = _End(last.number, last.digest, last.through) if last else _End(0, FIRST, 0)
        if seen is None:
            return end
        if seen.number > end.number:
            _log.error("seals_are_missing", after=end.number, last_made_here=seen.number)
            return _End(seen.number, seen.digest, end.through)
        stored = await page(connection, seen.number - 1, 1)
        if not stored or (stored[0].number, stored[0].digest) != (seen.number, seen.digest):
            _log.error("seal_is_another", number=seen.number)
            return end._replace(digest=seen.digest)
        return end


def make_sealer(settings: Settings, now: Callable[[], datetime]) -> Sealer:
    return Sealer(settings.seal_key_file, make_last_seal_file(settings), now)


def make_last_seal_file(settings: Settings) -> LastSealFile:
    return LastSealFile(settings.data_dir / WITNESS_FILE)


async def _entries_beyond(connection: Connection, after: int) -> list[SealedEntry]:
    entries: list[SealedEntry] = []
    while len(entries) < MAX_SEAL_EVENTS:
        limit = min(EVENTS_PER_READ, MAX_SEAL_EVENTS - len(entries))
        found = await events(connection, after, NO_END, limit)
        entries += (stored.entry for stored in found)
        if len(found) < limit:
            break
        after = entries[-1].position
        await asyncio.sleep(0)
    return entries


async def seal_at_intervals(url: str, sealer: Sealer, interval: float) -> None:
    """Lead, and make a seal every `interval` seconds if events were recorded.

    While the log is far ahead, seals follow each other sooner. Events that an error leaves unsealed
    are sealed later. Raises psycopg.Error, InvalidKeyFile, OSError.
    """

    async def lead(connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            seal = await sealer.seal(connection)
            full = seal is not None and seal.count == MAX_SEAL_EVENTS
            # A log of millions of events that was never sealed costs half a core at most.
            await asyncio.sleep(loop.time() - began if full else interval)

    await run_as_leader(url, SEALER_LOCK, lead, name="sealer")
