"""The orchestrator and the workers, on PostgreSQL: rows, rounds, and the queue between them."""
