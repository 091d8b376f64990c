"""Embedded PostgreSQL in the data directory, used if no database URL is set."""

from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.embedded.system import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
