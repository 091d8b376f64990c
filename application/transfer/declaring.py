"""Files that are declared in a list, long before their bytes come: is there room for them?"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from application.ports.event_log import EventLog
from application.transfer.quotas import Quotas
from domain.file import FileDeclaration, validate_declaration
from domain.ids import upload_id_for


async def files_over_quota(
    log: EventLog, quotas: Quotas, batch: UUID, files: Sequence[FileDeclaration], max_size: int
) -> dict[str, str]:
    """Return, by path, the quota that a file would exceed. The others are counted from now on.

    A file that the batch knows is counted already; one that will be rejected anyway is not.
    Raises NotFound, Unavailable.
    """
    if quotas.unlimited:
        return {}
    sound = {
        upload_id_for(batch, file.path, log.id_secret): file
        for file in files
        if (file.size or 0) <= max_size and not any(validate_declaration(file))
    }
    known = await log.versions(list(sound))
    new = [file for id, file in sound.items() if id not in known]
    owner = (await log.batch(batch)).owner
    refusals = await quotas.admit_each(owner, batch, [file.size or 0 for file in new])
    return {file.path: str(refusal) for file, refusal in zip(new, refusals, strict=True) if refusal}
