"""Processors: the code that performs the steps of pipelines."""
