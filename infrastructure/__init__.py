"""The ports made real: PostgreSQL, disks, processes."""
