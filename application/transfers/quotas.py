"""How much an owner may keep, how much a batch may hold, how many transfers may run at once.

Quotas are soft by a moment: figures are remembered for a few seconds, to which only what this
process admits is added, so that several processes may together admit a little too much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias
from uuid import UUID

import msgspec

from application.errors import StorageFull
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog
from application.ports.limits import StorageUsage, TransferLimiter, TransferPermit, Usage
from application.transfers.errors import BatchFull, QuotaExceeded, TooManyTransfers
from domain.file import FileDeclaration, validate_declaration
from domain.ids import upload_id_for

KEPT = 2.0  # seconds at least for which figures are not asked for again
WORTH = 50  # times as long as it took to ask for them, they are kept
SLOT_WAIT = 5.0  # seconds that a transfer waits for one of its owner to end
SLOT_POLL = 0.25  # seconds between two looks: a transfer may end in another process
SLOT_LOOK = 0.05  # seconds between two looks at whether the wait is still wanted
MAX_WAITING = 64  # transfers of this process that wait; more are refused at once
REMEMBERED = 4096  # owners and batches at most whose figures are remembered


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What may be kept; 0 is without limit."""

    bytes: int = 0
    files: int = 0

    @property
    def unlimited(self) -> bool:
        return not self.bytes and not self.files

    def exceeded_by(self, bytes: int, files: int) -> str | None:
        """What there would be too much of, with its limit; None where all is well."""
        if self.bytes and bytes > self.bytes:
            return f"{self.bytes} bytes"
        if self.files and files > self.files:
            return f"{self.files} files"
        return None


WITHOUT_LIMIT = Quota()


