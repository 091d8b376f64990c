"""Every setting in one Struct, each with its default, what it allows and what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta
from platformdirs import user_data_path

from application.pipeline import Pipeline, Step
from domain.retry import RetryPolicy

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB
DAY = 24 * 3600.0

Bytes: TypeAlias = Annotated[int, Meta(ge=0, extra={"unit": "bytes"})]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, extra={"unit": "seconds"})]
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Limit: TypeAlias = Annotated[int, Meta(ge=0)]
TusPath: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^$|^(?!/(v1|static|login|logout|healthz|readyz|metrics|openapi\.json|asyncapi\.json"
        r"|favicon\.ico)(/|$))(/(?!\.\.?(/|$))[A-Za-z0-9_.~-]+)+/?$"
    ),
]
HeaderName: TypeAlias = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")]
Address: TypeAlias = Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")]

DEFAULT_PIPELINE = Pipeline(
    steps=(
        Step(processor="checksum"),
        Step(processor="media-type"),
        Step(processor="thumbnail", timeout=60.0),
    )
)


def default_data_dir() -> Path:
    """Return the platform's directory for user data."""
    return user_data_path("uptrail", appauthor=False)


def default_pipelines() -> dict[str, Pipeline]:
    return {"default": DEFAULT_PIPELINE}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes in bytes, times in seconds. `uptrail config show` prints the source of each value."""

    # Where things are.
    data_dir: Annotated[
        Path, Meta(description="data directory: everything that Uptrail stores locally")
    ] = msgspec.field(default_factory=default_data_dir)
    database_url: Annotated[
        str | None, Meta(description="your PostgreSQL; without it, an embedded one in `data_dir`")
    ] = None
    blobs: Annotated[
        str | None,
        Meta(
            description="blob store: a folder, or `s3://bucket/prefix?endpoint=...`; without it,"
            " `blobs` in `data_dir`"
        ),
    ] = None

    # Serving.
    host: Annotated[
        str, Meta(min_length=1, description="address to listen on; beyond this machine, add TLS")
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="port to listen on; 0 takes any free one")
    ] = 8080
    processes: Annotated[
        int, Meta(ge=1, le=256, description="API processes that share that port, on this machine")
    ] = 1
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="origins whose pages may upload and watch; `*` for any, with a key only"),
    ] = ()
    cors_allowed_headers: Annotated[
        tuple[HeaderName, ...],
        Meta(
            description="additional request headers for those pages; `*` allows any requested"
            " header"
        ),
    ] = ("*",)
    trust_forwarded: Annotated[
        bool, Meta(description="whether a proxy in front sets Forwarded or X-Forwarded-*")
    ] = False
    tus_path: Annotated[
        TusPath,
        Meta(description="path of the tusd-compatible tus endpoint; empty for none"),
    ] = "/files/"
    interim_responses: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="whether IETF clients are sent 104 while a body arrives; `auto`: not"
            " behind a proxy"
        ),
    ] = "auto"
    keep_alive_timeout: Annotated[
        Seconds, Meta(description="time that an idle connection is kept open")
    ] = 75.0
    max_body: Annotated[Bytes, Meta(description="largest JSON or NDJSON request")] = 16 * MIB
    shutdown_grace: Annotated[
        Seconds, Meta(description="time for running work to finish when the server stops")
    ] = 10.0
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="`auto`: `console` on a terminal, else `json`"),
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="lowest level that is logged"),
    ] = "info"

    # Uploading.
    max_file_size: Annotated[Bytes, Meta(description="largest file")] = TIB
    max_batch_bytes: Annotated[
        Bytes, Meta(description="most bytes of one batch; 0 is without limit")
    ] = 0
    max_batch_files: Annotated[
        Limit, Meta(description="most files of one batch; 0 is without limit")
    ] = 0
    max_owner_bytes: Annotated[
        Bytes, Meta(description="most bytes kept for one owner; 0 is without limit")
    ] = 0
    max_owner_files: Annotated[
        Limit, Meta(description="most files kept for one owner; 0 is without limit")
    ] = 0
    max_owner_transfers: Annotated[
        Limit,
        Meta(
            description="most concurrent transfers of one owner, over all processes; 0 is"
            " without limit"
        ),
    ] = 0
    max_manifest_files: Annotated[Count, Meta(description="most files in one manifest")] = 10_000
    max_metadata: Annotated[Bytes, Meta(description="largest Upload-Metadata header")] = 16 * KIB
    read_buffer: Annotated[
        Bytes, Meta(description="unread bytes of one sender above which its socket is not read")
    ] = 8 * KIB
    progress_interval: Annotated[
        Seconds,
        Meta(description="shortest time between two recorded progress events of one transfer"),
    ] = 0.5
    transfer_idle_timeout: Annotated[
        Seconds,
        Meta(description="silence in a request body after which its sender counts as disconnected"),
    ] = 60.0
    min_transfer_rate: Annotated[
        Bytes,
        Meta(description="bytes a second that a body must bring over `transfer_idle_timeout`"),
    ] = 128
    upload_expiry: Annotated[
        Seconds, Meta(description="time after its last byte that an unfinished upload is kept")
    ] = 7 * DAY
    min_free_bytes: Annotated[
        Bytes, Meta(description="free disk space below which uploads are refused")
    ] = 256 * MIB

    # Processing.
    pipelines: Annotated[
        dict[str, Pipeline], Meta(description="named lists of steps, besides `default`")
    ] = msgspec.field(default_factory=default_pipelines)
    retry_policy: Annotated[
        RetryPolicy, Meta(description="number and delays of processing attempts")
    ] = RetryPolicy()
    public_url: Annotated[
        Address | None,
        Meta(
            description="public URL of this server for clients, `http` services and webhook"
            " receivers"
        ),
    ] = None
    allow_private_addresses: Annotated[
        bool, Meta(description="whether `http` steps and webhooks may connect to private addresses")
    ] = False
    worker_concurrency: Annotated[
        Count, Meta(description="uploads that one worker processes at once")
    ] = 16
    uploads_per_job: Annotated[Count, Meta(description="most uploads in one job")] = 50
    worker_heartbeat: Annotated[
        Seconds, Meta(description="time between two heartbeats of a worker")
    ] = 2.0
    worker_dead_after: Annotated[
        Seconds, Meta(description="time without a heartbeat after which a worker counts as dead")
    ] = 10.0
    max_worker_losses: Annotated[
        Count, Meta(description="workers lost while processing one file after which the file fails")
    ] = 5
    step_processes: Annotated[
        Count, Meta(description="processes in which one worker runs steps of installed packages")
    ] = 8
    step_memory: Annotated[
        int,
        Meta(
            ge=16 * MIB,
            description="memory limit of the process of such a step",
            extra={"unit": "bytes"},
        ),
    ] = 1024 * MIB
    step_progress_interval: Annotated[
        Seconds, Meta(description="shortest time between two recorded progress events of one step")
    ] = 0.5

    # Orchestrating.
    batch_progress_interval: Annotated[
        Seconds, Meta(description="shortest time between two recorded counts of one batch")
    ] = 0.25
    batch_expiry: Annotated[
        Seconds, Meta(description="time after its last event that an open batch is kept")
    ] = 14 * DAY
    in_flight_per_batch: Annotated[
        Count, Meta(description="uploads of one batch at the workers at once")
    ] = 200
    in_flight_per_owner: Annotated[
        Count, Meta(description="uploads of one owner at the workers at once")
    ] = 400

    # Webhooks.
    webhook_timeout: Annotated[
        Seconds, Meta(description="time limit for the response of a webhook's receiver")
    ] = 15.0
    webhook_disable_after: Annotated[
        Seconds, Meta(description="time of nothing but failures after which a webhook is disabled")
    ] = 5 * DAY
    webhook_max_pending: Annotated[
        Count, Meta(description="most queued deliveries of one webhook; further events are missed")
    ] = 250_000
    webhook_retention: Annotated[
        Seconds, Meta(description="time for which delivered and failed deliveries are kept")
    ] = 14 * DAY

    # Sealing.
    seal_interval: Annotated[Seconds, Meta(description="time between two log seals")] = 60.0
    seal_key: Annotated[
        Path | None,
        Meta(description="file with the private key of log seals; without it, one in `data_dir`"),
    ] = None

    # Erasing.
    master_keys: Annotated[
        Path | None,
        Meta(description="folder with the keys that encrypt owners' keys, shared by all machines"),
    ] = None
    master_key_command: Annotated[
        tuple[str, ...],
        Meta(
            description="command that keeps those keys instead, for example a KMS (docs/audit.md)"
        ),
    ] = ()

    # Watching.
    feed_tick: Annotated[Seconds, Meta(description="shortest time between two feed frames")] = 0.1
    feed_heartbeat: Annotated[Seconds, Meta(description="time between two feed heartbeats")] = 15.0
    feed_buffer: Annotated[
        Bytes,
        Meta(
            description="unsent bytes of one client above which it catches up from the read model"
        ),
    ] = MIB

    def retry_policy_of(self, pipeline: str) -> RetryPolicy:
        """That of the pipeline where it has one of its own."""
        own = self.pipelines.get(pipeline)
        return self.retry_policy if own is None or own.retry_policy is None else own.retry_policy

    @property
    def blob_dir(self) -> Path:
        """The folder for the bytes, unless they are in a bucket."""
        return Path(self.blobs) if self.blobs else self.data_dir / "blobs"

    @property
    def blob_bucket(self) -> str | None:
        """The bucket for the bytes, `s3://...`, if they are in one."""
        return self.blobs if self.blobs and self.blobs.startswith("s3://") else None

    @property
    def admin_key_file(self) -> Path:
        return self.data_dir / "admin.key"

    @property
    def seal_key_file(self) -> Path:
        return self.seal_key or self.data_dir / "seal.key"

    @property
    def master_key_folder(self) -> Path:
        return self.master_keys or self.data_dir / "master-keys"
