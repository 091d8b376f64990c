"""Every setting in one Struct, each with its default and what it is for."""

from __future__ import annotations

from pathlib import Path

import msgspec
from platformdirs import user_data_path

from application.pipeline import Pipeline, Step
from domain.retry import RetryPolicy

MIB = 1024 * 1024

DEFAULT_PIPELINE = Pipeline(
    steps=(
        Step(processor="checksum"),
        Step(processor="media-type"),
        Step(processor="thumbnail", timeout=60.0),
    )
)


def default_data_dir() -> Path:
    """Where the platform keeps a user's data."""
    return user_data_path("uptrail", appauthor=False)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes in bytes, times in seconds. `uptrail config show` says where each value came from."""

    # Where things are.
    data_dir: Path = msgspec.field(default_factory=default_data_dir)
    database_url: str | None = None
    blobs: str | None = None  # a folder; by default <data_dir>/blobs

    # Serving.
    host: str = "127.0.0.1"
    port: int = 8080
    allowed_origins: tuple[str, ...] = ()
    max_body: int = 16 * MIB  # of a JSON or NDJSON request
    shutdown_grace: float = 10.0
    log_format: str = "auto"  # auto | json | console
    log_level: str = "info"

    # Uploading.
    max_file_size: int = 1024 * 1024 * MIB
    max_manifest_files: int = 10_000
    max_metadata: int = 4096
    read_buffer: int = MIB
    progress_interval: float = 0.5  # between two recorded FileProgressed of one transfer
    transfer_idle_timeout: float = 60.0
    min_free_bytes: int = 256 * MIB

    # Processing.
    pipelines: dict[str, Pipeline] = {"default": DEFAULT_PIPELINE}
    retry_policy: RetryPolicy = RetryPolicy()
    worker_concurrency: int = 4
    uploads_per_job: int = 20
    worker_heartbeat: float = 2.0
    worker_dead_after: float = 10.0
    step_progress_interval: float = 0.5

    # Orchestrating.
    batch_progress_interval: float = 0.25
    in_flight_per_batch: int = 200
    in_flight_per_owner: int = 400

    # Watching.
    feed_tick: float = 0.1
    feed_heartbeat: float = 15.0
    feed_buffer: int = MIB  # bytes waiting for one client before it catches up instead

    @property
    def blob_dir(self) -> Path:
        return Path(self.blobs) if self.blobs else self.data_dir / "blobs"

    @property
    def admin_key_file(self) -> Path:
        return self.data_dir / "admin.key"
