"""Where rows are written: the live schema, or one that is built beside it."""

from __future__ import annotations

import msgspec
from sqlalchemy import MetaData
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from infrastructure.postgres.pool import Connection
from infrastructure.read_model.tables import NAME, SCHEMA, metadata

POSTGRESQL = dialect()  # type: ignore[no-untyped-call]


class Target(msgspec.Struct, frozen=True):
    """A schema with the tables of the read model, and the name its position is tracked under.

    Names are ours, never a user's: they go into statements as they are.
    """

    schema: str
    name: str

    @property
    def live(self) -> bool:
        return self.name == NAME


LIVE = Target(SCHEMA, NAME)
NEXT = Target("read_model_next", "read_model_next")


async def create(connection: Connection, target: Target) -> None:
    """Makes the empty tables, without the indexes that only readers need, at position 0.

    What a build that was killed has left under these names is dropped first.
    """
    await drop(connection, target)
    async with connection.transaction():
        await connection.execute(f"CREATE SCHEMA {target.schema}".encode())
        for table in _copied(target).sorted_tables:
            await connection.execute(_compiled(CreateTable(table)))
        await connection.execute("INSERT INTO notification_tracking VALUES (%s, 0)", (target.name,))


async def create_indexes(connection: Connection, target: Target) -> None:
    """Adds the indexes, which is quicker once the rows are there, and gathers statistics."""
    for table in _copied(target).sorted_tables:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            await connection.execute(_compiled(CreateIndex(index)))
        await connection.execute(f"ANALYZE {target.schema}.{table.name}".encode())


async def drop(connection: Connection, target: Target) -> None:
    """Removes the schema and its tracked position, if they are there."""
    async with connection.transaction():
        await connection.execute(f"DROP SCHEMA IF EXISTS {target.schema} CASCADE".encode())
        await connection.execute(
            "DELETE FROM notification_tracking WHERE application_name = %s", (target.name,)
        )


def _copied(target: Target) -> MetaData:
    copy = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(copy, schema=target.schema)
    return copy


def _compiled(statement: CreateTable | CreateIndex) -> bytes:
    return str(statement.compile(dialect=POSTGRESQL)).encode()
