"""Interfaces: HTTP API, upload protocols, feed, web page and command line."""
