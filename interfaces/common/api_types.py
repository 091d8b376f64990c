"""JSON types of the HTTP API, declared once for the server and for the command line.

This module imports no web framework, so that it adds nothing to the start of a command.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from application.handlers.uploads import FileResult
from application.ports.auth import Key
from application.ports.jobs import ProcessView, WorkerView
from application.ports.webhooks import DeliveryAttempt
from application.views import UploadView
from domain.file import FileDeclaration
from domain.retry import RetryPolicy

Row = TypeVar("Row")


Text = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of JSON bodies: a misspelled field is rejected rather than silently ignored."""


class RetryOptions(RequestBody, frozen=True, kw_only=True, omit_defaults=True):
    """Retry policy of a batch; fields that are left out keep the server's setting."""

    attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    first_delay: Seconds | None = None
    longest_delay: Seconds | None = None
    factor: Annotated[float, Meta(ge=1, le=10)] | None = None

    def applied_to(self, policy: RetryPolicy) -> RetryPolicy:
        """Return the policy with the given fields replaced."""
        given = {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not None
        }
        return msgspec.structs.replace(policy, **given)


class NewBatch(RequestBody, frozen=True, kw_only=True, omit_defaults=True):
    """A batch to start, with the files of its manifest if they are known.

    `owner` is for admins; `failure_threshold` is the share of failures (0 to 1) that pauses the
    batch; `notify` is the id or URL of a webhook that delivers on request only; `seal` seals the
    batch at once.
    """

    label: str = ""
    pipeline: str = "default"
    owner: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    retry_policy: RetryOptions | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    failure_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    notify: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None
    metadata: dict[str, str] = {}
    files: tuple[FileDeclaration, ...] = ()
    seal: bool = False


class CancelRequest(RequestBody, frozen=True, kw_only=True):
    """Reason for a cancellation, recorded in the history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "cancelled on request"


class LoginCode(RequestBody, frozen=True, kw_only=True):
    """One-time code of a login link."""

    code: Text


class StartedBatchResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was started; `uploads` are the ids of the files of its manifest, in order."""

    id: UUID
    owner: str
    label: str
    state: str
    pipeline: str
    priority: int
    started_at: datetime
    version: int
    uploads: tuple[UUID, ...]
    position: int


class CommandResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of a command: the new state, whether the batch is paused, or its priority."""

    id: UUID
    state: str | None = None
    paused: bool | None = None
    priority: int | None = None
    position: int = 0


class AddedUploadsResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Result for each file of a list, in its order."""

    files: list[FileResult]
    added: int
    known: int
    rejected: int
    position: int


class ReceivedFilesResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Result for each file of a request that carried their bytes, in its order.

    A file is `received`, `known` (received before), or `rejected` with a `code`.
    """

    files: tuple[FileResult, ...]
    received: int
    known: int
    rejected: int
    position: int


class PageResponse(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """One page of rows; pass `next` in the next request (`cursor`, or `after` of a history)."""

    items: list[Row]
    next: str | int | None
    position: int


class HistoryItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recorded event; `command` and `trace` identify its cause, if known."""

    position: int
    version: int
    stream: UUID
    type: str
    at: str
    by: str
    command: UUID | None = None
    trace: str | None = None
    data: dict[str, Any]


class NewKeyResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; `text` is shown only here."""

    key: Key
    text: str


class WorkersResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker; an operator sees only attempts at uploads of their own owner.

    `processes` are those of every role, on every machine.
    """

    workers: list[WorkerView]
    processes: list[ProcessView]


class WebhookResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook and the state of its deliveries; `reason` is why it is disabled.

    Earlier secrets sign until `earlier_secrets_until`, if there are any. `missed` counts the
    events that were not queued because too many were waiting, from position `missed_after` on.
    """

    id: UUID
    owner: str
    url: str
    events: tuple[str, ...]
    label: str | None
    on_request: bool
    description: str
    enabled: bool
    reason: str
    added_at: datetime
    added_by: str
    changed_at: datetime
    changed_by: str
    earlier_secrets_until: datetime | None
    pending: int
    failed: int
    failing_since: datetime | None
    last_error: str
    missed: int
    missed_after: int | None
    version: int


class SecretResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook with its new secret, which is shown only here."""

    webhook: WebhookResponse
    secret: str
    position: int


class TestRequestedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A requested test; its delivery has this position."""

    webhook: UUID
    position: int


class DeliveryResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Delivery of one event to one webhook; `id` is the one that the receiver gets.

    `next_at` is the time of the next attempt; a pending delivery without it waits in the queue, or
    for the end of an earlier one of the same batch. `last` is the last request and its response.
    """

    id: str
    webhook: UUID
    position: int
    type: str
    batch: UUID | None
    stream: UUID
    state: str
    attempts: int
    queued_at: datetime
    next_at: datetime | None
    ended_at: datetime | None
    last: DeliveryAttempt | None


class RedeliveryResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The number of deliveries that are made again."""

    webhook: UUID
    deliveries: int


class FieldProblem(msgspec.Struct, frozen=True):
    """One invalid field: `pointer` (RFC 6901) into the body, or the name of the parameter."""

    pointer: str
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem (RFC 9457): `code` for programs, `title` and `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    errors: tuple[FieldProblem, ...] = ()
    request_id: str = ""
    instance: str = ""


# The name of a blob is internal.
PublicUpload: type[msgspec.Struct] = msgspec.defstruct(
    "Upload",
    [
        (field.name, field.type)
        for field in msgspec.structs.fields(UploadView)
        if field.name != "blob"
    ],
    kw_only=True,
)


def public_view(upload: UploadView) -> msgspec.Struct:
    """Return the upload without internal fields."""
    return msgspec.convert(upload, PublicUpload, from_attributes=True)
