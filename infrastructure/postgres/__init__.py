"""PostgreSQL: where it comes from and how we talk to it."""
