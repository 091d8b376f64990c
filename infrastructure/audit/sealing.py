"""Makes the next seal: reads what was recorded since the last, signs, and files it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from application.audit.entries import Entry, packed
from application.audit.seal import FIRST, Seal
from application.audit.tree import root_of
from infrastructure.audit import rows
from infrastructure.audit.keys import SealKey, ensure_key, write_key
from infrastructure.audit.witness import Witness
from infrastructure.postgres.locks import SEAL_LOCK
from infrastructure.postgres.pool import Connection
from infrastructure.settings import Settings

MOST = 16_384  # events under one seal
CHUNK = 500  # events that are read and hashed at a time

WITNESS_FILE = "seal.last"

_log = structlog.get_logger(__name__)


class _End(NamedTuple):
    """Where the chain goes on: the number and digest of its last seal, and how far that reached."""

    number: int
    digest: bytes
    through: int


class Sealer:
    """Seals with the key in a file, which is read anew each time: it may have been rotated."""

    def __init__(self, key_file: Path, witness: Witness, now: Callable[[], datetime]) -> None:
        self.key_file = key_file
        self.witness = witness
        self._now = now

    async def seal(
        self, connection: Connection, *, next_key: SealKey | None = None, empty: bool = False
    ) -> Seal | None:
        """Seals what no seal covers yet, at most MOST events; None where there is nothing.

        A seal that names the next key, or is wanted `empty`, is made even so.

        Takes no lock that writers to the log take, and reads only what is committed: positions
        rise in the order of commits, so nothing can still appear before what is sealed. Raises
        psycopg.Error, BadKey, OSError.
        """
        key = await asyncio.to_thread(ensure_key, self.key_file)
        async with connection.transaction():
            await SEAL_LOCK.acquire_in_transaction(connection)
            last = await rows.last(connection)
            if last is not None and key.public != (last.next_key or last.key):
                _log.warning("seal_key_is_another", after=last.number, file=str(self.key_file))
            end = self._end(last)
            entries = await _entries_beyond(connection, end.through)
            if not entries and next_key is None and not empty:
                return None
            # Hashing all of them takes tens of milliseconds, in which others want the loop.
            seal = await asyncio.to_thread(self._signed, key, end, entries, next_key)
            await rows.insert(connection, seal, packed(entries))
        await asyncio.to_thread(self.witness.see, seal)
        # Wherever logs are kept, they vouch for the chain as well.
        digest = seal.digest.hex()
        _log.info(
            "sealed", seal=seal.number, through=seal.through, events=seal.count, digest=digest
        )
        return seal

    async def rotate(self, connection: Connection) -> Seal:
        """Makes a new key, which the last seal of the old one names, and its first seal.

        Whoever trusts either is then served: the new key's seal vouches for those before it.
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
        self, key: SealKey, end: _End, entries: list[Entry], next_key: SealKey | None
    ) -> Seal:
        seal = Seal(
            number=end.number + 1,
            after=end.through,
            through=entries[-1].position if entries else end.through,
            count=len(entries),
            root=root_of(map(bytes, entries)),
            previous=end.digest,
            at=self._now(),
            key=key.public,
            next_key=next_key.public if next_key else None,
        )
        return msgspec.structs.replace(seal, signature=key.sign(seal.statement()))

    def _end(self, last: Seal | None) -> _End:
        """The last seal there is; or that which this machine made, if the database lost it: then
        the chain has a hole for ever, which is what happened."""
        seen = self.witness.seen()
        end = _End(last.number, last.digest, last.through) if last else _End(0, FIRST, 0)
        if seen is None or seen.number <= end.number:
            return end
        _log.error("seals_are_missing", after=end.number, last_made_here=seen.number)
        return _End(seen.number, seen.digest, end.through)


def sealer_of(settings: Settings, now: Callable[[], datetime]) -> Sealer:
    return Sealer(settings.seal_key_file, witness_of(settings), now)


def witness_of(settings: Settings) -> Witness:
    return Witness(settings.data_dir / WITNESS_FILE)


async def _entries_beyond(connection: Connection, after: int) -> list[Entry]:
    entries: list[Entry] = []
    while len(entries) < MOST:
        limit = min(CHUNK, MOST - len(entries))
        found = await rows.events(connection, after, rows.NO_END, limit)
        entries += (stored.entry for stored in found)
        if len(found) < limit:
            break
        after = entries[-1].position
        await asyncio.sleep(0)
    return entries
