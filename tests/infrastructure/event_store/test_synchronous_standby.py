"""A commit that waits for its synchronous standby is not acknowledged without it."""

from __future__ import annotations

import asyncio

import pytest

from application.append import append_to_stream
from application.errors import OutcomeUnknown
from infrastructure.event_store.committer import (
    GroupCommitter,
    InFlight,
    resolve_ambiguous,
)
from infrastructure.event_store.writer import append_in, encode, plan_optimistic
from infrastructure.postgres.schema import migrate
from tests.infrastructure.event_store.log_support import connected, new_stream, step
from tests.postgres_servers import needs_postgres, one_server
from tests.support import eventually


@needs_postgres
async def test_events_missing_on_the_standby_are_never_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("infrastructure.event_store.libpq.EXCHANGE_TIMEOUT", 1.0)
    visible = "SELECT count(*) FROM stored_events"
    with one_server() as server:
        migrate(server.url)
        server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")  # there is none
        server.execute("SELECT pg_reload_conf()")

        async with GroupCommitter(server.url, patience=4.0) as committer:
            stream = new_stream()
            with pytest.raises(OutcomeUnknown):
                await committer.append(append_to_stream(stream, 0, step(0)))
            # Its session goes on waiting: no reader sees what a failover would lose.
            assert server.execute(visible) == [(0,)]
            server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            server.execute("SELECT pg_reload_conf()")
            await committer.append(append_to_stream(stream, 1, step(1)))
        assert server.execute(visible) == [(2,)]


@needs_postgres
async def test_a_commit_found_by_the_lookup_is_acknowledged_once_the_standby_has_it() -> None:
    """A server that crashed while it waited for its standby shows what it recovered from disk."""
    append = append_to_stream(new_stream(), 0, step(0))
    expected = plan_optimistic([encode(append)])
    assert expected is not None
    with one_server() as server:
        migrate(server.url)
        async with connected(server.url) as connection:
            recorded = await append_in(connection, append)
            server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")  # there is none
            server.execute("SELECT pg_reload_conf()")
            sent = [InFlight(placed, 1) for placed in expected.placed]
            looking = asyncio.create_task(resolve_ambiguous(connection, sent))
            waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await eventually(lambda: looking.done() or server.execute(waits))
            assert not looking.done()
            server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            server.execute("SELECT pg_reload_conf()")
            assert await looking == [recorded]
