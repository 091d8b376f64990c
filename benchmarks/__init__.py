"""Benchmarks of Uptrail and its peers in one run, as ratios."""
