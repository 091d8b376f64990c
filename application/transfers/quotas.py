"""Quotas of owners and batches, limits of concurrent transfers, and reserved free space.

Quotas are soft for a moment: usage is cached for a few seconds, and only what this process admits
is added to it, so that several processes together may admit slightly too much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
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

MIN_USAGE_CACHE_SECONDS = 2.0
CACHE_FACTOR = 50  # usage is cached for this many times the duration of its query
PERMIT_TIMEOUT = 5.0  # seconds that a transfer waits for another one of its owner to end
PERMIT_POLL_INTERVAL = 0.25  # seconds; a transfer may end in another process
CANCEL_POLL_INTERVAL = 0.05  # seconds between checks whether the wait was cancelled
MAX_WAITING_TRANSFERS = 64  # per process; more are rejected at once
MAX_CACHED_USAGES = 4096  # owners and batches


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """Maximum of stored bytes and files; 0 means unlimited."""

    bytes: int = 0
    files: int = 0

    @property
    def unlimited(self) -> bool:
        return not self.bytes and not self.files

    def exceeded_by(self, bytes: int, files: int) -> str | None:
        """Return the limit that would be exceeded as a text, or None."""
        if self.bytes and bytes > self.bytes:
            return f"{self.bytes} bytes"
        if self.files and files > self.files:
            return f"{self.files} files"
        return None


WITHOUT_LIMIT = Quota()


class Quotas:
    """Admission of files before their first byte, and of bodies before each transfer."""

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
        self._limiter = slots
        self._waiting = 0

    @property
    def unlimited(self) -> bool:
        """True if no quota applies to the registration of a file."""
        return self._owner.unlimited and self._batch.unlimited

    async def admit(self, owner: str, batch: UUID | None, size: int, files: int = 1) -> None:
        """Admit `files` files of `size` bytes in total, all or none of them.

        `batch` is None for a standalone file. Raises BatchFull, QuotaExceeded, Unavailable.
        """
        if error := _admission_error(await self._usages(owner, batch), size, files):
            raise error

    async def admit_each(
        self, owner: str, batch: UUID, sizes: Sequence[int]
    ) -> list[BatchFull | QuotaExceeded | None]:
        """Return the error that each file is rejected with, in order; None for an admitted one.

        Raises Unavailable.
        """
        entries = await self._usages(owner, batch)
        return [_admission_error(entries, size, 1) for size in sizes]

    async def require(self, owner: str, batch: UUID, more: int) -> None:
        """Check the quotas before a body of a registered file, of `more` undeclared bytes.

        This detects that too much was admitted, by several processes at once or before a limit
        was lowered. Raises BatchFull, QuotaExceeded, Unavailable.
        """
        for entry, quota, error in await self._usages(owner, batch):
            if excess := quota.exceeded_by(entry.bytes + more, entry.files):
                raise error(excess)

    def transfer_permit(
        self, owner: str, still_wanted: Callable[[], None] = lambda: None
    ) -> AbstractAsyncContextManager[None]:
        """Hold one of the owner's concurrent transfers.

        Waits up to PERMIT_TIMEOUT for another transfer to end: tus clients retry only a few times.
        `still_wanted` raises to cancel the wait; it is called every CANCEL_POLL_INTERVAL. Raises
        TooManyTransfers, Unavailable.
        """
        return self._limited_permit(owner, still_wanted) if self._transfers else nullcontext()

    @asynccontextmanager
    async def _limited_permit(
        self, owner: str, still_wanted: Callable[[], None]
    ) -> AsyncIterator[None]:
        permit = await self._limiter.acquire(owner, self._transfers)
        if permit is None and self._waiting < MAX_WAITING_TRANSFERS:
            permit = await self._wait_for_permit(owner, still_wanted)
        if permit is None:
            raise TooManyTransfers(self._transfers)
        try:
            yield
        finally:
            await permit.release()

    async def _wait_for_permit(
        self, owner: str, still_wanted: Callable[[], None]
    ) -> TransferPermit | None:
        """Return a permit that became free within PERMIT_TIMEOUT, or None."""
        self._waiting += 1
        try:
            for _ in range(round(PERMIT_TIMEOUT / PERMIT_POLL_INTERVAL)):
                for _ in range(round(PERMIT_POLL_INTERVAL / CANCEL_POLL_INTERVAL)):
                    still_wanted()
                    await asyncio.sleep(CANCEL_POLL_INTERVAL)
                still_wanted()
                if permit := await self._limiter.acquire(owner, self._transfers):
                    return permit
            return None
        finally:
            self._waiting -= 1

    async def _usages(self, owner: str, batch: UUID | None) -> _Accounts:
        found: _Accounts = []
        if batch is not None and not self._batch.unlimited:
            entry = await self._usage_of(batch, lambda: self._usage.of_batch(batch))
            found.append((entry, self._batch, BatchFull))
        if not self._owner.unlimited:
            entry = await self._usage_of(owner, lambda: self._usage.of_owner(owner))
            found.append((entry, self._owner, QuotaExceeded))
        return found

    async def _usage_of(
        self, key: str | UUID, query: Callable[[], Awaitable[StorageUsage]]
    ) -> _UsageEntry:
        known, now = self._known.pop(key, None), self._clock()
        if known is None or now >= known.until:
            usage = await query()
            queried = self._clock()
            kept = max(MIN_USAGE_CACHE_SECONDS, CACHE_FACTOR * (queried - now))
            known = _UsageEntry(bytes=usage.bytes, files=usage.files, until=queried + kept)
        self._known[key] = known  # at the end: the longest unused one is the first
        while len(self._known) > MAX_CACHED_USAGES:
            del self._known[next(iter(self._known))]
        return known


class _UsageEntry(msgspec.Struct):
    """Cached usage, and what was admitted since it was queried."""

    bytes: int
    files: int
    until: float


_Accounts: TypeAlias = list[tuple[_UsageEntry, Quota, Callable[[str], "BatchFull | QuotaExceeded"]]]


def _admission_error(entries: _Accounts, size: int, files: int) -> BatchFull | QuotaExceeded | None:
    """Return the error that rejects the files, or None and count them as admitted."""
    for entry, quota, error in entries:
        if excess := quota.exceeded_by(entry.bytes + size, entry.files + files):
            return error(excess)
    for entry, _, _ in entries:
        entry.bytes += size
        entry.files += files
    return None


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
    return {file.path: str(error) for file, error in zip(new, refusals, strict=True) if error}


FREE_SPACE_CACHE_SECONDS = 1.0


class FreeSpaceGuard:
    """Rejects bodies that would use the reserved free space. Admitted bodies are not counted."""

    def __init__(self, blobs: BlobStore, reserve: int, clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._reserve = reserve
        self._clock = clock
        self._free: int | None = None
        self._asked: float | None = None

    async def require(self, size: int) -> None:
        """Raise StorageFull unless `size` bytes fit and the reserve stays free."""
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
