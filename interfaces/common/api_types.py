"""JSON types of the HTTP API, declared once for the server and for the command line.

This module imports no web framework, so that it adds nothing to the start of a command.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from application.handlers.uploads import FileResult
from application.ports.auth import Key
from application.ports.jobs import ProcessView, WorkerView
from application.ports.webhooks import DeliveryAttempt
from application.views import UploadView

Row = TypeVar("Row")


class StartedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was started; `uploads` are the ids of the files sent, in their order."""

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


class CommandAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a command leads to: the state, whether the batch is paused now, or its priority."""

    id: UUID
    state: str | None = None
    paused: bool | None = None
    priority: int | None = None
    position: int = 0


class AddedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each file of a list, in its order."""

    files: list[FileResult]
    added: int
    known: int
    rejected: int
    position: int


class TakenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each file of a request that carried their bytes, in its order.

    A file is `received`, `known` (all of it was there), or `rejected` for what its `code` says.
    """

    files: tuple[FileResult, ...]
    received: int
    known: int
    rejected: int
    position: int


class PageAnswer(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """Some rows; `next` goes into the next request (`cursor`, or `after` of a history)."""

    items: list[Row]
    next: str | int | None
    position: int


class HistoryItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recorded event; `command` and `trace` say what caused it, where that is known."""

    position: int
    version: int
    stream: UUID
    type: str
    at: str
    by: str
    command: UUID | None = None
    trace: str | None = None
    data: dict[str, Any]


class NewKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; `text` is shown this once and never again."""

    key: Key
    text: str


class WorkersAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker; to an operator, only with the attempts at uploads of their own owner.

    `processes` are those of every role, on every machine.
    """

    workers: list[WorkerView]
    processes: list[ProcessView]


class WebhookAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook, and how it fares; `reason` says why it is disabled.

    Earlier secrets sign until `earlier_secrets_until`, if there are any. `missed` counts the
    events that were not kept because too many were waiting, from position `missed_after` on.
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


class SecretAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook with its new secret, which is shown this once."""

    webhook: WebhookAnswer
    secret: str
    position: int


class TestRequestedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A test that is under way: its delivery has this position."""

    webhook: UUID
    position: int


class DeliveryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one event for one webhook; `id` is what the receiver knows it by.

    `next_at` is when it is tried again; a pending one without waits for its turn, or for the end
    of an earlier one of the same batch. `last` is the last request and its answer.
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


class RedeliveryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries are made again."""

    webhook: UUID
    deliveries: int


class Complaint(msgspec.Struct, frozen=True):
    """One thing that is wrong: `pointer` (RFC 6901) into the body, or the parameter's name."""

    pointer: str
    detail: str


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client reads: `code` for programs, `title` and `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    errors: tuple[Complaint, ...] = ()
    request_id: str = ""
    instance: str = ""


# Where the bytes lie is nobody's business outside.
PublicUpload: type[msgspec.Struct] = msgspec.defstruct(
    "Upload",
    [
        (field.name, field.type)
        for field in msgspec.structs.fields(UploadView)
        if field.name != "blob"
    ],
    kw_only=True,
)


def public(upload: UploadView) -> msgspec.Struct:
    """The upload as clients may see it."""
    return msgspec.convert(upload, PublicUpload, from_attributes=True)
