from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent

from application.append import Append, StreamAppend
from domain.errors import InvalidState
from domain.upload.events import AttemptFailed, UploadRegistered
from infrastructure.erasure import keyring
from infrastructure.event_store.codec import CODEC, Codec, UnreadableEvent
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.event_store.mapper import LibraryEvent, StructMapper
from infrastructure.event_store.reader import read_log
from infrastructure.postgres.pool import make_pool
from tests.builders import NOON, WORKER, registered
from tests.harness import open_log
from tests.infrastructure.erasure.memory_master_keys import keyring_on
from tests.infrastructure.event_store.log_support import connected
from tests.support import execute

STREAM = UUID("019b0000-0000-7000-8000-0000000000aa")
SECRET = "diary of alice.txt"
FILE = registered(path=SECRET, metadata={"from": "alice@example.org"}, checksum="sha-256:00")
FAILED = AttemptFailed(
    at=NOON,
    by=WORKER,
    number=1,
    step="archive",
    error_type="BadZip",
    message=f"{SECRET} is broken",
    permanent=True,
    duration=1.0,
)


@asynccontextmanager
async def open_keyed_log(url: str) -> AsyncIterator[PostgresEventLog]:
    """The event log of a process that encrypts with the keys of owners."""
    async with (
        make_pool(url, name="keys", max_size=2) as keys,
        open_log(url, Codec(encryption=await keyring_on(keys))) as log,
    ):
        yield log


async def record_at(url: str) -> None:
    async with open_keyed_log(url) as log:
        await record(log)


async def record(log: PostgresEventLog, stream: UUID | None = None) -> None:
    """A file of acme's, and what became of it."""
    write = StreamAppend(stream or uuid4(), 0, (FILE, FAILED), "acme")
    await log.append(Append((write,)))


async def events(log: PostgresEventLog) -> list[object]:
    return [recorded.event for recorded in await log.read(0, limit=100)]


def stored(url: str) -> list[tuple[str, bytes]]:
    with psycopg.connect(url) as connection:
        query = "SELECT topic, state FROM stored_events ORDER BY notification_id"
        return connection.execute(query).fetchall()


async def test_personal_fields_are_stored_encrypted_and_read_as_they_were(
    database_url: str,
) -> None:
    async with open_keyed_log(database_url) as log:
        await record(log)
        assert await events(log) == [FILE, FAILED]

    for _, state in stored(database_url):
        assert b"diary" not in state
        assert b"alice@" not in state
        assert state.startswith(b'{"private":{"key":"')
        assert b"acme" in state or b"archive" in state  # what is not personal can be read


async def test_another_process_reads_them_with_the_same_key(database_url: str) -> None:
    async with (
        open_keyed_log(database_url),
        open_keyed_log(database_url) as one,
        open_keyed_log(database_url) as two,
    ):
        await asyncio.gather(record(one), record(two))
    async with open_keyed_log(database_url) as log:
        assert await events(log) == [FILE, FAILED, FILE, FAILED]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit.owner_keys").fetchone() == (1,)


async def test_data_encrypted_with_a_destroyed_key_reads_as_erased(database_url: str) -> None:
    async with open_keyed_log(database_url) as log:
        await record(log, STREAM)
    execute(database_url, "UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now()")

    async with open_keyed_log(database_url) as log:
        file, failed = await events(log)

    assert isinstance(file, UploadRegistered)
    assert isinstance(failed, AttemptFailed)
    assert (file.path, file.metadata, file.checksum, file.owner) == ("", {}, None, "acme")
    assert (failed.message, failed.step) == ("", "archive")


async def test_a_process_notices_soon_that_a_key_was_destroyed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "KEY_CACHE_SECONDS", -1.0)

    async with open_keyed_log(database_url) as log:
        await record(log)
        assert await events(log) == [FILE, FAILED]
        execute(database_url, "UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now()")
        assert await events(log) != [FILE, FAILED]
        await record(log)  # with a new key
        assert (await events(log))[2:] == [FILE, FAILED]


async def test_no_batch_or_upload_starts_while_its_owner_is_erased(database_url: str) -> None:
    execute(
        database_url,
        "INSERT INTO audit.erasures (id, owner, reason, requested_by, requested_at)"
        " VALUES (gen_random_uuid(), 'acme', '', 'key:admin', now())",
    )

    async with open_keyed_log(database_url) as log:
        with pytest.raises(InvalidState, match="is being erased"):
            await record(log)
        await log.append(
            Append((StreamAppend(uuid4(), 0, (FAILED,), "acme"),))
        )  # what runs goes on
        assert len(await events(log)) == 1


async def test_an_event_without_a_known_owner_is_not_stored_in_the_clear(
    database_url: str,
) -> None:
    async with open_keyed_log(database_url) as log:
        with pytest.raises(ValueError, match="names no owner"):
            await log.append(Append((StreamAppend(uuid4(), 0, (FAILED,)),)))
    assert stored(database_url) == []


async def test_events_from_before_there_were_keys_stay_readable(database_url: str) -> None:
    async with GroupCommitter(database_url) as committer:
        await committer.append(Append((StreamAppend(uuid4(), 0, (FILE, FAILED)),)))
    async with open_keyed_log(database_url) as log:
        assert await events(log) == [FILE, FAILED]


async def test_a_reader_without_keys_gets_an_error_instead_of_a_partial_event(
    database_url: str,
) -> None:
    await record_at(database_url)

    async with connected(database_url) as connection:
        with pytest.raises(UnreadableEvent, match="there are no keys here"):
            await read_log(connection, 0, 10, None, CODEC)


async def test_the_librarys_tools_read_what_an_erasure_would_leave(database_url: str) -> None:
    await record_at(database_url)
    topic, state = stored(database_url)[0]

    stored_event = StoredEvent(originator_id=STREAM, originator_version=1, topic=topic, state=state)
    fact = StructMapper().to_domain_event(stored_event)

    assert isinstance(fact, LibraryEvent)
    assert isinstance(fact.event, UploadRegistered)
    assert fact.event.path == ""


async def test_a_box_that_was_altered_is_not_read(database_url: str) -> None:
    await record_at(database_url)
    topic, state = stored(database_url)[0]
    place = state.index(b'"box":"') + 30
    other = b"A" if state[place : place + 1] != b"A" else b"B"
    with psycopg.connect(database_url, autocommit=True) as connection:
        query = "UPDATE stored_events SET state = %s WHERE topic = %s"
        connection.execute(query, (state[:place] + other + state[place + 1 :], topic))

    async with open_keyed_log(database_url) as log:
        with pytest.raises(UnreadableEvent, match="not what was encrypted"):
            await events(log)
