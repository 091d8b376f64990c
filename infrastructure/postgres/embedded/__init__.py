"""Embedded PostgreSQL in the data directory, used if no database URL is set."""
