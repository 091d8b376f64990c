"""What may be asked of Uptrail, each as one imperative Struct."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from domain.file import FileDeclaration
from domain.retry import RetryPolicy


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request to change something."""


class StartBatch(Command, frozen=True, kw_only=True):
    """Opens a batch, with the files of its manifest if there is one; `seal` closes it at once.

    `id` follows from the owner's idempotency key where there is one; `fingerprint` is the hash of
    the request, by which the same key with another body is told apart.
    """

    id: UUID
    owner: str
    label: str = ""
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()
    priority: int = 0
    failure_threshold: float | None = None
    notify: str | None = None
    metadata: Mapping[str, str] = {}
    fingerprint: str = ""
    files: tuple[FileDeclaration, ...] = ()
    seal: bool = False


class AddUploads(Command, frozen=True, kw_only=True):
    """Files join an open batch; each is judged by itself, and a known path is left as it is.

    A file of more than `max_size` bytes is rejected, and so is one that is `without_room`: by
    path, the quota that would be exceeded.
    """

    batch: UUID
    files: tuple[FileDeclaration, ...]
    max_size: int
    without_room: dict[str, str] = {}


class SealBatch(Command, frozen=True, kw_only=True):
    batch: UUID


class PauseBatch(Command, frozen=True, kw_only=True):
    batch: UUID


class ResumeBatch(Command, frozen=True, kw_only=True):
    batch: UUID


class CancelBatch(Command, frozen=True, kw_only=True):
    batch: UUID
    reason: str = "cancelled on request"


class RetryBatch(Command, frozen=True, kw_only=True):
    """Every failed upload of the batch is to be processed again."""

    batch: UUID


class PrioritizeBatch(Command, frozen=True, kw_only=True):
    batch: UUID
    priority: int


class RegisterUpload(Command, frozen=True, kw_only=True):
    """One file joins an open batch, or finds its place there if it was declared before.

    With `received`, its bytes are stored already: registration and arrival are one append.
    """

    batch: UUID
    file: FileDeclaration
    received: int | None = None
    blob: str | None = None


class UploadAlone(Command, frozen=True, kw_only=True):
    """One file without a batch gets a sealed one of its own, with the given id."""

    id: UUID
    owner: str
    file: FileDeclaration
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()
    received: int | None = None
    blob: str | None = None


class RegisterPart(Command, frozen=True, kw_only=True):
    """A piece of a file, that is to be joined with others into an upload.

    `batch` is that of the upload, None where it is to stand alone.
    """

    id: UUID
    owner: str
    batch: UUID | None
    size: int | None = None
    metadata: Mapping[str, str] = {}


class JoinPart(Command, frozen=True, kw_only=True):
    """The bytes of a part are stored in an upload, on record."""

    part: UUID


class DeclareSize(Command, frozen=True, kw_only=True):
    upload: UUID
    size: int


class ProgressTransfer(Command, frozen=True, kw_only=True):
    """Bytes up to `received` are durable under `blob`; with `complete`, they are all there are."""

    upload: UUID
    received: int
    blob: str
    complete: bool = False


class InterruptTransfer(Command, frozen=True, kw_only=True):
    """A sender went away; bytes up to `received` are durable."""

    upload: UUID
    received: int
    reason: str


class ReportLoss(Command, frozen=True, kw_only=True):
    """The store holds fewer bytes than were recorded."""

    upload: UUID
    stored: int


class CancelUpload(Command, frozen=True, kw_only=True):
    upload: UUID
    reason: str = "cancelled on request"


class RetryUpload(Command, frozen=True, kw_only=True):
    upload: UUID


class ReleaseUpload(Command, frozen=True, kw_only=True):
    """A quarantined file is good after all; somebody answers for that with a reason."""

    upload: UUID
    reason: str
