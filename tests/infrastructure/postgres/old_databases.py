"""Databases as earlier versions of the code left them."""

from __future__ import annotations

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from infrastructure.postgres.schema import MIGRATIONS


def migrate_to(url: str, revision: str) -> None:
    """Apply the migrations up to this one."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
