"""Checks after the faults: the log, the tables, the bytes, the connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, LiteralString

from application.append import RecordedEvent
from domain.event import topic_of
from domain.upload.events import UploadRegistered
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.read_model.rebuild import verify
from tests.chaos.cluster import ProcessCluster
from tests.chaos.receiver import EVENTS, Receiver
from tests.chaos.sender import Sender
from tests.chaos.workload import Job
from tests.harness import open_test_container
from tests.invariants import FinalStates, InvariantViolated, check_log

PAGE = 20_000  # events
QUIET = 120.0  # seconds for queue and tables to be as they should, once all batches have ended
TELLING = 180.0  # seconds for the webhook: a deliverer that was killed keeps its lease so long
MOST_CONNECTIONS = 80  # of six processes: 12 of a pool, and those they have one of each

_JOBS = "SELECT status::text, count(*) FROM procrastinate_jobs WHERE status <> 'failed' GROUP BY 1"
_MEMBERS = "SELECT upload, state, version FROM orchestration.members"
_DIRTY = "SELECT count(*) FROM orchestration.batches WHERE dirty OR state <> 'completed'"
_CONNECTIONS = """
SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%') FROM pg_stat_activity
WHERE application_name LIKE 'uptrail-%'"""


async def check_invariants(
    cluster: ProcessCluster, jobs: Sequence[Job], receiver: Receiver
) -> Counter[str]:
    """Check the history of every upload; return the number that ended in each state."""
    async with open_test_container(cluster.postgres_url, cluster.data_dir) as container:
        log, pool = container.log, container.pool
        events = await _everything(log)
        states = check_log(events)
        total: Counter[str] = Counter()
        for job in jobs:
            total += _check_job(job, states, events)
        await _until_quiet(pool, states, {r.stream: r.version for r in events})
        await _until_told(events, receiver)
        verification = await verify(container.database.url, log)
        assert verification.sound, verification
    return total


async def _everything(log: PostgresEventLog) -> list[RecordedEvent]:
    events: list[RecordedEvent] = []
    while page := await log.read(events[-1].position if events else 0, limit=PAGE):
        events += page
    return events


def _check_job(job: Job, states: FinalStates, events: Sequence[RecordedEvent]) -> Counter[str]:
    """Every acknowledged file is there, and each ended as its name and its client say."""
    assert states.batches[job.id] == "completed", job.id
    counts = states.counts(job.id)
    paths = {
        recorded.event.path: recorded.stream
        for recorded in events
        if isinstance(recorded.event, UploadRegistered) and recorded.event.batch == job.id
    }
    assert set(job.sent) <= set(paths), set(job.sent) - set(paths)
    for name, location in job.sent.items():
        assert location.endswith(str(paths[name])), (name, location)
    assert sum(counts.values()) == len(paths), (job.id, counts)
    if job.cancelled:
        assert states.outcomes[job.id] == "cancelled"
        return counts
    assert len(paths) == len(job.files), (job.id, counts)
    for name, upload in paths.items():
        state = states.uploads[upload]
        allowed = {"plain": {"completed"}, "wrong": {"failed"}}
        kind = name.removesuffix(".bin").rpartition("-")[2]
        assert state in allowed.get(kind, {"completed", "failed"}), (job.id, name, state)
    return counts


async def _until_quiet(pool: Any, states: FinalStates, versions: dict[Any, int]) -> None:
    """The orchestrator has caught up, no job is left, and no transaction is open."""
    deadline = asyncio.get_running_loop().time() + QUIET
    while wrong := await _unquiet(pool, states, versions):
        if asyncio.get_running_loop().time() > deadline:
            raise InvariantViolated(wrong)
        await asyncio.sleep(0.2)


async def _unquiet(pool: Any, states: FinalStates, versions: dict[Any, int]) -> str:
    # A job that met a lost connection is kept as failed: its uploads have long had another.
    if jobs := await _rows(pool, _JOBS):
        return f"jobs are left: {jobs}"
    if (unfinished := (await _rows(pool, _DIRTY))[0][0]) != 0:
        return f"{unfinished} batches are still to be looked at"
    members = {upload: (state, version) for upload, state, version in await _rows(pool, _MEMBERS)}
    announced = {id: (state, versions[id]) for id, state in states.uploads.items()}
    if members != announced:
        return f"the orchestrator is wrong about {set(members.items()) ^ set(announced.items())}"
    connections, holding = (await _rows(pool, _CONNECTIONS))[0]
    if connections > MOST_CONNECTIONS or holding:
        return f"{connections} connections, {holding} of them in a transaction"
    return ""


async def _until_told(events: Sequence[RecordedEvent], receiver: Receiver) -> None:
    """Each event the webhook chose was delivered at least once, in the order of its batch."""
    deadline = asyncio.get_running_loop().time() + TELLING
    due = {recorded.position for recorded in events if topic_of(recorded.event) in EVENTS}
    while untold := due - {heard.position for heard in receiver.heard}:
        if asyncio.get_running_loop().time() > deadline:
            raise InvariantViolated(
                f"the webhook was never announced of the events at {sorted(untold)[:20]}"
            )
        await asyncio.sleep(0.2)
    first_told = dict.fromkeys(receiver.heard)
    for batch in {heard.batch for heard in first_told}:
        announced = [heard.position for heard in first_told if heard.batch == batch]
        if announced != sorted(announced):
            raise InvariantViolated(
                f"the webhook was announced of batch {batch} in the order {announced}"
            )


async def _rows(pool: Any, query: LiteralString) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        return list(await (await connection.execute(query)).fetchall())


def check_bytes(sender: Sender, jobs: Sequence[Job]) -> None:
    """Acknowledged bytes can be read again unless their upload was cancelled."""
    for job in jobs:
        for name, location in job.sent.items() if not job.cancelled else ():
            assert sender.content(location) == job.files[name], (job.id, name)
