"""Tamper evidence: what seals say, and how anybody can hold events against them."""
