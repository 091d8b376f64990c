"""A log with events that only a later version of Uptrail knows, read by this one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from application.append import append_to_stream
from application.errors import NotFound, Unavailable
from application.ports.read_model import FeedFilter
from application.ports.webhooks import Delivery
from application.webhooks.notifications import PayloadBuilder
from domain.batch.state import BatchState
from domain.event import Event, Personal, Public, UnknownEvent, event_fields, event_type
from domain.upload.events import FileProgressed
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookFilter
from infrastructure.audit.derived import check_derived
from infrastructure.event_store.codec import CODEC
from infrastructure.event_store.event_log import SNAPSHOT_INTERVAL_EVENTS
from infrastructure.event_store.writer import append_in
from infrastructure.read_model import projector
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.feed import PostgresFeed
from infrastructure.read_model.history import PostgresHistory
from infrastructure.read_model.queries import PostgresQueries
from infrastructure.read_model.rebuild import rebuild, verify
from infrastructure.webhooks.dispatcher import WebhookDispatcher, dispatcher_leadership
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.bootstrap.tasks import supervise
from tests.builders import ALICE, NOON, registered
from tests.infrastructure.jobs.fake_processors import pass_file
from tests.infrastructure.jobs.harness import PipelineHarness, now, open_harness, pipeline
from tests.interfaces.rest.server import serving
from tests.support import eventually

# The later version: its events, and its writer, which is ours with these classes.


@event_type("Batch annotated", delivered=True)
class BatchAnnotated(Event, frozen=True, kw_only=True, tag="batch.annotated"):
    note: Personal[str]


@event_type("Upload tagged")
class UploadTagged(Event, frozen=True, kw_only=True, tag="upload.tagged"):
    tags: Public[Mapping[str, str]] = {}


@event_type("Team created", opens=True)
class TeamCreated(Event, frozen=True, kw_only=True, tag="team.created"):
    owner: Public[str]


async def record(harness: PipelineHarness, stream: UUID, *events: Event) -> int:
    """Append as a process of the later version does; return the last position."""
    async with harness.pool.connection() as connection, connection.transaction():
        appended = await append_in(connection, append_to_stream(stream, None, *events))
    return appended.position


@asynccontextmanager
async def upgraded(url: str, folder: Path) -> AsyncIterator[tuple[PipelineHarness, UUID]]:
    """A batch with an event of an unknown type in each stream, and a stream of an unknown kind."""
    async with open_harness(url, folder, pipelines=pipeline("step")) as harness:
        batch = await harness.batch({"a.txt": b"x", "b.txt": b"y"}, seal=False)
        await record(harness, uuid4(), TeamCreated(at=now(), by=ALICE, owner="acme"))
        await record(harness, batch, BatchAnnotated(at=now(), by=ALICE, note="other"))
        for upload in (await harness.uploads(batch)).values():
            await record(
                harness, upload.id, UploadTagged(at=now(), by=ALICE, tags={"colour": "red"})
            )
        yield harness, batch


async def head_is_projected(harness: PipelineHarness) -> bool:
    return await projector.catch_up(harness.url, harness.log) == await harness.log.head()


async def test_a_batch_is_received_processed_and_completed_between_unknown_events(
    database_url: str, tmp_path: Path
) -> None:
    async with upgraded(database_url, tmp_path) as (harness, batch):
        harness.run({"step": pass_file})
        await harness.seal(batch)
        completed = await harness.completed(batch)

        assert completed.version == len(await harness.log.stream(batch))
        tracked = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
        head = await harness.log.head()

        async def is_read() -> bool:
            return (await harness.fetch(tracked, "orchestrator"))[0][0] >= head

        await eventually(is_read)
        versions = await harness.fetch("SELECT batch, version FROM orchestration.batches")
        assert versions == [(batch, completed.version)]


async def test_the_read_model_passes_unknown_events_over_and_is_sound(
    database_url: str, tmp_path: Path
) -> None:
    async with upgraded(database_url, tmp_path) as (harness, batch):
        await harness.seal(batch)
        assert await head_is_projected(harness)
        engine = make_engine(database_url)
        queries = PostgresQueries(engine, harness._listener.wakeups())
        row = await queries.batch(batch, owner="acme")
        reached, _ = await PostgresFeed(harness.pool).reach()
        changes = await PostgresFeed(harness.pool).changes(
            FeedFilter(owner="acme", batches=None), since=0, after=0, limit=100
        )
        rebuilt = await rebuild(database_url, harness.log)
        verification = await verify(database_url, harness.log)
        derived = await check_derived(database_url, CODEC)
        await engine.dispose()

    assert (row.state, row.label) == (BatchState.SEALED, "")
    assert reached == rebuilt.position
    assert {item.id for item in changes.batches} == {batch}
    assert verification.sound
    assert [finding for finding in derived.findings if finding.kind != "tracking_moved"] == []


async def test_a_history_shows_unknown_events_raw(database_url: str, tmp_path: Path) -> None:
    async with upgraded(database_url, tmp_path) as (harness, batch):
        assert await head_is_projected(harness)
        engine = make_engine(database_url)
        history = PostgresHistory(engine)
        of_batch = await history.of_batch(batch, owner="acme")
        everything = await history.of_everything(owner=None)
        await engine.dispose()
        async with serving(database_url, tmp_path) as server:
            page = await server.get(f"/v1/batches/{batch}/history")

    unknown = [one.event for one in of_batch if isinstance(one.event, UnknownEvent)]
    assert [event.topic for event in unknown] == ["batch.annotated", *["upload.tagged"] * 2]
    assert event_fields(unknown[0])["note"] == "other"
    topics = {one.event.topic for one in everything if isinstance(one.event, UnknownEvent)}
    assert topics == {"batch.annotated", "upload.tagged", "team.created"}
    shown = [item for item in page.json["items"] if item["type"] == "upload.tagged"]
    assert [item["data"] for item in shown] == [{"tags": {"colour": "red"}}] * 2


async def test_a_stream_of_an_unknown_kind_is_not_found(database_url: str, tmp_path: Path) -> None:
    async with open_harness(database_url, tmp_path) as harness:
        team = uuid4()
        await record(harness, team, TeamCreated(at=now(), by=ALICE, owner="acme"))

        with pytest.raises(NotFound):
            await harness.log.batch(team)


async def test_no_snapshot_hides_an_unknown_event_from_the_version_that_knows_it(
    database_url: str, tmp_path: Path
) -> None:
    progress = [
        FileProgressed(at=now(), by=ALICE, phase="transfer", done=done, total=9999)
        for done in range(1, SNAPSHOT_INTERVAL_EVENTS + 10)
    ]
    async with open_harness(database_url, tmp_path) as harness:
        known, unknown, batch = uuid4(), uuid4(), await harness.batch(seal=False)
        for stream in (known, unknown):
            await record(harness, stream, registered(batch=batch, size=9999))
        await record(harness, unknown, UploadTagged(at=now(), by=ALICE))
        for stream in (known, unknown):
            await record(harness, stream, *progress)
            upload = await harness.log.upload(stream)
            assert upload.version == len(await harness.log.stream(stream))
            assert upload.received == SNAPSHOT_INTERVAL_EVENTS + 9
            await harness.log.upload(stream)  # from memory, which knows of it too
        await harness.log.close()
        taken = await harness.fetch("SELECT DISTINCT originator_id FROM stored_snapshots")

    assert taken == [(known,)]


async def test_webhooks_are_followed_past_unknown_events_and_theirs_are_left_to_others(
    database_url: str, tmp_path: Path
) -> None:
    """The later version let a webhook choose a type that this one does not know."""
    async with upgraded(database_url, tmp_path) as (harness, batch):
        webhook = uuid4()
        secret = await PostgresWebhooks(harness.pool).make_secret(webhook)
        chosen = WebhookFilter(url="https://hooks.example/1", events=("batch.sealed",))
        (added,) = Webhook.add("acme", chosen, secret.id, at=NOON, by=ALICE)
        later = replace(chosen, events=("batch.sealed", "batch.annotated"))
        await record(harness, webhook, replace(added, subscription=later))
        position = await record(harness, batch, BatchAnnotated(at=now(), by=ALICE, note="x"))
        await harness.seal(batch)
        follower = WebhookDispatcher(
            dispatcher_leadership(database_url),
            harness._listener.wakeups(),
            _Bell(),
            most=100,
            now=lambda: NOON,
        )
        harness.start(supervise("webhooks", follower.run, essential=False))
        query = "SELECT type FROM webhooks.deliveries ORDER BY position"

        async def is_queued() -> list[Any] | None:
            found = await harness.fetch(query)
            return found if len(found) == 2 else None

        queued = await eventually(is_queued)
        engine = make_engine(database_url)
        teller = PayloadBuilder(
            harness.log, PostgresQueries(engine, harness._listener.wakeups()), ""
        )
        delivery = Delivery(
            webhook=webhook,
            position=position,
            lane=batch,
            stream=batch,
            version=0,
            type="batch.annotated",
            queued_at=NOON,
        )
        with pytest.raises(Unavailable, match=r"does not know events of type batch\.annotated"):
            await teller.body(delivery)
        await engine.dispose()

    assert json.loads(json.dumps(queued)) == [["batch.annotated"], ["batch.sealed"]]


class _Bell:
    def set(self) -> None:
        """Do nothing: no delivery runs here."""
