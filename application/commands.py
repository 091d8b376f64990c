"""Commands: requests to change something.

A command to an existing aggregate is its id and a decision of the aggregate, such as `Batch.seal`
or `partial(Batch.rename, label="Summer")`. `application.handlers.execute.execute` carries it out.
A command that creates something, or that concerns many streams, has a class and a handler of its
own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec

from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.event import Event
from domain.file import FileDeclaration
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookFilter

A = TypeVar("A", Batch, Upload, Webhook)
A_contra = TypeVar("A_contra", contravariant=True)


class DecisionFunction(Protocol[A_contra]):
    """Decision of an aggregate: return the events of a command. Raises CommandRejected."""

    def __call__(self, aggregate: A_contra, /, *, at: datetime, by: str) -> tuple[Event, ...]: ...


class Command(msgspec.Struct, frozen=True):
    """A request to change something."""


class AggregateCommand(Command, Generic[A], frozen=True):
    """A command to one existing aggregate: its id, and the decision that carries the command out.

    With `accepts_cached` the first attempt decides on the cached aggregate, which may be stale: for
    the hot path of a sender, whose append finds out.
    """

    id: UUID
    decision: DecisionFunction[A]
    accepts_cached: bool = False

    @abstractmethod
    async def load(self, log: EventLog) -> A:
        """Load the aggregate. Raises NotFound, Unavailable."""


class BatchCommand(AggregateCommand[Batch], frozen=True):
    """A command to a batch."""

    async def load(self, log: EventLog) -> Batch:
        return await log.batch(self.id)


class UploadCommand(AggregateCommand[Upload], frozen=True):
    """A command to an upload.

    `reopen` decides how its batch, if that has completed, continues; in the same append.
    """

    reopen: DecisionFunction[Batch] | None = None

    async def load(self, log: EventLog) -> Upload:
        return await log.upload(self.id)


class WebhookCommand(AggregateCommand[Webhook], frozen=True):
    """A command to a webhook."""

    async def load(self, log: EventLog) -> Webhook:
        return await log.webhook(self.id)


# Batches


class StartBatch(Command, frozen=True, kw_only=True):
    """Start a batch, with the files of its manifest if it has one; `seal` seals it at once.

    `id` is derived from the owner's idempotency key, if the request has one; `fingerprint` is the
    hash of the request, to detect the same key with another body.
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
    """Add files to an open batch; each is checked by itself, and known paths stay as they are.

    A file of more than `max_size` bytes is rejected, and so is each path in `over_quota`, which
    maps it to the quota that it would exceed.
    """

    batch: UUID
    files: tuple[FileDeclaration, ...]
    max_size: int
    over_quota: dict[str, str] = {}


# Uploads


class RegisterUpload(Command, frozen=True, kw_only=True):
    """Register one file in an open batch, or find the upload that has its path already.

    With `received`, its bytes are stored already: registration and receipt are one append.
    """

    batch: UUID
    file: FileDeclaration
    received: int | None = None
    blob: str | None = None


class CreateStandaloneUpload(Command, frozen=True, kw_only=True):
    """Register one file without a batch, in a sealed batch of its own with the given id."""

    id: UUID
    owner: str
    file: FileDeclaration
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()
    received: int | None = None
    blob: str | None = None


class RegisterPartialUpload(Command, frozen=True, kw_only=True):
    """Register a tus partial upload, to be concatenated with others into a final upload.

    `batch` is that of the final upload, None if that stands alone.
    """

    id: UUID
    owner: str
    batch: UUID | None
    size: int | None = None
    metadata: Mapping[str, str] = {}


def retry_upload(id: UUID) -> UploadCommand:
    """Process a failed upload again, with a new allowance of attempts."""
    return UploadCommand(id, Upload.request_retry, reopen=Batch.reopen_for_retry)


def release_upload(id: UUID, reason: str) -> UploadCommand:
    """Complete a quarantined upload: an operator overrules the step, with a reason."""
    decision = partial(Upload.release, reason=reason)
    return UploadCommand(id, decision, reopen=Batch.reopen_for_release)


def record_received(
    upload: Upload, received: int, blob: str, *, complete: bool, at: datetime, by: str
) -> tuple[Event, ...]:
    """Record that `received` bytes are durable under `blob`; `complete` if these are all."""
    progressed = upload.progress_transfer(received, at=at, by=by)
    if not complete:
        return progressed
    for event in progressed:
        upload = upload.evolve(event)
    return *progressed, *upload.receive(received, blob, at=at, by=by)


def expire_idle(upload: Upload, *, idle_since: int, at: datetime, by: str) -> tuple[Event, ...]:
    """Expire an upload if it is unfinished and still at the version `idle_since`."""
    if upload.version != idle_since or upload.state not in INCOMING:
        return ()
    return upload.expire(at=at, by=by)


# Webhooks


class AddWebhook(Command, frozen=True, kw_only=True):
    """Add a webhook; `secret` is the id of a secret that is stored already."""

    id: UUID
    owner: str
    subscription: WebhookFilter
    secret: UUID
