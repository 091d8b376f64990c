"""What a server process can be: api answers, orchestrator decides and projects, worker works."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    API = "api"
    ORCHESTRATOR = "orchestrator"
    WORKER = "worker"


ALL_ROLES = tuple(Role)
