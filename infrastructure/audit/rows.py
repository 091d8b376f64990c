"""The rows of `audit.seals`, and the events that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

import msgspec

from application.audit.entries import Stored
from application.audit.seal import Seal
from infrastructure.postgres.pool import Connection

NO_END = 2**63 - 1  # a position that no event has

FIELDS = tuple(field.name for field in msgspec.structs.fields(Seal))

_SEALS: LiteralString = """SELECT number, after, through, count, root, previous, at, key, next_key,
signature FROM audit.seals"""
_PAGE = f"{_SEALS} WHERE number > %s ORDER BY number LIMIT %s"
_LAST = f"{_SEALS} ORDER BY number DESC LIMIT 1"
_OVER = f"""{_SEALS} WHERE through >= %s AND count > 0
ORDER BY through, number LIMIT 1"""
_REACHING = """SELECT min(number) FROM audit.seals WHERE through > %s"""
_ROTATIONS = f"""{_SEALS}
WHERE next_key IS NOT NULL AND number > %s AND number < %s ORDER BY number LIMIT %s"""
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


async def page(connection: Connection, after: int, limit: int) -> list[Seal]:
    return await _seals(connection, _PAGE, after, limit)


async def last(connection: Connection) -> Seal | None:
    return next(iter(await _seals(connection, _LAST)), None)


async def covering(connection: Connection, position: int) -> Seal | None:
    """The seal over the event at this position, if there is one yet."""
    found = await _seals(connection, _OVER, position)
    return found[0] if found and found[0].after < position else None


async def first_reaching(connection: Connection, position: int) -> int | None:
    """The number of the first seal that reaches beyond this position."""
    row = await (await connection.execute(_REACHING, (position,))).fetchone()
    return row[0] if row else None


async def rotations(connection: Connection, after: int, before: int, limit: int) -> list[Seal]:
    """Seals between these numbers that name another key."""
    return await _seals(connection, _ROTATIONS, after, before, limit)


async def keys(connection: Connection) -> list[tuple[bytes, int]]:
    """Every key that signed, with the number of the first seal that it signed."""
    cursor = await connection.execute(_KEYS, binary=True)
    return [(key, number) for key, number in await cursor.fetchall()]


async def head(connection: Connection) -> int:
    """The position of the last event; 0 for an empty log."""
    row = await (await connection.execute(_HEAD)).fetchone()
    return row[0] if row else 0


async def entries_of(connection: Connection, number: int) -> bytes:
    """The packed entries of a seal; none for one that is gone."""
    row = await (await connection.execute(_ENTRIES, (number,), binary=True)).fetchone()
    return row[0] if row else b""


async def insert(connection: Connection, seal: Seal, entries: bytes) -> None:
    values = [getattr(seal, name) for name in FIELDS]
    await connection.execute(_INSERT, (*values, entries))


async def events(connection: Connection, after: int, through: int, limit: int) -> list[Stored]:
    """Events beyond position `after` and up to `through`, byte for byte."""
    return await _events(connection, _EVENTS, after, through, limit)


async def events_at(connection: Connection, positions: Sequence[int]) -> list[Stored]:
    return await _events(connection, _AT, list(positions))


async def _seals(connection: Connection, query: LiteralString, *parameters: int) -> list[Seal]:
    cursor = await connection.execute(query, parameters, binary=True)
    return [Seal(**dict(zip(FIELDS, row, strict=True))) for row in await cursor.fetchall()]


async def _events(
    connection: Connection, query: LiteralString, *parameters: object
) -> list[Stored]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(query, parameters, prepare=True)
    return [Stored(*row) for row in await cursor.fetchall()]
