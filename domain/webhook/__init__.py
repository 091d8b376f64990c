"""Webhooks: where an owner wants to be told what happened to their batches and uploads."""
