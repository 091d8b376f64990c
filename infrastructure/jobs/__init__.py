"""Orchestrator, job queue and workers on PostgreSQL."""
