"""Attempts of a worker, each a run of a pipeline over one upload."""
