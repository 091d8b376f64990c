"""How an upload begins: registered, or turned away with the reason on record."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from domain.batch.aggregate import Batch
from domain.file import FileDeclaration
from domain.ids import rejection_id_for, upload_id_for
from domain.upload.events import UploadEvent, UploadRegistered, UploadRejected


def register(
    batch: Batch, file: FileDeclaration, secret: bytes, *, at: datetime, by: str
) -> tuple[UUID, tuple[UploadEvent, ...]]:
    """The stream and the first event of a file that joins this batch.

    `secret` is that of the ids of the database.
    """
    batch.require_open()
    registered = UploadRegistered(
        at=at,
        by=by,
        batch=batch.id,
        owner=batch.owner,
        path=file.path,
        size=file.size,
        media_type=file.media_type,
        checksum=file.checksum,
        metadata=file.metadata,
        pipeline=batch.pipeline,
        retry_policy=batch.retry_policy,
    )
    return upload_id_for(batch.id, file.path, secret), (registered,)


def register_part(
    owner: str, batch: UUID, file: FileDeclaration, *, at: datetime, by: str
) -> tuple[UploadEvent, ...]:
    """The first event of a part: it is stored like an upload, and belongs to no count.

    `batch` is that of the upload it is for; a part of a file that stands alone names itself.
    """
    registered = UploadRegistered(
        at=at,
        by=by,
        batch=batch,
        owner=owner,
        path=file.path,
        size=file.size,
        metadata=file.metadata,
        pipeline="",
    )
    return (registered,)


def reject(
    batch: Batch,
    file: FileDeclaration,
    code: str,
    message: str,
    secret: bytes,
    *,
    at: datetime,
    by: str,
) -> tuple[UUID, tuple[UploadEvent, ...]]:
    """The stream and the only event of a file that a rule of the batch turns away."""
    batch.require_open()
    rejected = UploadRejected(
        at=at,
        by=by,
        batch=batch.id,
        owner=batch.owner,
        path=file.path,
        size=file.size,
        media_type=file.media_type,
        code=code,
        message=message,
    )
    return rejection_id_for(batch.id, file.path, code, secret), (rejected,)
