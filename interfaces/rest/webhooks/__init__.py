"""Webhooks over HTTP: who is told what, and what became of it."""
