"""The tables of the read model: one column per field of `application.views` that is not derived.

The type of a column follows from that of the field, and `X | None` may be NULL. Every row is
written whole when it begins, so that columns need no default here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import TypeEngine

from application.views import DERIVED, AttemptView, BatchView, UploadView
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.tracked_positions import READ_MODEL_POSITION, TrackedPosition

SCHEMA = "read_model"
NAME = READ_MODEL_POSITION.name  # in `projections` as well

_TIME = TIMESTAMP(timezone=True)
_PATH = sa.Text(collation="C")  # the same order on every server

metadata = sa.MetaData(schema=SCHEMA)

_TYPES: dict[Any, type[TypeEngine[Any]] | TypeEngine[Any]] = {
    UUID: sa.Uuid,
    str: sa.Text,
    bool: sa.Boolean,
    int: sa.BigInteger,
    float: sa.Double,
    datetime: _TIME,
    dict: JSONB,
}


def _columns(view: type[msgspec.Struct], *different: sa.Column[Any]) -> Iterator[sa.Column[Any]]:
    """Yield the column of each stored field: by the field's type, if it is not a different one."""
    given = {column.name: column for column in different}
    for name, hint in get_type_hints(view).items():
        if name in given:
            yield given[name]
        elif name not in DERIVED:
            alternatives = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
            optional = NoneType in alternatives
            (type,) = alternatives - {NoneType}
            yield sa.Column(name, _TYPES[get_origin(type) or type], nullable=optional)


batches = sa.Table(
    "batches",
    metadata,
    *_columns(
        BatchView,
        # With a default, so that a projector of the version before can write until it is replaced.
        sa.Column("active_at", _TIME, nullable=False, server_default=sa.text("now()")),
    ),
    sa.PrimaryKeyConstraint("id", name="batches_pkey"),
    sa.Index("batches_owner_started_at_id_idx", "owner", "started_at", "id"),
    sa.Index("batches_started_at_id_idx", "started_at", "id"),  # for who sees every owner
    sa.Index(
        "batches_unfinished_idx",
        "started_at",
        "id",
        postgresql_where=sa.text("state <> 'completed'"),
    ),
    sa.Index("batches_position_idx", "position"),
)

uploads = sa.Table(
    "uploads",
    metadata,
    *_columns(
        UploadView,
        sa.Column("path", _PATH, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
    ),
    sa.PrimaryKeyConstraint("id", name="uploads_pkey"),
    sa.Index("uploads_batch_path_id_idx", "batch", "path", "id"),
    sa.Index("uploads_batch_state_path_id_idx", "batch", "state", "path", "id"),
    sa.Index("uploads_batch_position_idx", "batch", "position"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    *_columns(AttemptView, sa.Column("number", sa.Integer, nullable=False)),
    sa.PrimaryKeyConstraint("upload", "number", name="attempts_pkey"),
    sa.Index("attempts_position_idx", "position"),
)

# Which version of the code made the rows, and an epoch that every rebuild changes. This table
# stays where it is when the schema above is swapped.
_bookkeeping = sa.MetaData()

projections = sa.Table(
    "projections",
    _bookkeeping,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("built_at", _TIME, nullable=False),
    sa.PrimaryKeyConstraint("name", name="projections_pkey"),
)

tracking = sa.Table(
    "notification_tracking",  # the library's, made by migration 0001
    sa.MetaData(),
    sa.Column("application_name", sa.Text, primary_key=True),
    sa.Column("notification_id", sa.BigInteger),
)

stored_events = sa.Table(
    "stored_events",  # likewise
    sa.MetaData(),
    sa.Column("originator_id", sa.Uuid, primary_key=True),
    sa.Column("originator_version", sa.BigInteger, primary_key=True),
    sa.Column("topic", sa.Text),
    sa.Column("state", sa.LargeBinary),
    sa.Column("notification_id", sa.BigInteger),
)

# Where rows are written: the live schema, or one that is built beside it.

POSTGRESQL = dialect()  # type: ignore[no-untyped-call]


class ProjectionSchema(msgspec.Struct, frozen=True):
    """A schema with the tables of the read model, and the name its position is tracked under.

    Names are ours, never a user's: they go into statements as they are.
    """

    schema: str
    name: str

    @property
    def position(self) -> TrackedPosition:
        """The position that the rows reflect."""
        return TrackedPosition(self.name)

    @property
    def live(self) -> bool:
        return self.name == NAME


LIVE = ProjectionSchema(SCHEMA, NAME)
NEXT = ProjectionSchema("read_model_next", "read_model_next")


async def create(connection: Connection, target: ProjectionSchema) -> None:
    """Create the empty tables, without the indexes that only readers need, at position 0.

    Tables of the same names, left by a killed build, are dropped first.
    """
    await drop(connection, target)
    async with connection.transaction():
        await connection.execute(f"CREATE SCHEMA {target.schema}".encode())
        for table in _copied(target).sorted_tables:
            await connection.execute(_compiled(CreateTable(table)))
        await target.position.create(connection)


async def create_indexes(connection: Connection, target: ProjectionSchema) -> None:
    """Create the indexes, which is faster with the rows in place, and gather statistics."""
    for table in _copied(target).sorted_tables:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            await connection.execute(_compiled(CreateIndex(index)))
        await connection.execute(f"ANALYZE {target.schema}.{table.name}".encode())


async def drop(connection: Connection, target: ProjectionSchema) -> None:
    """Drop the schema and its tracked position, if they exist."""
    async with connection.transaction():
        await connection.execute(f"DROP SCHEMA IF EXISTS {target.schema} CASCADE".encode())
        await target.position.delete(connection)


def _copied(target: ProjectionSchema) -> sa.MetaData:
    copy = sa.MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(copy, schema=target.schema)
    return copy


def _compiled(statement: CreateTable | CreateIndex) -> bytes:
    return str(statement.compile(dialect=POSTGRESQL)).encode()
