"""A commit that waits for its synchronous standby is not acknowledged without it."""

from __future__ import annotations

import pytest

from application.append import append_to_stream
from application.errors import OutcomeUnknown
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.postgres.schema import migrate
from tests.infrastructure.event_store.log_support import new_stream, step
from tests.postgres_servers import needs_postgres, one_server


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
