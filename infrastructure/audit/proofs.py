"""The port `Seals`: pages of seals, and exports that anybody can check without us."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias
from weakref import WeakValueDictionary

from application.audit.entries import Entry, Stored, unpacked
from application.audit.export import EventLine, Line, SealLine, event_line
from application.audit.seal import Seal
from application.audit.tree import Tree
from application.ports.seals import Prover, SigningKey
from infrastructure.audit import rows
from infrastructure.audit.keys import public_pem
from infrastructure.postgres.pool import Connection, Pool, borrowed

CHUNK = 250  # events in memory at a time
PAGE = 100  # seals


class PostgresSeals:
    """Asks through the pool; no connection is held while a reader takes its time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # While they are in use: exports that go on at the same time are likely to share them.
        self._trees: Trees = WeakValueDictionary()

    async def page(self, after: int, limit: int) -> Sequence[Seal]:
        async with asking(self._pool) as connection:
            return await rows.page(connection, after, limit)

    async def keys(self) -> Sequence[SigningKey]:
        async with asking(self._pool) as connection:
            found, last = await rows.keys(connection), await rows.last(connection)
        keys = [SigningKey(key, number, public_pem(key)) for key, number in found]
        if last is not None and last.next_key is not None:
            keys.append(SigningKey(last.next_key, last.number + 1, public_pem(last.next_key)))
        return keys

    async def whole(self, after: int) -> AsyncIterator[Sequence[Line]]:
        async with asking(self._pool) as connection:
            number = await rows.first_reaching(connection, after)
            last = await rows.last(connection)
        reached = last.through if last and number is None else 0
        while number is not None:
            async with asking(self._pool) as connection:
                seals = await rows.page(connection, number - 1, 1)
                entries = await rows.entries_of(connection, seals[0].number) if seals else b""
            if not seals:
                break
            (seal,) = seals
            yield [SealLine(seal=seal, entries=entries)]
            async for found in self._events(seal.after, seal.through):
                yield [event_line(stored) for stored in found]
            reached, number = seal.through, seal.number + 1
        async with asking(self._pool) as connection:
            head = await rows.head(connection)  # what comes later is for the next export
        async for found in self._events(reached, head):
            yield [event_line(stored) for stored in found]

    def proofs(self) -> Prover:
        return _Prover(self._pool, self._trees)

    async def _events(self, after: int, through: int) -> AsyncIterator[list[Stored]]:
        while after < through:
            async with asking(self._pool) as connection:
                found = await rows.events(connection, after, through, CHUNK)
            if not found:
                return
            yield found
            after = found[-1].position


class _SealTree:
    """The tree of a seal and the places of events in it: memory in proportion to the seal."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.tree = Tree(map(bytes, entries))
        self.places = {entry.position: index for index, entry in enumerate(entries)}


Trees: TypeAlias = WeakValueDictionary[int, _SealTree]


class _Prover:
    """Keeps the tree of the last seal: the next event is likely to be under it as well."""

    def __init__(self, pool: Pool, trees: Trees) -> None:
        self._pool = pool
        self._trees = trees
        self._seal: Seal | None = None
        self._under = _SealTree(())
        self._told = 0  # the last seal that was told
        self._sealed = True  # until an event is under no seal yet, and then those after it

    async def prove(self, positions: Sequence[int]) -> Sequence[Line]:
        lines: list[Line] = []
        async with asking(self._pool) as connection:
            for stored in await rows.events_at(connection, positions):
                beyond = self._seal is None or stored.position > self._seal.through
                if beyond and self._sealed:
                    lines += await self._turn_to(connection, stored.position)
                lines.append(self._line(stored))
        return lines

    async def _turn_to(self, connection: Connection, position: int) -> list[Line]:
        """The seal over this position, after those that say which key was next."""
        self._seal = seal = await rows.covering(connection, position)
        if seal is None:
            self._sealed = False
            return []
        under = self._trees.get(seal.number)
        if under is None:
            under = _SealTree(list(unpacked(await rows.entries_of(connection, seal.number))))
            self._trees[seal.number] = under
        self._under = under
        told: list[Seal] = []
        while page := await rows.rotations(connection, self._told, seal.number, PAGE):
            told += page
            self._told = page[-1].number
        self._told = seal.number
        return [SealLine(seal=one) for one in (*told, seal)]

    def _line(self, stored: Stored) -> EventLine:
        if self._seal is None:
            return event_line(stored)
        index = self._under.places.get(stored.position)
        path = () if index is None else self._under.tree.path(index)
        # One that was put in later has no place: it is told as what it is, and does not hold.
        return event_line(
            stored, seal=self._seal.number, index=-1 if index is None else index, path=path
        )


@asynccontextmanager
async def asking(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for questions. Raises Unavailable."""
    async with borrowed(pool) as connection:
        yield connection
