"""The worker's side: attempts, each a run of a pipeline over one upload."""
