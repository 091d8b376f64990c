"""Requests to addresses that people configured: guarded, bounded and signed."""
