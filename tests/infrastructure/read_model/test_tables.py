from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from application.projection import VERSION
from application.views import DERIVED, AttemptView, BatchView, UploadView
from infrastructure.postgres.connection import connect
from infrastructure.read_model.tables import (
    NEXT,
    attempts,
    batches,
    create,
    create_indexes,
    metadata,
    projections,
    uploads,
)
from tests.support import with_database


@pytest.mark.parametrize(
    ("table", "view"), [(batches, BatchView), (uploads, UploadView), (attempts, AttemptView)]
)
def test_a_table_has_a_column_for_every_stored_field_of_its_view(table: Any, view: Any) -> None:
    stored = tuple(name for name in view.__struct_fields__ if name not in DERIVED)
    assert tuple(table.columns.keys()) == stored


def test_the_migration_makes_the_tables_that_the_code_describes(database_url: str) -> None:
    assert differences(database_url, metadata, "read_model") == []
    assert differences(database_url, projections.metadata, None) == []


async def test_a_rebuild_makes_the_same_tables(database_url: str) -> None:
    connection = await connect(database_url, name="test")
    await create(connection, NEXT)
    await create_indexes(connection, NEXT)
    await connection.execute("DROP SCHEMA read_model CASCADE")
    await connection.execute("ALTER SCHEMA read_model_next RENAME TO read_model")
    await connection.close()

    assert differences(database_url, metadata, "read_model") == []


def test_a_new_database_is_of_the_current_version(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        assert [row.version for row in connection.execute(projections.select())] == [VERSION]
    engine.dispose()


def differences(url: str, model: Any, schema: str | None) -> list[Any]:
    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == schema
        return kind != "table" or schema is not None or name == "projections"

    options = {
        "include_schemas": True,
        "include_name": ours,
        "compare_type": True,
        "compare_server_default": True,
    }
    engine = create_engine(sqlalchemy_url(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        found = compare_metadata(context, model)
    engine.dispose()
    return list(found)


def sqlalchemy_url(url: str) -> str:
    assert with_database(url, "x")  # a URL, not a list of parameters
    return url.replace("postgresql://", "postgresql+psycopg://", 1)
