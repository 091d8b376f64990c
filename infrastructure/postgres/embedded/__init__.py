"""A real PostgreSQL of our own, in the data directory, for whoever brings none."""

from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.embedded.system import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
