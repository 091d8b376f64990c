"""Webhooks: deliveries planned from the event log, and their attempts."""
