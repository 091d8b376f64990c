"""What may happen, and what did: aggregates, their events, and the rules between them."""
