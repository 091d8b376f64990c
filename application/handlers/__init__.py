"""Handlers of commands: load, decide, append."""
