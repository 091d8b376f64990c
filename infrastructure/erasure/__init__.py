"""Erasure made real: the keys of owners, and who destroys them with all that they open."""
