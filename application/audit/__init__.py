"""Tamper evidence: log seals, their chain, and offline verification of exports."""
