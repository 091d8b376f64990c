"""The stock library reads every event through our mapper, and may write to the same tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Notification, Tracking
from eventsourcing.postgres import PostgresFactory
from eventsourcing.utils import Environment
from psycopg.conninfo import conninfo_to_dict

from application.append import append_to_stream
from domain.batch.events import BatchProgressed
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.event_store.mapper import LibraryEvent, StructMapper
from tests.builders import ALICE, BATCH, FILE, NOON, received, registered, started
from tests.harness import open_log
from tests.infrastructure.event_store.examples import CAUSE, EXAMPLES
from tests.infrastructure.event_store.log_support import (
    done_in,
    new_stream,
    step,
    whole_log,
)


class StockApplication(Application[UUID]):
    """The library as it comes, but for the mapper; unnamed, so that it finds our tables."""

    name = ""
    is_snapshotting_enabled = True

    def construct_mapper(self) -> Mapper[UUID]:
        return StructMapper()


def environment(url: str) -> dict[str, str]:
    known = conninfo_to_dict(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(known["dbname"]),
        "POSTGRES_HOST": str(known["host"]),
        "POSTGRES_PORT": str(known.get("port", 5432)),
        "POSTGRES_USER": str(known["user"]),
        "POSTGRES_PASSWORD": str(known.get("password", "none")),
        "CREATE_TABLE": "no",
    }


@contextmanager
def stock(url: str) -> Iterator[StockApplication]:
    with StockApplication(environment(url)) as application:
        yield application


async def test_the_library_reads_every_event_we_record(database_url: str) -> None:
    async with GroupCommitter(database_url) as committer:
        for event in EXAMPLES:
            await committer.append(append_to_stream(new_stream(), 0, event, cause=CAUSE))
    with stock(database_url) as application:
        notifications: list[Notification] = []
        while page := application.notification_log.select(
            start=notifications[-1].id if notifications else 0, limit=10, inclusive_of_start=False
        ):
            notifications += page
        mapper = StructMapper()
        facts = [mapper.to_domain_event(notified) for notified in notifications]
    assert [(fact.event, fact.cause) for fact in facts] == [(event, CAUSE) for event in EXAMPLES]
    log = await whole_log(database_url)
    assert [notified.id for notified in notifications] == [item.position for item in log]


async def test_the_library_rebuilds_an_aggregate_from_our_events(
    database_url: str, log: PostgresEventLog
) -> None:
    await log.append(append_to_stream(FILE, 0, registered(), received()))
    expected = await log.upload(FILE)
    with stock(database_url) as application:
        assert application.repository.get(FILE) == expected
        assert application.repository.get(FILE, version=1).version == 1


async def test_the_library_starts_from_our_snapshots(
    database_url: str, log: PostgresEventLog
) -> None:
    await log.append(
        append_to_stream(BATCH, 0, started(), *(progress(number) for number in range(150)))
    )
    expected = await log.batch(BATCH)
    await log.close()
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM stored_events WHERE originator_version < 151")
    with stock(database_url) as application:
        assert application.repository.get(BATCH) == expected


def progress(number: int) -> BatchProgressed:
    return BatchProgressed(
        at=NOON, by=ALICE, counts={}, bytes_received=number, bytes_total=200, percent=0, through=1
    )


async def test_the_library_and_the_log_write_to_one_database_without_conflict(
    database_url: str,
) -> None:
    ours, theirs = new_stream(), new_stream()

    def save_fifty(application: StockApplication) -> None:
        for number in range(50):
            application.save(LibraryEvent(theirs, number + 1, step(number)))

    with stock(database_url) as application:
        async with GroupCommitter(database_url) as committer:
            saving = asyncio.create_task(asyncio.to_thread(save_fifty, application))
            for number in range(50):
                await committer.append(append_to_stream(ours, number, step(number)))
            await saving
    log = await whole_log(database_url)
    assert done_in(log, ours) == done_in(log, theirs) == list(range(50))


def test_the_library_accepts_our_tracking_table(database_url: str) -> None:
    factory = PostgresFactory(Environment(env={**environment(database_url), "CREATE_TABLE": "yes"}))
    with factory:
        recorder = factory.tracking_recorder()
        recorder.insert_tracking(Tracking("audit", 7))
        assert recorder.max_tracking_id("audit") == 7
    with psycopg.connect(database_url) as connection:
        backups = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'bkup%'"
        assert connection.execute(backups).fetchone() == (0,)


async def test_an_event_stored_by_the_library_is_read_by_the_log(database_url: str) -> None:
    with stock(database_url) as application:
        application.save(
            LibraryEvent(FILE, 1, registered(), CAUSE), LibraryEvent(FILE, 2, received(), CAUSE)
        )
    async with open_log(database_url) as log:
        assert (await log.upload(FILE)).received == 100
        recorded = await log.stream(FILE)
        assert [item.cause for item in recorded] == [CAUSE, CAUSE]
        await log.append(append_to_stream(FILE, 2, step(100)))
        assert (await log.upload(FILE)).version == 3
