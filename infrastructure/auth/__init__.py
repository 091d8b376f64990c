"""Credentials made real: API keys, browser sessions and one-time logins, hashed in PostgreSQL."""
