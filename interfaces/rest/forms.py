"""What clients may send as JSON; a field that is not named here is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from application.ports.auth import Scope
from domain.file import FileDeclaration
from domain.retry import RetryPolicy

MAX_EXPIRY = 10 * 365 * 86400  # seconds

Text = Annotated[str, Meta(max_length=200)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body: unknown fields are refused, since a misspelled one would be lost in silence."""


class RetryOptions(Form, frozen=True, kw_only=True, omit_defaults=True):
    """How failed work of the batch is tried again; what is left out is as the server is set."""

    attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    first_delay: Seconds | None = None
    longest_delay: Seconds | None = None
    factor: Annotated[float, Meta(ge=1, le=10)] | None = None

    def over(self, policy: RetryPolicy) -> RetryPolicy:
        given = {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not None
        }
        return msgspec.structs.replace(policy, **given)


class NewBatch(Form, frozen=True, kw_only=True, omit_defaults=True):
    """A batch to start, with the files of its manifest if they are known.

    `owner` is for admins; `failure_threshold` is the share of failures (0 to 1) that stops the
    batch; `notify` names a webhook that is told only on request, by its id or its address; `seal`
    says that no more files will join.
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


class NewFiles(Form, frozen=True, kw_only=True):
    """Files that join a batch."""

    files: tuple[FileDeclaration, ...]


class Cancellation(Form, frozen=True, kw_only=True):
    """Why something is called off: kept in the history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "cancelled on request"


class Release(Form, frozen=True, kw_only=True):
    """Why a quarantined file is good after all: kept in the history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class Priority(Form, frozen=True, kw_only=True):
    """Batches of a higher one go first, among those of their owner."""

    priority: Annotated[int, Meta(ge=-100, le=100)]


class NewKey(Form, frozen=True, kw_only=True):
    """A key to make; `expires_in` is in seconds, `batch` limits it to one batch."""

    scope: Scope
    owner: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    label: Text = ""
    batch: UUID | None = None
    expires_in: Annotated[float, Meta(gt=0, le=MAX_EXPIRY)] | None = None


class NewErasure(Form, frozen=True, kw_only=True):
    """Whose data is to be destroyed, and why, for the record."""

    owner: Annotated[str, Meta(min_length=1, max_length=200)]
    reason: Annotated[str, Meta(max_length=1000)] = ""


class NewWebhook(Form, frozen=True, kw_only=True, omit_defaults=True):
    """A webhook to add; `owner` is for admins.

    With `label`, only batches of that label are told of; with `on_request`, only batches whose
    `notify` names it.
    """

    url: str
    events: tuple[str, ...] = ("batch.completed",)
    label: str | None = None
    on_request: bool = False
    description: str = ""
    owner: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class ChangedWebhook(Form, frozen=True, kw_only=True, omit_defaults=True):
    """What is different from now on; what is left out stays as it is, a `label` of null ends."""

    url: str | UnsetType = UNSET
    events: tuple[str, ...] | UnsetType = UNSET
    label: str | UnsetType | None = UNSET
    on_request: bool | UnsetType = UNSET
    description: str | UnsetType = UNSET


class Disabling(Form, frozen=True, kw_only=True):
    """Why a webhook is told nothing for now: kept in the history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "disabled on request"


class Redelivery(Form, frozen=True, kw_only=True):
    """Deliveries that were given up at this time or later are made again."""

    since: datetime


class LoginCode(Form, frozen=True, kw_only=True):
    """The one-time code out of a login link."""

    code: Text
