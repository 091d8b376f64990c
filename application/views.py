"""The rows of the read model: what every reader sees, whether over HTTP, the feed or the CLI.

`position` is that of the last event a row reflects. Sizes are in bytes, durations in seconds.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec


class Activity(StrEnum):
    """What an unfinished batch is doing."""

    RECEIVING = "receiving"
    PROCESSING = "processing"
    WAITING_FOR_FILES = "waiting_for_files"
    WAITING_FOR_SEAL = "waiting_for_seal"
    WAITING_FOR_RETRY = "waiting_for_retry"
    STALLED = "stalled"
    PAUSED = "paused"


class BatchView(msgspec.Struct, kw_only=True):
    """One batch. `counts` holds how many uploads are in each state, `uploads` their sum.

    `pause_reason` is the reason of the orchestrator's pause; None for a person's. `active_at` is
    when its work last moved, `arrived_at` when bytes or a whole file last arrived.

    `activity` is what it is doing now; null once `state` is cancelling or
    completed. It waits, has stalled or was paused since `activity_since`. At `activity_until` the
    activity changes without a recorded event: read the batch again then.
    """

    id: UUID
    owner: str
    label: str = ""
    state: str = "open"
    outcome: str | None = None
    paused: bool = False
    pause_reason: str | None = None
    pipeline: str = ""
    priority: int = 0
    metadata: dict[str, str] = {}
    uploads: int = 0
    counts: dict[str, int] = {}
    bytes_received: int = 0
    bytes_total: int = 0
    percent: float = 0.0
    started_at: datetime
    started_by: str
    sealed_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime
    version: int
    position: int
    active_at: datetime
    arrived_at: datetime | None = None
    paused_at: datetime | None = None
    activity: Activity | None = None
    activity_since: datetime | None = None
    activity_until: datetime | None = None


DERIVED = ("activity", "activity_since", "activity_until")
"""Fields of a batch that no row has: they follow from the others and the time, when asked."""


class UploadView(msgspec.Struct, kw_only=True):
    """One upload. `phase` and `percent` say how far the transfer or the current step is."""

    id: UUID
    batch: UUID
    owner: str
    path: str
    size: int | None = None
    received: int = 0
    media_type: str | None = None
    checksum: str | None = None
    metadata: dict[str, str] = {}
    pipeline: str = ""
    state: str = "registered"
    phase: str | None = None
    percent: float | None = None
    attempt: int = 0
    error: str | None = None
    error_step: str | None = None
    retry_at: datetime | None = None
    results: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, str] = {}
    blob: str | None = None
    registered_at: datetime
    received_at: datetime | None = None
    ended_at: datetime | None = None
    updated_at: datetime
    version: int
    position: int


class AttemptView(msgspec.Struct, kw_only=True):
    """One attempt; `state` is running, succeeded, failed or abandoned."""

    upload: UUID
    number: int
    worker: str
    state: str = "running"
    step: str | None = None
    percent: float | None = None
    error_type: str | None = None
    message: str | None = None
    permanent: bool | None = None
    retry_at: datetime | None = None
    started_at: datetime
    ended_at: datetime | None = None
    duration: float | None = None
    position: int
