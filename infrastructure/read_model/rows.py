"""Writes folded changes as rows: one statement for all rows that assign the same columns.

The rows of a statement travel as one JSON text that PostgreSQL takes apart; that costs this
process a fifth of what binding every value would (docs/decisions/0003-read-model.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import Column

from application.projection import FoldedChanges, MergedColumns, Table
from application.views import AttemptView, BatchView, UploadView
from infrastructure.postgres.pool import Connection, Cursor
from infrastructure.read_model.tables import SCHEMA, metadata
from infrastructure.read_model.targets import POSTGRESQL, Target

Statement: TypeAlias = tuple[bytes, list[Any]]
"""A statement, and the rows it takes as JSON."""


class Written(NamedTuple):
    """Rows that were sent; those to be updated may not all have been there."""

    cursor: Cursor
    sent: int

    @property
    def missing(self) -> int:
        return self.sent - self.cursor.rowcount


_VIEWS = {"batches": BatchView, "uploads": UploadView, "attempts": AttemptView}
_encode = msgspec.json.Encoder().encode


async def write_rows(
    connection: Connection, target: Target, folded: FoldedChanges
) -> list[Written]:
    """Writes every row; how many were there to be written is known once the pipeline ends.

    The caller begins and commits, and may have opened a pipeline. Raises psycopg.Error.
    """
    return [
        Written(await connection.execute(query, (_encode(rows).decode(),)), len(rows))
        for query, rows in _statements(target.schema, folded)
    ]


def _statements(schema: str, folded: FoldedChanges) -> Iterator[Statement]:
    for table, changes in folded.tables.items():
        view = _VIEWS[table]
        if changes.created:
            # The view knows what a column is that its first event does not name.
            yield _insert(schema, table), [view(**row) for row in changes.created.values()]
        for columns, rows in _alike(changes.updated.values()):
            yield _update(schema, table, columns), rows


def _alike(rows: Iterable[MergedColumns]) -> Iterable[tuple[frozenset[str], list[MergedColumns]]]:
    """The rows by the columns they assign: a few dozen kinds, however many rows."""
    groups: dict[frozenset[str], list[MergedColumns]] = {}
    for row in rows:
        groups.setdefault(frozenset(row), []).append(row)
    return groups.items()


@lru_cache
def _insert(schema: str, table: Table) -> bytes:
    types = _types(table)
    names = ", ".join(types)
    return (
        f"INSERT INTO {schema}.{table} ({names})"  # noqa: S608 - our own names
        f" SELECT {names} FROM json_to_recordset(%s) AS given ({_declared(types)})"
    ).encode()


@lru_cache(maxsize=1024)
def _update(schema: str, table: Table, columns: frozenset[str]) -> bytes:
    types = {name: type for name, type in _types(table).items() if name in columns}
    key = _key(table)
    assigned = ", ".join(f"{name} = given.{name}" for name in types if name not in key)
    same = " AND ".join(f"live.{name} = given.{name}" for name in key)
    return (
        f"UPDATE {schema}.{table} AS live SET {assigned}"  # noqa: S608 - our own names
        f" FROM json_to_recordset(%s) AS given ({_declared(types)}) WHERE {same}"
    ).encode()


@lru_cache
def _types(table: Table) -> Mapping[str, str]:
    columns = metadata.tables[f"{SCHEMA}.{table}"].columns
    return {column.name: _type(column) for column in columns}


def _type(column: Column[Any]) -> str:
    return column.type.compile(POSTGRESQL).partition(" COLLATE")[0]


@lru_cache
def _key(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in metadata.tables[f"{SCHEMA}.{table}"].primary_key)


def _declared(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {type}" for name, type in types.items())
