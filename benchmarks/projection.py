"""Rebuild of the read model, compared with the library's projection runner."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import uvloop
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg import conninfo
from psycopg.sql import SQL

from application.append import Append, StreamAppend
from benchmarks.databases import fresh_database
from benchmarks.measure import Ratio, measure_alternating
from domain.event import Event
from domain.upload.events import (
    AttemptStarted,
    AttemptSucceeded,
    FileProgressed,
    FileReceived,
    UploadCompleted,
    UploadQueued,
    UploadRegistered,
)
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.event_store.mapper import StructMapper
from infrastructure.postgres.pool import make_pool
from infrastructure.read_model.rebuild import rebuild

EVENTS_PER_UPLOAD = 7
_STATES = "CREATE TABLE IF NOT EXISTS library_states (upload uuid PRIMARY KEY, state text)"


def run(scale: float) -> list[Ratio]:
    uploads, few = int(60_000 * scale), int(400 * scale)
    with fresh_database() as url, fresh_database() as library_url:
        uvloop.run(fill(url, uploads))
        uvloop.run(fill(library_url, few))
        ours, theirs = measure_alternating(
            3,
            lambda: uvloop.run(measure_rebuild(url, uploads * EVENTS_PER_UPLOAD)),
            lambda: measure_runner(library_url, few * EVENTS_PER_UPLOAD),
        )
    return [Ratio("projection, rebuild", "events/s", ours, "the library's runner", theirs, 50)]


async def fill(url: str, uploads: int) -> None:
    """Fill a log with uploads that were received and processed."""
    batch = uuid4()
    async with GroupCommitter(url) as committer:
        for start in range(0, uploads, 1000):
            count = min(1000, uploads - start)
            writes = [
                StreamAppend(uuid4(), 0, upload_history(batch, start + n)) for n in range(count)
            ]
            await committer.append(Append(tuple(writes)))


def upload_history(batch: UUID, number: int) -> tuple[Event, ...]:
    """Return the events of an upload that is received and processed without errors."""
    now: dict[str, Any] = {"at": datetime.now(UTC), "by": "benchmark"}
    return (
        UploadRegistered(
            **now, batch=batch, owner="default", path=f"f/{number}", size=9, pipeline="default"
        ),
        FileProgressed(**now, phase="transfer", done=9, total=9, percent=100.0),
        FileReceived(**now, size=9, blob=f"uploads/{number}"),
        UploadQueued(**now),
        AttemptStarted(**now, number=1, worker="benchmark"),
        AttemptSucceeded(**now, number=1, results={"checksum": {"sha256": "0" * 64}}, duration=1.0),
        UploadCompleted(**now),
    )


async def measure_rebuild(url: str, events: int) -> float:
    """Return the events per second of a rebuild, from the first event to the swap."""
    async with (
        make_pool(url, name="benchmark") as pool,
        GroupCommitter(url) as committer,
        PostgresEventLog(pool, committer) as log,
    ):
        begun = time.perf_counter()
        await rebuild(url, log)
        return events / (time.perf_counter() - begun)


class States(PostgresTrackingRecorder):
    """View of the library: the last topic of each upload, and the position."""

    def __init__(self, datastore: PostgresDatastore, **more: Any) -> None:
        super().__init__(datastore, **more)
        self.sql_create_statements.append(SQL(_STATES).format())

    def set(self, upload: UUID, state: str, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(
                "INSERT INTO library_states VALUES (%s, %s)"
                " ON CONFLICT (upload) DO UPDATE SET state = excluded.state",
                (upload, state),
            )
            self._insert_tracking(cursor, tracking)


class StatesProjection(Projection[States]):
    """Projects each event in its own transaction, as the library's runner does."""

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.set(domain_event.originator_id, type(domain_event.event).__name__, tracking)


class UptrailLog(Application[UUID]):
    """Application of the library on Uptrail's log; no name, since the tables have no prefix."""

    name = ""

    def construct_mapper(self) -> Mapper[UUID]:
        return StructMapper()


def measure_runner(url: str, events: int) -> float:
    """Return the events per second of the library's runner, from an empty view."""
    parts = conninfo.conninfo_to_dict(url)
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port", 5432)),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password", "")),
    }
    StatesProjection.name = f"states_{uuid4().hex[:8]}"
    begun = time.perf_counter()
    runner = ProjectionRunner(
        application_class=UptrailLog,
        projection_class=StatesProjection,
        view_class=States,
        env=environment,
    )
    with runner, closing(runner.app):
        last = runner.app.recorder.max_notification_id()
        runner.wait(last, timeout=600)
    return events / (time.perf_counter() - begun)
