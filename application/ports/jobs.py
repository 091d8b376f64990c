"""Ports of job processing: the uploads of a job, remote steps, worker status."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

import msgspec
from msgspec import Meta

from domain.upload.aggregate import Upload
from domain.upload.state import UploadState

MAX_UNITS = 2**53  # the largest number that every JSON parser keeps exact

Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]


class RunnableUpload(msgspec.Struct, frozen=True):
    """Upload of a batch that is under way; `retry_due` if a failed one may be tried again."""

    upload: Upload
    retry_due: bool

    @property
    def may_start(self) -> bool:
        """True if an attempt may begin; False for an upload whose job is delivered twice."""
        if self.upload.state is UploadState.RETRY_SCHEDULED:
            return self.retry_due
        return self.upload.state is UploadState.QUEUED


class RunnableUploads(Protocol):
    """Lookup by which a worker decides which uploads of a job it may attempt now."""

    async def load(self, uploads: Sequence[UUID]) -> Sequence[RunnableUpload]:
        """Return those whose batch is open or sealed and not paused, as the log has them now.

        Raises Unavailable.
        """


class CallbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a service's report; unknown fields are refused, not ignored."""


class ProgressReport(CallbackBody, frozen=True, kw_only=True):
    """Progress of the service, in its own units."""

    done: Units
    total: Units | None = None

    def __post_init__(self) -> None:
        if self.total is not None and self.done > self.total:
            raise ValueError("`done` must not be more than `total`")


class ErrorReport(CallbackBody, frozen=True, kw_only=True):
    """Error of the service: worth another attempt, never worth one, or a dangerous file."""

    message: Annotated[str, Meta(min_length=1, max_length=2000)]
    kind: Literal["retryable", "permanent", "quarantine"] = "retryable"


class CallbackReport(CallbackBody, frozen=True, kw_only=True, omit_defaults=True):
    """Report of a service: exactly one of the three. A result or an error ends the step."""

    progress: ProgressReport | None = None
    result: dict[str, Any] | None = None
    error: ErrorReport | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.progress, self.result, self.error)) != 1:
            raise ValueError("exactly one of `progress`, `result` and `error` is needed")


class RemoteStep(msgspec.Struct, frozen=True, kw_only=True):
    """Open step of an attempt that a service performs: its last progress, and its answer."""

    id: UUID
    upload: UUID
    attempt: int
    progress: ProgressReport | None = None
    answer: CallbackReport | None = None


class CallbackTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Id of a new remote step, and the two secrets that only its service receives."""

    id: UUID
    download: str
    callback: str


class RemoteSteps(Protocol):
    """Open remote steps, shared by the worker that waits and the process that gets the callback.

    Every method raises Unavailable.
    """

    async def open(self, upload: UUID, attempt: int, *, download_within: float) -> CallbackTokens:
        """Open a step; its bytes can be fetched once, within so many seconds."""

    async def get(self, id: UUID) -> RemoteStep | None:
        """Return the step with its reports so far; None once it is closed."""

    async def close(self, id: UUID) -> None:
        """Close the step: later reports are refused."""

    async def redeem_download_token(self, token: str) -> RemoteStep | None:
        """Return the step whose bytes may be sent, once; None for an invalid or used token."""

    async def by_callback(self, token: str) -> RemoteStep | None:
        """Return the open step of this callback token, if any."""

    async def record_report(self, id: UUID, report: CallbackReport) -> bool:
        """Store a report durably; return False if the step is closed or has an answer."""


class OpenAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """Attempt that a worker holds; `step` and `percent` are its last recorded progress."""

    upload: UUID
    batch: UUID
    number: int
    started_at: datetime | None
    step: str | None
    percent: float | None


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """Worker of the job queue. `alive` is False without a recent heartbeat or a registration.

    `name` is that in the events of its attempts, None while it is known from neither an attempt
    nor a process; `jobs` is the number of jobs it has taken.
    """

    id: int | None
    name: str | None
    alive: bool
    last_heartbeat: datetime | None
    jobs: int
    attempts: list[OpenAttempt]


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    """Server process of any role, on any machine. `alive` is False without a recent heartbeat.

    `leads` is whether it is the active orchestrator; `worker` is the id of its worker.
    """

    id: UUID
    machine: str
    pid: int
    roles: list[str]
    version: str
    started_at: datetime
    last_heartbeat: datetime
    alive: bool
    leads: bool
    worker: int | None


class Workers(Protocol):
    """Workers and server processes of all machines."""

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        """Return all workers, with the open attempts of this owner (None: of all owners).

        Raises Unavailable.
        """

    async def processes(self) -> Sequence[ProcessView]:
        """Return all server processes that have registered and have not ended.

        Those without a heartbeat are kept for an hour. Raises Unavailable.
        """
