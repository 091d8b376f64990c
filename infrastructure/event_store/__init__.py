"""The log, on PostgreSQL, in the format of the `eventsourcing` library."""
