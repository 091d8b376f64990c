"""Holds the log against its seals, from the first event to the last that is sealed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from application.audit.chain import Chain, Finding, missing
from application.audit.comparing import Comparison
from application.audit.entries import SIZE, Entry, unpacked
from application.audit.seal import Seal
from application.audit.tree import root_of
from infrastructure.audit import rows
from infrastructure.audit.keys import signed
from infrastructure.audit.witness import Seen
from infrastructure.postgres.pool import Connection

MOST = 100  # findings that are told one by one
PAGE = 100  # seals in memory at a time
CHUNK = 1_000  # events in memory at a time

_UNSEALED = "SELECT count(*) FROM stored_events WHERE notification_id > %s"
_BELOW = -(2**63)  # a position before that of any event


class SealCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What was held against `seals` seals, which reach to position `through`.

    `events` are those under a seal, `unsealed` those under none yet: of these nothing is proven.
    `findings` names up to MOST, the first by position first.
    """

    seals: int
    events: int
    through: int
    unsealed: int
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        return not self.findings


async def check_seals(
    connection: Connection,
    trusted: Collection[bytes],
    *,
    seen: Seen | None = None,
    published: Iterable[Seal] = (),
) -> SealCheck:
    """Checks every seal, and every event that is under one.

    `trusted` are public keys; `seen` is what the machine remembers of the last seal it made,
    `published` the seals that somebody kept, in the order of their numbers. Raises psycopg.Error.
    """
    follower = Chain(trusted, signed)
    findings: list[Finding] = []
    seals = events = 0
    remembered = (Seen(seal.number, seal.digest, seal.through) for seal in published)
    kept = _Kept(chain(remembered, () if seen is None else (seen,)))
    async for seal in _all(connection):
        findings += follower.follow(seal)
        findings += kept.compare(seal)
        findings += await _compared(connection, seal)
        seals, events = seals + 1, events + seal.count
        if len(findings) >= MOST:
            break
    else:
        findings += follower.end()
        findings += kept.rest(follower.last)
    through = follower.last.through if follower.last else 0
    row = await (await connection.execute(_UNSEALED, (through,))).fetchone()
    return SealCheck(
        seals=seals,
        events=events,
        through=through,
        unsealed=row[0] if row else 0,
        findings=sorted(findings, key=lambda finding: finding.position)[:MOST],
    )


class _Kept:
    """Seals that were kept outside of the database, beside those that are in it."""

    def __init__(self, kept: Iterator[Seen]) -> None:
        self._kept = kept
        self._next = next(kept, None)

    def compare(self, seal: Seal) -> Iterator[Finding]:
        while self._next is not None and self._next.number < seal.number:
            self._next = next(self._kept, None)  # the chain tells of those that are missing
        if self._next is not None and self._next.number == seal.number:
            if self._next.digest != seal.digest:
                detail = f"seal {seal.number} is another than the one that was kept outside"
                yield Finding(
                    kind="seal_altered", position=seal.after + 1, seal=seal.number, detail=detail
                )
            self._next = next(self._kept, None)

    def rest(self, last: Seal | None) -> Iterator[Finding]:
        """The seals after the last one in the database."""
        number, through = (last.number, last.through) if last else (0, 0)
        end = number
        while self._next is not None:
            end, self._next = max(end, self._next.number), next(self._kept, None)
        if end > number:
            detail = (
                f"{missing(number + 1, end)} at the end: made, kept outside, and gone from here"
            )
            yield Finding(kind="seal_missing", position=through + 1, seal=number + 1, detail=detail)


async def _all(connection: Connection) -> AsyncIterator[Seal]:
    number = -(2**63)
    while page := await rows.page(connection, number, PAGE):
        for seal in page:
            yield seal
        number = page[-1].number


async def _compared(connection: Connection, seal: Seal) -> Sequence[Finding]:
    """What differs between the events and the entries of a seal, and between those and its root."""
    listed = await rows.entries_of(connection, seal.number)
    entries = list(unpacked(listed)) if len(listed) % SIZE == 0 else []
    comparison = Comparison(seal.number, entries, MOST)
    after = seal.after if seal.after else _BELOW
    while found := await rows.events(connection, after, seal.through, CHUNK):
        for stored in found:
            comparison.take(stored)
        after = found[-1].position
        if comparison.full or len(found) < CHUNK:
            break
    differing = list(comparison.findings())
    if (root_of(map(bytes, entries)), len(entries)) != (seal.root, seal.count):
        differing.append(await _altered_list(connection, seal))
    return differing


async def _altered_list(connection: Connection, seal: Seal) -> Finding:
    """The entries are not those of the root: whoever changed them may have changed events too."""
    entries: list[Entry] = []
    after = seal.after
    while len(entries) <= seal.count:
        found = await rows.events(connection, after, seal.through, CHUNK)
        entries += (stored.entry for stored in found)
        if len(found) < CHUNK:
            break
        after = found[-1].position
    same = (root_of(map(bytes, entries)), len(entries)) == (seal.root, seal.count)
    where = f"positions {seal.after + 1} to {seal.through}"
    detail = (
        f"the list of what seal {seal.number} covers was altered; the events are those it covers"
        if same
        else f"events at {where} were altered, and the list of what seal {seal.number} covers"
        " with them: which ones cannot be told"
    )
    return Finding(kind="list_altered", position=seal.after + 1, seal=seal.number, detail=detail)
