"""Commands: requests to change something, each with the decision that it calls.

A command to an existing aggregate is one class here: its fields, and in `decide` the decision of
the aggregate. `application.handlers.execute.execute` carries it out. A command that creates
something, or that concerns many streams, has a handler of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Generic, TypeVar
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


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A request to change something."""


class AggregateCommand(Command, Generic[A], frozen=True, kw_only=True):
    """A command to one existing aggregate.

    With `accepts_cached` the first attempt decides on the cached aggregate, which may be stale: for
    the hot path of a sender, whose append finds out.
    """

    accepts_cached: ClassVar[bool] = False

    @property
    @abstractmethod
    def stream(self) -> UUID:
        """The id of the aggregate."""

    @abstractmethod
    async def load(self, log: EventLog) -> A:
        """Load the aggregate. Raises NotFound, Unavailable."""

    @abstractmethod
    def decide(self, aggregate: A, *, at: datetime, by: str) -> tuple[Event, ...]:
        """Return the events that carry the command out. Raises Refused."""


class BatchCommand(AggregateCommand[Batch], frozen=True, kw_only=True):
    """A command to a batch."""

    batch: UUID

    @property
    def stream(self) -> UUID:
        return self.batch

    async def load(self, log: EventLog) -> Batch:
        return await log.batch(self.batch)


class UploadCommand(AggregateCommand[Upload], frozen=True, kw_only=True):
    """A command to an upload."""

    upload: UUID

    @property
    def stream(self) -> UUID:
        return self.upload

    async def load(self, log: EventLog) -> Upload:
        return await log.upload(self.upload)


