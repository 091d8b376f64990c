"""One function a command: load, decide, append."""
