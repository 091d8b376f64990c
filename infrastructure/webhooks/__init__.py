"""Webhooks in PostgreSQL: who is to be told what, in which order, and what came of it."""
