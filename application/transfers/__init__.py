"""Receiving bytes: locks, quotas, creation, and the transfer itself."""