class Quotas:
    """Asked before the first byte, and again before each body."""

    def __init__(
        self,
        usage: Usage,
        clock: Callable[[], float],
        *,
        slots: TransferLimiter,
        owner: Quota = WITHOUT_LIMIT,
        batch: Quota = WITHOUT_LIMIT,
        transfers: int = 0,
    ) -> None:
        self._usage = usage
        self._clock = clock
        self._owner = owner
        self._batch = batch
        self._transfers = transfers
        self._known: dict[str | UUID, _UsageEntry] = {}
        self._slots = slots
        self._waiting = 0

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to ask for before a file is registered."""
        return self._owner.unlimited and self._batch.unlimited

    async def admit(self, owner: str, batch: UUID | None, size: int, files: int = 1) -> None:
        """So many files, of `size` bytes together, are to be registered, all or none of them.

        `batch` is None where a file gets its own. Raises BatchFull, QuotaExceeded, Unavailable.
        """
        if refusal := _refusal(await self._accounts(owner, batch), size, files):
            raise refusal

    async def admit_each(
        self, owner: str, batch: UUID, sizes: Sequence[int]
    ) -> list[BatchFull | QuotaExceeded | None]:
        """What each of these files is refused for, in their order; None for those admitted.

        Raises Unavailable.
        """
        accounts = await self._accounts(owner, batch)
        return [_refusal(accounts, size, 1) for size in sizes]

    async def require(self, owner: str, batch: UUID, more: int) -> None:
        """Bytes are to arrive for a file that is registered: `more` than it declared.

        Here it shows if too much was admitted: by several processes at once, or before somebody
        lowered the limits. Raises BatchFull, QuotaExceeded, Unavailable.
        """
        for account, allowance, refusal in await self._accounts(owner, batch):
            if excess := allowance.exceeded_by(account.bytes + more, account.files):
                raise refusal(excess)

    @asynccontextmanager
    async def transferring(
        self, owner: str, still_wanted: Callable[[], None] = lambda: None
    ) -> AsyncIterator[None]:
        """While a body of this owner arrives here.

        Waits a few seconds for another transfer to end: clients of tus try only a few times.
        `still_wanted` raises where the wait is not, and is asked every SLOT_LOOK seconds. Raises
        TooManyTransfers, Unavailable.
        """
        if not self._transfers:
            yield
            return
        slot = await self._slots.take(owner, self._transfers)
        if slot is None and self._waiting < MAX_WAITING:
            slot = await self._wait_for_slot(owner, still_wanted)
        if slot is None:
            raise TooManyTransfers(self._transfers)
        try:
            yield
        finally:
            await slot.release()

    async def _wait_for_slot(
        self, owner: str, still_wanted: Callable[[], None]
    ) -> TransferPermit | None:
        """A slot that became free within SLOT_WAIT seconds, or None."""
        self._waiting += 1
        try:
            for _ in range(round(SLOT_WAIT / SLOT_POLL)):
                for _ in range(round(SLOT_POLL / SLOT_LOOK)):
                    still_wanted()
                    await asyncio.sleep(SLOT_LOOK)
                still_wanted()
                if slot := await self._slots.take(owner, self._transfers):
                    return slot
            return None
        finally:
            self._waiting -= 1

    async def _accounts(self, owner: str, batch: UUID | None) -> _Accounts:
        found: _Accounts = []
        if batch is not None and not self._batch.unlimited:
            account = await self._account(batch, lambda: self._usage.of_batch(batch))
            found.append((account, self._batch, BatchFull))
        if not self._owner.unlimited:
            account = await self._account(owner, lambda: self._usage.of_owner(owner))
            found.append((account, self._owner, QuotaExceeded))
        return found

    async def _account(
        self, key: str | UUID, ask: Callable[[], Awaitable[StorageUsage]]
    ) -> _UsageEntry:
        known, now = self._known.pop(key, None), self._clock()
        if known is None or now >= known.until:
            used = await ask()
            asked = self._clock()
            kept = max(KEPT, WORTH * (asked - now))
            known = _UsageEntry(bytes=used.bytes, files=used.files, until=asked + kept)
        self._known[key] = known  # at the end: the longest unused one is the first
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return known


class _UsageEntry(msgspec.Struct):
    """What was used when somebody asked, and what was admitted since."""

    bytes: int
    files: int
    until: float


_Accounts: TypeAlias = list[tuple[_UsageEntry, Quota, Callable[[str], "BatchFull | QuotaExceeded"]]]


def _refusal(accounts: _Accounts, size: int, files: int) -> BatchFull | QuotaExceeded | None:
    """What keeps the files out; where nothing does they are counted from now on."""
    for account, allowance, refusal in accounts:
        if excess := allowance.exceeded_by(account.bytes + size, account.files + files):
            return refusal(excess)
    for account, _, _ in accounts:
        account.bytes += size
        account.files += files
    return None


# Files that are declared in a list, long before their bytes come: is there room for them?


async def files_over_quota(
    log: EventLog, quotas: Quotas, batch: UUID, files: Sequence[FileDeclaration], max_size: int
) -> dict[str, str]:
    """Return, by path, the quota that a file would exceed. The others are counted from now on.

    A file that the batch knows is counted already; one that will be rejected anyway is not.
    Raises NotFound, Unavailable.
    """
    if quotas.unlimited:
        return {}
    sound = {
        upload_id_for(batch, file.path, log.id_secret): file
        for file in files
        if (file.size or 0) <= max_size and not any(validate_declaration(file))
    }
    known = await log.versions(list(sound))
    new = [file for id, file in sound.items() if id not in known]
    owner = (await log.batch(batch)).owner
    refusals = await quotas.admit_each(owner, batch, [file.size or 0 for file in new])
    return {file.path: str(refusal) for file, refusal in zip(new, refusals, strict=True) if refusal}


# Whether there is room for what is about to arrive, asked before its first byte.

FREE_SPACE_CACHE_SECONDS = 1.0  # seconds for which the store is not asked again


class FreeSpaceGuard:
    """Keeps a reserve free in the store. What is promised to others is not counted."""

    def __init__(self, blobs: BlobStore, reserve: int, clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._reserve = reserve
        self._clock = clock
        self._free: int | None = None
        self._asked: float | None = None

    async def require(self, size: int) -> None:
        """Raises StorageFull unless `size` bytes fit and the reserve stays free."""
        now = self._clock()
        if self._asked is None or now - self._asked > FREE_SPACE_CACHE_SECONDS:
            self._free, self._asked = await self._blobs.free_bytes(), now
        if self._free is not None and self._free < size + self._reserve:
            free = max(0, self._free - self._reserve)
            raise StorageFull(f"there is no room for {size} bytes: {free} may be stored", free)

    @asynccontextmanager
    async def with_free_bytes(self) -> AsyncIterator[None]:
        """Add the free space to a StorageFull that the store raises in this context."""
        try:
            yield
        except StorageFull as full:
            if full.free is None:
                free = await self._blobs.free_bytes()
                full.free = None if free is None else max(0, free - self._reserve)
            raise