class ReopeningCommand(UploadCommand, frozen=True, kw_only=True):
    """A command to an upload that also ends the verdict on its batch, in the same append."""

    @abstractmethod
    def reopen(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        """Return the events that end the verdict on the batch, if it has one."""


class WebhookCommand(AggregateCommand[Webhook], frozen=True, kw_only=True):
    """A command to a webhook."""

    webhook: UUID

    @property
    def stream(self) -> UUID:
        return self.webhook

    async def load(self, log: EventLog) -> Webhook:
        return await log.webhook(self.webhook)


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


class SealBatch(BatchCommand, frozen=True, kw_only=True):
    """Accept no more files; the batch completes when its uploads have ended."""

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.seal(at=at, by=by)


class PauseBatch(BatchCommand, frozen=True, kw_only=True):
    """Release no more uploads of the batch to the workers."""

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.pause(at=at, by=by)


class ResumeBatch(BatchCommand, frozen=True, kw_only=True):
    """Release uploads of the batch to the workers again."""

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.resume(at=at, by=by)


class RetryBatch(BatchCommand, frozen=True, kw_only=True):
    """Process every failed upload again; the orchestrator then retries each of them."""

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.request_retry(at=at, by=by)


class PrioritizeBatch(BatchCommand, frozen=True, kw_only=True):
    """Change the priority of the batch among those of its owner."""

    priority: int

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.prioritize(self.priority, at=at, by=by)


class RenameBatch(BatchCommand, frozen=True, kw_only=True):
    """Change the label of the batch. Raises ValidationFailed."""

    label: str

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.rename(self.label, at=at, by=by)


class CancelBatch(BatchCommand, frozen=True, kw_only=True):
    """Cancel the batch; the orchestrator then cancels each unfinished upload."""

    reason: str = "cancelled on request"

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.cancel(self.reason, at=at, by=by)


class EraseBatch(BatchCommand, frozen=True, kw_only=True):
    """Record that the personal data of a completed batch is destroyed."""

    def decide(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.erase(at=at, by=by)


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


class MarkPartialConcatenated(UploadCommand, frozen=True, kw_only=True):
    """Record that the bytes of a partial upload are stored in a final upload."""

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.mark_concatenated(at=at, by=by)


class DeclareSize(UploadCommand, frozen=True, kw_only=True):
    """Declare the size of an upload that was created without one."""

    size: int

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.declare_size(self.size, at=at, by=by)


class ProgressTransfer(UploadCommand, frozen=True, kw_only=True):
    """Record that `received` bytes are durable under `blob`; `complete` if these are all."""

    accepts_cached: ClassVar[bool] = True

    received: int
    blob: str
    complete: bool = False

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        progressed = upload.progress_transfer(self.received, at=at, by=by)
        if not self.complete:
            return progressed
        for event in progressed:
            upload = upload.evolve(event)
        return *progressed, *upload.receive(self.received, self.blob, at=at, by=by)


class InterruptTransfer(UploadCommand, frozen=True, kw_only=True):
    """Record that a transfer ended early; `received` bytes are durable."""

    accepts_cached: ClassVar[bool] = True

    received: int
    reason: str

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.interrupt_transfer(self.received, self.reason, at=at, by=by)


class RecordDataLoss(UploadCommand, frozen=True, kw_only=True):
    """Record that the store holds only `stored` bytes, fewer than were recorded."""

    stored: int

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.record_data_loss(self.stored, at=at, by=by)


class CancelUpload(UploadCommand, frozen=True, kw_only=True):
    """Cancel an unfinished upload."""

    reason: str = "cancelled on request"

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.cancel(self.reason, at=at, by=by)


class ExpireUpload(UploadCommand, frozen=True, kw_only=True):
    """Expire an unfinished upload, or a partial upload that was not concatenated.

    With `idle_since`, only an upload that is unfinished and still at that version.
    """

    idle_since: int | None = None

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        if self.idle_since is not None and not (
            upload.version == self.idle_since and upload.state in INCOMING
        ):
            return ()
        return upload.expire(at=at, by=by)


class EraseUpload(UploadCommand, frozen=True, kw_only=True):
    """Record that the personal data of an ended upload is destroyed."""

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.erase(at=at, by=by)


class RetryUpload(ReopeningCommand, frozen=True, kw_only=True):
    """Process a failed upload again, with a new allowance of attempts."""

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.request_retry(at=at, by=by)

    def reopen(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.reopen_for_retry(at=at, by=by)


class ReleaseUpload(ReopeningCommand, frozen=True, kw_only=True):
    """Complete a quarantined upload: an operator overrules the step, with a reason."""

    reason: str

    def decide(self, upload: Upload, *, at: datetime, by: str) -> tuple[Event, ...]:
        return upload.release(self.reason, at=at, by=by)

    def reopen(self, batch: Batch, *, at: datetime, by: str) -> tuple[Event, ...]:
        return batch.reopen_for_release(at=at, by=by)


# Webhooks


class AddWebhook(Command, frozen=True, kw_only=True):
    """Add a webhook; `secret` is the id of a secret that is stored already."""

    id: UUID
    owner: str
    subscription: WebhookFilter
    secret: UUID


class ChangeWebhook(WebhookCommand, frozen=True, kw_only=True):
    """Replace the subscription of a webhook. Raises ValidationFailed."""

    subscription: WebhookFilter

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.change(self.subscription, at=at, by=by)


class RotateSecret(WebhookCommand, frozen=True, kw_only=True):
    """Sign with a new secret; `secret` is the id of one that is stored already."""

    secret: UUID

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.rotate(self.secret, at=at, by=by)


class RequestTest(WebhookCommand, frozen=True, kw_only=True):
    """Deliver a test event to the webhook once, whether or not it is enabled."""

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.request_test(at=at, by=by)


class DisableWebhook(WebhookCommand, frozen=True, kw_only=True):
    """Hold the deliveries of a webhook back."""

    reason: str = "disabled on request"

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.disable(self.reason, at=at, by=by)


class EnableWebhook(WebhookCommand, frozen=True, kw_only=True):
    """Deliver to a webhook again, beginning with what was held back."""

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.enable(at=at, by=by)


class RemoveWebhook(WebhookCommand, frozen=True, kw_only=True):
    """Remove a webhook, with the deliveries that wait."""

    def decide(self, webhook: Webhook, *, at: datetime, by: str) -> tuple[Event, ...]:
        return webhook.remove(at=at, by=by)
