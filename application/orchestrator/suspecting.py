"""Who is lost for certain, and who only seems to be because the log has more to tell."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from application.orchestrator.members import Member


class Suspects:
    """Uploads that no job carried at the last look, each with its version then.

    A worker that has finished a job has recorded so first, and the orchestrator may not have
    read that yet. Who stands where it stood a look ago, with no job since, is lost.
    """

    def __init__(self) -> None:
        self._versions: dict[UUID, int] = {}

    def confirmed(self, found: Iterable[Member]) -> list[Member]:
        """Those of the found that were found by the last look as well, and have not moved."""
        before = self._versions
        self._versions = {member.upload: member.version for member in found}
        return [member for member in found if before.get(member.upload) == member.version]
