"""Structured logs: one line an event, JSON for programs or coloured text for people."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TextIO, TypeAlias

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from infrastructure.postgres.pool import Pool

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
# psycopg sets the level of its logger itself, so that the root's would not apply to it.
_CHATTY = dict.fromkeys(("alembic", "aiohttp.access", "procrastinate", "psycopg"), logging.WARNING)


def configure_logging(format: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Send all log lines, also those of libraries, to one stream in one format.

    `format` is auto, json or console; owner, batch, upload, attempt and trace are added where they
    were bound with `structlog.contextvars`.
    """
    pretty = format == "console" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED, processors=_rendering(pretty, stream)
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _CHATTY.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _rendering(pretty: bool, stream: TextIO) -> list[Any]:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if pretty:
        return [
            remove,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                pad_event_to=28,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [remove, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


# Prometheus metrics: requests, bytes, and the lag of each component behind the log.
#
# Each application has its own registry, so that two in one process, as in tests, do not mix.
# Several processes on one port sum their values in shared files.

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the folder of the shared files; the library reads it itself
FOLLOWERS = ("read_model", "orchestrator", "webhooks")
ROLES = ("api", "orchestrator", "worker")
NAN = float("nan")
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

_VITALS = """SELECT
    (SELECT coalesce(max(notification_id), 0) FROM stored_events),
    (SELECT notification_id FROM notification_tracking WHERE application_name = 'read_model'),
    (SELECT notification_id FROM notification_tracking WHERE application_name = 'orchestrator'),
    (SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'),
    (SELECT coalesce(jsonb_object_agg(role, number), '{}') FROM (
        SELECT role, count(*) AS number FROM orchestration.processes, unnest(roles) role
        WHERE seen_at > now() - make_interval(secs => %s) GROUP BY role) alive),
    (SELECT notification_id FROM notification_tracking WHERE application_name = 'webhooks'),
    (SELECT count(*) FROM webhooks.deliveries WHERE state = 'pending'),
    (SELECT count(*) FROM webhooks.endpoints e LEFT JOIN webhooks.health h ON h.webhook = e.id
     WHERE NOT e.enabled OR h.failing_since IS NOT NULL),
    (SELECT extract(epoch FROM now() - min(queued_at))::float8 FROM webhooks.deliveries
     WHERE state = 'pending')"""


class SystemStats(msgspec.Struct, frozen=True, kw_only=True):
    """Positions of the log and its consumers, and queue lengths.

    `queued` are jobs for workers; `processes` are those alive, on all machines, by role.
    `deliveries` are pending webhook deliveries; `oldest_delivery` is the age of the oldest one in
    seconds, `webhooks_failing` counts disabled ones too.
    """

    head: int
    read_model: int = 0
    orchestrator: int = 0
    queued: int
    processes: dict[str, int] = {}
    webhooks: int = 0
    deliveries: int = 0
    webhooks_failing: int = 0
    oldest_delivery: float = 0.0


VitalSigns: TypeAlias = Callable[[], Awaitable[SystemStats]]
"""Takes them now; raises Unavailable."""


class PostgresSystemStats:
    """Positions and queue lengths, from the tables of the components.

    `dead_after` is the time in seconds without a heartbeat after which a process counts as dead.
    """

    def __init__(self, pool: Pool, dead_after: float = 10.0) -> None:
        self._pool = pool
        self._dead_after = dead_after

    async def __call__(self) -> SystemStats:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_VITALS, (self._dead_after,))).fetchone()
        named = zip(SystemStats.__struct_fields__, row or (), strict=True)
        return SystemStats(**{name: value for name, value in named if value is not None})


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "uptrail_http_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._series = lru_cache(1024)(self._make_series)
        self._seconds = Histogram(
            "uptrail_http_request_seconds",
            "Time from the request's head to the end of its answer",
            ("method", "route"),
            buckets=LATENCIES,
            registry=self.registry,
        )
        self._under_way = Gauge(
            "uptrail_http_requests_under_way",
            "Requests being answered",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._received = Counter(
            "uptrail_http_received_bytes", "Bytes of bodies received", registry=self.registry
        )
        self._head = self._gauge("uptrail_log_head", "Position of the last event")
        self._lag = Gauge(
            "uptrail_lag",
            "Positions behind the log",
            ("follower",),
            registry=self.registry,
            multiprocess_mode="mostrecent",
        )
        self._queued = self._gauge("uptrail_jobs_queued", "Jobs that wait for a worker")
        self._processes = Gauge(
            "uptrail_processes",
            "Processes alive, on all machines",
            ("role",),
            registry=self.registry,
            multiprocess_mode="mostrecent",
        )
        self._deliveries = self._gauge(
            "uptrail_webhook_deliveries_pending", "Deliveries to webhooks that wait"
        )
        self._failing = self._gauge(
            "uptrail_webhooks_failing", "Webhooks whose last delivery failed, or that are disabled"
        )
        self._oldest = self._gauge(
            "uptrail_webhook_oldest_delivery_seconds", "How long the oldest delivery has waited"
        )
        self._room = self._gauge("uptrail_storage_free_bytes", "Room left where bytes are stored")

    def begin(self) -> None:
        self._under_way.inc()

    def end(self, method: str, route: str, status: int, seconds: float, received: int) -> None:
        """Count a finished request; `received` is in bytes."""
        self._under_way.dec()
        requests, times = self._series(method, route, status)
        requests.inc()
        times.observe(seconds)
        self._received.inc(received)

    def _make_series(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        requests = self._requests.labels(method, route, str(status))
        return requests, self._seconds.labels(method, route)

    def update(self, vitals: SystemStats) -> None:
        self._head.set(vitals.head)
        self._lag.labels("read_model").set(max(0, vitals.head - vitals.read_model))
        self._lag.labels("orchestrator").set(max(0, vitals.head - vitals.orchestrator))
        self._lag.labels("webhooks").set(max(0, vitals.head - vitals.webhooks))
        self._queued.set(vitals.queued)
        for role in ROLES:
            self._processes.labels(role).set(vitals.processes.get(role, 0))
        self._deliveries.set(vitals.deliveries)
        self._failing.set(vitals.webhooks_failing)
        self._oldest.set(vitals.oldest_delivery)

    def room(self, free: int | None) -> None:
        """Set the free space in bytes; None if the store does not report it."""
        self._room.set(NAN if free is None else free)

    def lose(self) -> None:
        """Clear the gauges of components that cannot be queried: old values would mislead."""
        for gauge in (self._head, self._queued, self._deliveries, self._failing, self._oldest):
            gauge.set(NAN)
        for follower in FOLLOWERS:
            self._lag.labels(follower).set(NAN)
        for role in ROLES:
            self._processes.labels(role).set(NAN)

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus, for all processes of a port."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _gauge(self, name: str, help: str) -> Gauge:
        """Create a gauge of the whole server: the most recent value of any process counts."""
        return Gauge(name, help, registry=self.registry, multiprocess_mode="mostrecent")
