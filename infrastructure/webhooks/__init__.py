"""Webhooks in PostgreSQL: dispatcher, outbox, delivery, registry."""
