"""Webhooks: subscriptions of owners to events of their batches and uploads."""
