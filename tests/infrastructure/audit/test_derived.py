"""SQL changes derived tables; verification names the row and the difference."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from application.append import Append, Causation, IdempotencyRecord, StreamAppend
from application.audit.derived import DerivedCheck
from domain.batch.events import BatchCompleted
from domain.batch.state import Outcome
from domain.event import Event
from domain.upload.events import FileProgressed
from domain.upload.state import UploadState
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookFilter
from infrastructure.audit.derived import check_derived
from infrastructure.event_store.codec import CODEC
from infrastructure.read_model import projector
from infrastructure.webhooks.dispatcher import WebhookDispatcher, dispatcher_leadership
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.bootstrap.tasks import supervise
from tests.builders import ALICE, NOON, registered, started
from tests.conftest import Databases
from tests.infrastructure.jobs.fake_processors import pass_file
from tests.infrastructure.jobs.harness import PipelineHarness, open_harness, pipeline
from tests.support import eventually, run, tamper, with_database

OTHER = "00000000-0000-0000-0000-0000000000aa"


@pytest.fixture(scope="module")
def history(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database in which two batches, a long stream and two webhooks left their derived rows."""
    name = databases.take()
    url = with_database(databases.server_url, name)
    run(_record(url, tmp_path_factory.mktemp("history")))
    yield name
    databases.drop(name)


@pytest.fixture
def altered(history: str, databases: Databases) -> Iterator[str]:
    """A copy of that database, for one test to alter."""
    name = f"uptrail_test_{uuid4().hex[:12]}"
    with psycopg.connect(databases.server_url, autocommit=True) as server:
        server.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(history))
        )
    yield with_database(databases.server_url, name)
    databases.drop(name)


async def _record(url: str, folder: Path) -> None:
    async with open_harness(url, folder, pipelines=pipeline("step")) as harness:
        await _add_webhooks(harness)
        harness.run({"step": pass_file})
        batches = [await harness.batch({"a.txt": b"x", "b.txt": b"y"}) for _ in range(2)]
        for batch in batches:
            await harness.completed(batch)
        await _long_stream(harness, await harness.batch(seal=False))
        await harness.cancel(await harness.batch(seal=False), "no longer needed")
        head = await eventually(lambda: _all_read(harness))
        assert head > 100
        await harness.stop()
        await harness.fetch_none(  # it keeps its place only where it had something to queue
            f"UPDATE notification_tracking SET notification_id = {head}"
            " WHERE application_name = 'webhooks'"
        )


async def _add_webhooks(harness: PipelineHarness) -> None:
    for number in (1, 2):
        chosen = WebhookFilter(url=f"https://hooks.example/{number}", events=("batch.completed",))
        id = uuid4()
        secret = await PostgresWebhooks(harness.pool).make_secret(id)
        added = Webhook.add("acme", chosen, secret.id, at=NOON, by=ALICE)
        await harness.log.append(Append((StreamAppend(id, 0, added),)))
    follower = WebhookDispatcher(
        dispatcher_leadership(harness.url),
        harness._listener.wakeups(),
        _Bell(),
        most=100,
        now=lambda: NOON,
    )
    harness.start(supervise("webhooks", follower.run, essential=False))


class _Bell:
    def set(self) -> None:
        """Do nothing: no delivery runs here."""


async def _long_stream(harness: PipelineHarness, batch: object) -> None:
    """An upload with so many events that a snapshot is written, recorded by a command."""
    stream, command = uuid4(), uuid4()
    now = datetime.now(UTC)  # a batch in which nothing happened for months would expire
    first: list[Event] = [registered(batch=batch, size=1000, at=now)]
    first += [
        FileProgressed(at=now, by=ALICE, phase="transfer", done=n, total=1000) for n in range(120)
    ]
    answer = IdempotencyRecord(command, "acme", "fingerprint", b"{}")
    await harness.log.append(
        Append(
            (StreamAppend(stream, 0, tuple(first)),), cause=Causation(command), idempotency=answer
        )
    )
    await harness.log.upload(stream)
    await harness.log.close()


