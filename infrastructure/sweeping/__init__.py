"""The sweeper made real: what it asks the database, and the task that runs it."""
