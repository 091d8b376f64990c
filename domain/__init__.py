"""Rules and facts: aggregates, their events and their decisions."""