async def _all_read(harness: PipelineHarness) -> int:
    """Return the end of the log after every follower has read it and appends have stopped."""
    head = await harness.log.head()
    await projector.catch_up(harness.url, harness.log)
    tracked = dict(
        await harness.fetch("SELECT application_name, notification_id FROM notification_tracking")
    )
    # A batch that is dirty has progress to be recorded, which moves the end of the log.
    busy = await harness.fetch(
        "SELECT FROM orchestration.batches WHERE state = 'cancelling' OR dirty"
    )
    ((deliveries, ended),) = await harness.fetch(
        "SELECT (SELECT count(*) FROM webhooks.deliveries),"
        " (SELECT count(*) FROM stored_events WHERE topic = 'batch.completed')"
    )
    moved = tracked["orchestrator"] != head or await harness.log.head() != head
    if busy or moved or deliveries < 2 * ended:
        return 0
    return head


async def check(url: str) -> DerivedCheck:
    return await check_derived(url, CODEC)


async def test_unaltered_rows_follow_from_the_log(history: str, databases: Databases) -> None:
    found = await check(with_database(databases.server_url, history))

    assert found.findings == []
    assert found.checked == {
        "snapshots": 1,
        "members": 5,
        "batches": 4,
        "webhooks": 2,
        "answers": 1,
        "keys": 0,
        "sessions": 0,
        "logins": 0,
        "erasures": 0,
        "owner keys": 0,
    }


SNAPSHOT = "convert_from(state, 'UTF8')::jsonb"


