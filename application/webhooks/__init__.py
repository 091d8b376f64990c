"""Webhooks: following the log for what is to be told, and telling it."""
