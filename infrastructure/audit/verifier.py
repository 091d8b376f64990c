"""Bounded collection of findings about derived tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from itertools import chain
from typing import TypeAlias
from weakref import WeakValueDictionary

import msgspec

from application.audit.derived import MAX_FINDINGS, DerivedFinding, DerivedKind
from application.audit.export import ExportedEvent, ExportedSeal, Line, event_line
from application.audit.merkle import (
    SIZE,
    MerkleTree,
    SealedEntry,
    StoredEventRow,
    merkle_root,
    unpack_entries,
)
from application.audit.seals import (
    AuditSeal,
    ExternalSeal,
    ExternalSeals,
    Finding,
    SealChain,
    SealDiff,
)
from application.ports.audit import ProofBuilder, SigningKey
from infrastructure.audit import sealer
from infrastructure.audit.sealer import LastSeal, public_pem, verify_signature
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool


class Findings:
    """Collector of the first MAX_FINDINGS findings; later ones are dropped."""

    def __init__(self) -> None:
        self.found: list[DerivedFinding] = []

    def add(self, kind: DerivedKind, table: str, key: object, detail: str) -> None:
        if len(self.found) < MAX_FINDINGS:
            self.found.append(DerivedFinding(kind=kind, table=table, key=str(key), detail=detail))


def difference(name: str, found: object, expected: object) -> str:
    """Return the text for a column that differs: its value and the value from the log."""
    return f"{name} is {_short(found)}, the log says {_short(expected)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# The port `Seals`: pages of seals, and exports that can be verified without this server.

EVENTS_PER_EXPORT_CHUNK = 250  # events in memory at a time
SEALS_PER_QUERY = 100  # seals


class PostgresSeals:
    """The port `Seals`; no connection is held while a reader is slow."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # While they are in use: exports that go on at the same time are likely to share them.
        self._trees: Trees = WeakValueDictionary()

    async def page(self, after: int, limit: int) -> Sequence[AuditSeal]:
        async with self._pool.connection() as connection:
            return await sealer.page(connection, after, limit)

    async def keys(self) -> Sequence[SigningKey]:
        async with self._pool.connection() as connection:
            found, last = await sealer.keys(connection), await sealer.read_last_seal(connection)
        keys = [SigningKey(key, number, public_pem(key)) for key, number in found]
        if last is not None and last.next_key is not None:
            keys.append(SigningKey(last.next_key, last.number + 1, public_pem(last.next_key)))
        return keys

    async def export_chunks(self, after: int) -> AsyncIterator[Sequence[Line]]:
        async with self._pool.connection() as connection:
            number = await sealer.first_seal_after(connection, after)
            last = await sealer.read_last_seal(connection)
        reached = last.through if last and number is None else 0
        while number is not None:
            async with self._pool.connection() as connection:
                seals = await sealer.page(connection, number - 1, 1)
                entries = await sealer.entries_of(connection, seals[0].number) if seals else b""
            if not seals:
                break
            (seal,) = seals
            yield [ExportedSeal(seal=seal, entries=entries)]
            async for found in self._events(seal.after, seal.through):
                yield [event_line(stored) for stored in found]
            reached, number = seal.through, seal.number + 1
        async with self._pool.connection() as connection:
            head = await sealer.head(connection)  # what comes later is for the next export
        async for found in self._events(reached, head):
            yield [event_line(stored) for stored in found]

    def proofs(self) -> ProofBuilder:
        return _Prover(self._pool, self._trees)

    async def _events(self, after: int, through: int) -> AsyncIterator[list[StoredEventRow]]:
        while after < through:
            async with self._pool.connection() as connection:
                found = await sealer.events(connection, after, through, EVENTS_PER_EXPORT_CHUNK)
            if not found:
                return
            yield found
            after = found[-1].position


class _SealTree:
    """Merkle tree of a seal and the indexes of its events: memory in proportion to the seal."""

    def __init__(self, entries: Sequence[SealedEntry]) -> None:
        self.tree = MerkleTree(map(bytes, entries))
        self.places = {entry.position: index for index, entry in enumerate(entries)}


Trees: TypeAlias = WeakValueDictionary[int, _SealTree]


class _Prover:
    """Maker of proofs that keeps the tree of the last seal, which often covers the next event."""

    def __init__(self, pool: Pool, trees: Trees) -> None:
        self._pool = pool
        self._trees = trees
        self._seal: AuditSeal | None = None
        self._under = _SealTree(())
        self._sent = 0  # number of the last seal that was sent
        self._sealed = True  # until an event is beyond the last seal, and then those after it

    async def proofs_for(self, positions: Sequence[int]) -> Sequence[Line]:
        lines: list[Line] = []
        async with self._pool.connection() as connection:
            for stored in await sealer.events_at(connection, positions):
                beyond = self._seal is None or stored.position > self._seal.through
                if beyond and self._sealed:
                    lines += await self._turn_to(connection, stored.position)
                lines.append(self._line(stored))
        return lines

    async def _turn_to(self, connection: Connection, position: int) -> list[Line]:
        """Return the seal over this position, after the seals that announce the next key."""
        seal = await sealer.first_seal_reaching(connection, position)
        self._sealed = seal is not None
        if seal is None or seal.after >= position:
            self._seal = None  # in a gap of the chain, the next event may be under a seal again
            return []
        self._seal = seal
        under = self._trees.get(seal.number)
        if under is None:
            under = _SealTree(
                list(unpack_entries(await sealer.entries_of(connection, seal.number)))
            )
            self._trees[seal.number] = under
        self._under = under
        rotations: list[AuditSeal] = []
        while page := await sealer.rotations(connection, self._sent, seal.number, SEALS_PER_QUERY):
            rotations += page
            self._sent = page[-1].number
        self._sent = seal.number
        return [ExportedSeal(seal=one) for one in (*rotations, seal)]

    def _line(self, stored: StoredEventRow) -> ExportedEvent:
        if self._seal is None:
            return event_line(stored)
        index = self._under.places.get(stored.position)
        path = () if index is None else self._under.tree.path(index)
        # An event that was inserted later has no leaf in the tree: it is exported with index -1
        # and fails verification.
        return event_line(
            stored, seal=self._seal.number, index=-1 if index is None else index, path=path
        )


