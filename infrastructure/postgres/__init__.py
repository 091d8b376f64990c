"""PostgreSQL: embedded server, connections, locks, notifications and migrations."""
