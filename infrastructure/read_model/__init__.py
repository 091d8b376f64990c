"""The read model in PostgreSQL: rows projected from the log, and the questions asked of them."""