# Comparison of the log with its seals, from the first event to the last sealed one.

SEALS_PER_PAGE = 100  # seals in memory at a time
EVENTS_PER_CHUNK = 1_000  # events in memory at a time

_UNSEALED = "SELECT count(*) FROM stored_events WHERE notification_id > %s"
_BELOW = -(2**63)  # a position before that of any event


class SealVerification(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the comparison of events with `seals` seals, which reach position `through`.

    `events` counts the sealed ones, `unsealed` those without a seal yet, of which nothing is
    proven. `findings` lists the first ones by position, up to a maximum.
    """

    seals: int
    events: int
    through: int
    unsealed: int
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        return not self.findings


async def verify_seals(
    connection: Connection,
    trusted: Collection[bytes],
    *,
    seen: LastSeal | None = None,
    published: Iterable[AuditSeal] = (),
) -> SealVerification:
    """Verify every seal and every sealed event.

    `trusted` are public keys; `seen` is the last seal in this machine's file, `published` are
    seals kept outside, in the order of their numbers. Raises psycopg.Error.
    """
    follower = SealChain(trusted, verify_signature)
    findings: list[Finding] = []
    seals = events = 0
    remembered = (ExternalSeal(seal.number, seal.digest, seal.through) for seal in published)
    here = () if seen is None else (ExternalSeal(seen.number, seen.digest, seen.through),)
    kept = ExternalSeals(chain(remembered, here))
    async for seal in _all(connection):
        findings += follower.append(seal)
        findings += kept.compare(seal)
        findings += await _compared(connection, seal)
        seals, events = seals + 1, events + seal.count
        if len(findings) >= MAX_FINDINGS:
            break
    else:
        findings += follower.end()
        findings += kept.rest(follower.last)
    through = follower.last.through if follower.last else 0
    row = await (await connection.execute(_UNSEALED, (through,))).fetchone()
    return SealVerification(
        seals=seals,
        events=events,
        through=through,
        unsealed=row[0] if row else 0,
        findings=sorted(findings, key=lambda finding: finding.position)[:MAX_FINDINGS],
    )


async def _all(connection: Connection) -> AsyncIterator[AuditSeal]:
    """Yield the seals by number. One that is there twice, without its primary key, comes twice."""
    number = -(2**63)
    while page := await sealer.page(connection, number, SEALS_PER_PAGE):
        for seal in page:
            yield seal
        number = page[-1].number
        if len(page) == SEALS_PER_PAGE:  # its copies may be on the next page
            for copy in await sealer.copies(
                connection, number, skipped=sum(s.number == number for s in page)
            ):
                yield copy


async def _compared(connection: Connection, seal: AuditSeal) -> Sequence[Finding]:
    """Yield differences of events to the entries of a seal, and of these to its root."""
    listed = await sealer.entries_of(connection, seal.number)
    entries = list(unpack_entries(listed)) if len(listed) % SIZE == 0 else []
    comparison = SealDiff(seal.number, entries, MAX_FINDINGS)
    after = seal.after if seal.after else _BELOW
    while found := await sealer.events(connection, after, seal.through, EVENTS_PER_CHUNK):
        for stored in found:
            comparison.take(stored)
        after = found[-1].position
        if comparison.full or len(found) < EVENTS_PER_CHUNK:
            break
    differing = list(comparison.findings())
    if (merkle_root(map(bytes, entries)), len(entries)) != (seal.root, seal.count):
        differing.append(await _altered_list(connection, seal))
    return differing


async def _altered_list(connection: Connection, seal: AuditSeal) -> Finding:
    """Return the finding that the entries do not have the root: events may be altered, too."""
    entries: list[SealedEntry] = []
    after = seal.after
    while len(entries) <= seal.count:
        found = await sealer.events(connection, after, seal.through, EVENTS_PER_CHUNK)
        entries += (stored.entry for stored in found)
        if len(found) < EVENTS_PER_CHUNK:
            break
        after = found[-1].position
    same = (merkle_root(map(bytes, entries)), len(entries)) == (seal.root, seal.count)
    where = f"positions {seal.after + 1} to {seal.through}"
    detail = (
        f"the list of what seal {seal.number} covers was altered; the events are those it covers"
        if same
        else f"events at {where} were altered, and the list of what seal {seal.number} covers"
        " with them: which ones cannot be told"
    )
    return Finding(kind="list_altered", position=seal.after + 1, seal=seal.number, detail=detail)
