"""Ports of the use cases: small Protocols, each with its promise and its errors."""
