"""JSON bodies of requests that several modules share; unknown fields are rejected."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from domain.file import FileDeclaration
from domain.retry import RetryPolicy

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