@pytest.mark.parametrize(
    ("statement", "kind", "table", "detail"),
    [
        (
            f"UPDATE stored_snapshots SET state = convert_to(({SNAPSHOT}"
            " || '{\"owner\": \"globex\"}')::text, 'UTF8')",
            "snapshot_altered",
            "stored_snapshots",
            "owner is globex, the log says acme",
        ),
        (
            "UPDATE stored_snapshots SET state = 'nothing'",
            "snapshot_altered",
            "stored_snapshots",
            "cannot be read",
        ),
        (
            "UPDATE stored_snapshots SET originator_version = 5000",
            "snapshot_altered",
            "stored_snapshots",
            "has no version 5000",
        ),
        (
            f"UPDATE stored_snapshots SET originator_id = '{OTHER}'",
            "snapshot_altered",
            "stored_snapshots",
            "no event in the log",
        ),
        (
            "UPDATE orchestration.batches SET owner = 'globex' WHERE state = 'completed'",
            "orchestration_altered",
            "orchestration.batches",
            "owner is globex",
        ),
        (
            "UPDATE orchestration.batches SET state = 'open' WHERE ending = 'cancelled'",
            "orchestration_altered",
            "orchestration.batches",
            "state is open",
        ),
        (
            "UPDATE orchestration.batches SET reason = 'mine' WHERE ending = 'cancelled'",
            "orchestration_altered",
            "orchestration.batches",
            "reason is mine, the log says no longer needed",
        ),
        (
            "UPDATE orchestration.batches SET bytes_received = 77 WHERE ending IS NULL"
            " AND state = 'completed'",
            "orchestration_altered",
            "orchestration.batches",
            "progress.bytes_received is 77",
        ),
        (
            "UPDATE orchestration.batches SET failure_threshold = 0.5",
            "orchestration_altered",
            "orchestration.batches",
            "failure_threshold is 0.5",
        ),
        (
            "UPDATE orchestration.members SET state = 'received' WHERE state = 'completed'",
            "orchestration_altered",
            "orchestration.members",
            "state is received, the log says completed",
        ),
        (
            "UPDATE orchestration.members SET owner = 'globex'",
            "orchestration_altered",
            "orchestration.members",
            "owner is globex",
        ),
        (
            "UPDATE orchestration.members SET version = version + 1 WHERE state = 'completed'",
            "orchestration_altered",
            "orchestration.members",
            "which the stream does not have",
        ),
        (
            "DELETE FROM orchestration.members WHERE state = 'completed'",
            "orchestration_altered",
            "orchestration.members",
            "is missing",
        ),
        (
            f"UPDATE orchestration.members SET upload = '{OTHER}' WHERE state = 'transferring'",
            "orchestration_altered",
            "orchestration.members",
            "no event in the log",
        ),
        (
            "UPDATE orchestration.members SET state = 'nonsense' WHERE state = 'completed'",
            "orchestration_altered",
            "orchestration.members",
            "'nonsense' is not a valid UploadState",
        ),
        (
            "UPDATE orchestration.batches SET progressed_at = now(), counts = NULL",
            "orchestration_altered",
            "orchestration.batches",
            "holds what nothing writes there",
        ),
        (
            "DELETE FROM orchestration.active_members",
            "orchestration_altered",
            "orchestration.active_members",
            "missing, not incoming",
        ),
        (
            "UPDATE orchestration.active_members SET kind = 'received'",
            "orchestration_altered",
            "orchestration.active_members",
            "received, not incoming",
        ),
        (
            "UPDATE orchestration.active_members SET owner = 'globex'",
            "orchestration_altered",
            "orchestration.active_members",
            "is of another batch or owner",
        ),
        (
            "INSERT INTO orchestration.active_members SELECT upload, batch, owner, 'flight'"
            " FROM orchestration.members WHERE state = 'completed' LIMIT 1",
            "orchestration_altered",
            "orchestration.active_members",
            "nothing may be done with this upload any more",
        ),
        (
            f"UPDATE webhooks.deliveries SET stream = '{OTHER}'",
            "delivery_altered",
            "webhooks.deliveries",
            f"stream is {OTHER}",
        ),
        (
            "UPDATE webhooks.deliveries SET version = version + 1",
            "delivery_altered",
            "webhooks.deliveries",
            "version is",
        ),
        (
            "UPDATE webhooks.deliveries SET type = 'batch.started'",
            "delivery_altered",
            "webhooks.deliveries",
            "type is batch.started, the log says batch.completed",
        ),
        (
            "INSERT INTO orchestration.retries SELECT batch, gen_random_uuid()"
            " FROM orchestration.batches LIMIT 1",
            "orchestration_altered",
            "orchestration.retries",
            "no retry of this batch was requested",
        ),
        (
            "UPDATE webhooks.endpoints SET webhook = jsonb_set(webhook, '{subscription,url}',"
            " '\"https://evil.example/\"')",
            "webhook_altered",
            "webhooks.endpoints",
            "https://evil.example/",
        ),
        (
            "UPDATE webhooks.endpoints SET owner = 'globex'",
            "webhook_altered",
            "webhooks.endpoints",
            "owner (column)",
        ),
        (
            "UPDATE webhooks.endpoints SET enabled = false",
            "webhook_altered",
            "webhooks.endpoints",
            "enabled (column)",
        ),
        (
            "UPDATE webhooks.endpoints SET webhook = jsonb_set(webhook, '{subscription,events}',"
            " '[\"upload.failed\"]')",
            "webhook_altered",
            "webhooks.endpoints",
            "upload.failed",
        ),
        (
            "DELETE FROM webhooks.secrets",
            "webhook_altered",
            "webhooks.secrets",
            "is missing",
        ),
        ("DELETE FROM webhooks.endpoints", "webhook_altered", "webhooks.endpoints", "is missing"),
        (
            f"UPDATE webhooks.endpoints SET id = '{OTHER}' WHERE webhook ->> 'id' ="
            " (SELECT min(webhook ->> 'id') FROM webhooks.endpoints)",
            "webhook_altered",
            "webhooks.endpoints",
            "no event in the log",
        ),
        (
            "DELETE FROM webhooks.deliveries",
            "delivery_altered",
            "webhooks.deliveries",
            "is missing, or was passed over",
        ),
        (
            "INSERT INTO webhooks.deliveries (webhook, position, lane, stream, version, type,"
            " queued_at) SELECT webhook, position - 1, lane, stream, version, type, queued_at"
            " FROM webhooks.deliveries",
            "delivery_altered",
            "webhooks.deliveries",
            "is not to be delivered to it",
        ),
        (
            "UPDATE command_answers SET position = 1",
            "answer_altered",
            "command_answers",
            "was not recorded by this command",
        ),
    ],
)
async def test_an_altered_row_is_named_with_what_differs(
    altered: str, statement: str, kind: str, table: str, detail: str
) -> None:
    tamper(altered, statement)

    found = await check(altered)

    named = [one for one in found.findings if (one.kind, one.table) == (kind, table)]
    assert any(detail in one.detail for one in named), found.findings


