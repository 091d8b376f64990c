"""A log with a history, a sealer of it, and SQL that alters what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from application.append import Append
from application.audit.seals import AuditSeal
from infrastructure.audit.sealer import LastSealFile, Sealer, SealKey, read_key
from infrastructure.audit.verifier import SealVerification, verify_seals
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.connection import Connection
from tests.builders import NOON
from tests.harness import open_log
from tests.infrastructure.event_store.log_support import connected, steps
from tests.support import tamper


@dataclass(frozen=True)
class AuditHarness:
    """Records, seals and checks; the key is in `folder`."""

    url: str
    folder: Path
    log: PostgresEventLog
    connection: Connection
    sealer: Sealer

    async def record(self, *counts: int, stream: UUID | None = None) -> int:
        """Record these numbers of events, each in its own stream; return the last position."""
        position = 0
        for count in counts:
            writes = (steps(stream or uuid4(), None, *range(count)),)
            position = (await self.log.append(Append(writes))).position
        return position

    async def seal(self) -> AuditSeal:
        made = await self.sealer.seal(self.connection)
        assert made is not None
        return made

    async def check(
        self,
        *,
        trusted: Iterable[bytes] = (),
        kept: Iterable[AuditSeal] = (),
        remembers: bool = True,
    ) -> SealVerification:
        """Verify the seals with the key of this machine, or with the keys in `trusted`."""
        return await verify_seals(
            self.connection,
            list(trusted) or [self.key.public],
            seen=self.sealer.witness.seen() if remembers else None,
            published=kept,
        )

    @property
    def key(self) -> SealKey:
        return read_key(self.sealer.key_file)

    def by_hand(self, statement: str, *parameters: object) -> None:
        tamper(self.url, statement, *parameters)


@asynccontextmanager
async def open_audit_harness(url: str, folder: Path) -> AsyncIterator[AuditHarness]:
    async with open_log(url) as log, connected(url) as connection:
        yield AuditHarness(url, folder, log, connection, sealer_in(folder))


def sealer_in(folder: Path) -> Sealer:
    return Sealer(folder / "seal.key", LastSealFile(folder / "seal.last"), lambda: NOON)