@pytest.mark.parametrize("follower", ["orchestrator", "read_model", "webhooks"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE notification_tracking SET notification_id = notification_id + 1000",
        "UPDATE notification_tracking SET notification_id = 1",
        "DELETE FROM notification_tracking",
    ],
)
async def test_a_moved_tracking_position_is_named(altered: str, follower: str, change: str) -> None:
    tamper(altered, f"{change} WHERE application_name = '{follower}'")

    found = await check(altered)

    assert {one.kind for one in found.findings} == {"tracking_moved"} or follower == "webhooks"
    assert ("tracking_moved", follower) in [(one.kind, one.key) for one in found.findings]


async def test_a_moved_position_is_distinguished_from_altered_rows(
    altered: str, tmp_path: Path
) -> None:
    """Append an event that no follower reads, then move the positions past it."""

    async with open_harness(altered, tmp_path) as harness:
        ((upload,),) = await harness.fetch(
            "SELECT upload FROM orchestration.members WHERE state = 'transferring'"
        )
        event = FileProgressed(at=NOON, by=ALICE, phase="transfer", done=500, total=1000)
        await harness.log.append(Append((StreamAppend(upload, None, (event,)),)))
    assert (await check(altered)).sound  # events that no follower has read yet are no finding

    tamper(
        altered,
        "UPDATE notification_tracking SET notification_id = notification_id + 1"
        " WHERE application_name IN ('orchestrator', 'read_model')",
    )
    found = await check(altered)

    assert {(one.kind, one.key) for one in found.findings} == {
        ("tracking_moved", "orchestrator"),
        ("tracking_moved", "read_model"),
    }


async def test_a_webhooks_position_moved_past_an_event_is_found_by_its_delivery(
    altered: str, tmp_path: Path
) -> None:
    async with open_harness(altered, tmp_path) as harness:
        batch = uuid4()
        counts = {UploadState.COMPLETED: 1}
        at = datetime.now(UTC)
        ended = BatchCompleted(
            at=at, by=ALICE, outcome=Outcome.SUCCEEDED, counts=counts, duration=1.0
        )
        await harness.log.append(Append((StreamAppend(batch, 0, (started(), ended)),)))
    before = (await check(altered)).findings
    tamper(
        altered,
        "UPDATE notification_tracking SET notification_id = notification_id + 2"
        " WHERE application_name = 'webhooks'",
    )

    found = [one for one in (await check(altered)).findings if one not in before]

    assert {one.kind for one in found} == {"delivery_altered"}
    assert len(found) == 2  # of either webhook


async def test_pages_of_any_size_lead_to_the_same_findings(
    altered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper(altered, "UPDATE orchestration.members SET owner = 'globex'")
    at_once = await check(altered)
    monkeypatch.setattr("infrastructure.audit.derived.ROWS_PER_CHUNK", 7)

    assert (await check(altered)).findings == at_once.findings
