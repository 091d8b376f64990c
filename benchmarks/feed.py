"""Load test of the feed: 1,000 sockets, a batch for each, and 20,000 progress events/s.

Each of ten uploads per batch records progress every two seconds, then twice a second, which
is the fastest rate of a server. No peer is measured: lost events, the time from commit to client
and the API's processor time are printed beside their budgets. Server, projector, database,
event source and clients share the cores; if they cannot keep the rate, the achieved rate and the
cost per event are printed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import UUID

import uvloop

from application.ports.auth import Scope
from benchmarks import cpu
from benchmarks.databases import fresh_database
from benchmarks.feed_events import OWNER, WatchedBatches, record_progress, set_up
from benchmarks.feed_watchers import Arrivals, Watchers
from benchmarks.growth import Meter, running_role
from benchmarks.measure import Ratio
from benchmarks.servers import Server, uptrail
from infrastructure.auth.keys import PostgresKeys
from infrastructure.postgres.pool import make_pool

SOCKETS = 1000
UPLOADS = 10  # of each batch
PACES = 0.5, 2.0  # events a second of each upload
SECONDS = 20
WARM_UP = 4
PER_KEY = 200  # sockets
ARRIVAL_TIMEOUT = 60.0  # seconds for what is under way to arrive
BUDGET = 500, 40  # milliseconds, percent of a core


class Flow(NamedTuple):
    """Commit times of the events, the arrivals at clients, and the number of lost events."""

    committed: array[float]
    arrivals: Arrivals
    lost: int


def run(scale: float) -> list[Ratio]:
    sockets = int(SOCKETS * scale)
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database())
        data = Path(stack.enter_context(TemporaryDirectory())) / "us"
        settings = {"UPTRAIL_DATABASE_URL": url}
        api = stack.enter_context(uptrail(data, "api", settings=settings))
        roles = stack.enter_context(running_role("orchestrator", url, data))
        recorder = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        uvloop.run(_run(url, api, roles, sockets, recorder))
    return []


async def _run(
    url: str, api: Server, roles: Meter, sockets: int, recorder: ProcessPoolExecutor
) -> None:
    watched, keys = await set_up(url, sockets, UPLOADS), await _keys(url, sockets)
    watchers = Watchers(watched.interleaved_uploads())
    await watchers.connect(api.port, keys, watched.batches)
    print(f"  {watchers.connected:,} sockets, {len(watched.interleaved_uploads()):,} uploads")
    meters = [lambda: cpu.of_process(api.process.pid), roles]
    for pace in PACES:
        await _flow(url, watched, watchers, pace, WARM_UP, recorder)
        before = [meter() for meter in meters]
        flow = await _flow(url, watched, watchers, pace, SECONDS, recorder)
        spent = [meter() - at for meter, at in zip(meters, before, strict=True)]
        _print_flow(flow, len(watched.interleaved_uploads()) * pace, *spent)
    print(f"  {watchers.connected:,} sockets are still open; {api.peak_memory() >> 20} MiB at most")
    watchers.close()


async def _keys(url: str, sockets: int) -> list[str]:
    async with make_pool(url, name="benchmark", max_size=1) as pool:
        keys = PostgresKeys(pool)
        needed = -(-sockets // PER_KEY)
        made = [await keys.create(owner=OWNER, scope=Scope.VIEWER) for _ in range(needed)]
    return [text for _, text in made]


async def _flow(
    url: str,
    watched: WatchedBatches,
    watchers: Watchers,
    pace: float,
    seconds: int,
    recorder: ProcessPoolExecutor,
) -> Flow:
    """Record events for `seconds`, and wait until the last has arrived."""
    uploads = watched.interleaved_uploads()
    steps, rate = int(seconds * pace), int(len(uploads) * pace)
    watchers.arrivals = Arrivals(array("q"), array("q"), array("d"))
    loop, first = asyncio.get_running_loop(), watchers.last[0]
    committed = await loop.run_in_executor(
        recorder, _record_progress, url, uploads, rate, steps, first
    )
    lost = await watchers.until([first + steps] * len(uploads), ARRIVAL_TIMEOUT)
    return Flow(committed, watchers.arrivals, lost)


def _record_progress(
    url: str, uploads: Sequence[UUID], rate: int, steps: int, before: int
) -> array[float]:
    return uvloop.run(record_progress(url, uploads, rate, steps * len(uploads), before))


def _print_flow(flow: Flow, rate: float, api: float, roles: float) -> None:
    events = len(flow.committed)
    took = max(flow.committed) - min(flow.committed)
    waits, replaced = _waits(flow)
    reached = events / took
    arrivals = flow.arrivals
    print(
        f"  {reached:,.0f} events/s recorded, of {rate:,.0f}; {flow.lost} uploads behind at the end"
    )
    print(
        f"  commit to client: median {_share(waits, 0.5):,.0f} ms, 99 of 100 in"
        f" {_share(waits, 0.99):,.0f} ms, worst {waits[-1]:,.0f} ms (budget: {BUDGET[0]} ms);"
        f" {100 * replaced / events:.1f} % replaced by a later value first"
    )
    span = max(arrivals.at) - min(flow.committed)
    print(
        f"  API: {100 * api / span:.0f} % of a core (budget: {BUDGET[1]} %),"
        f" {1e6 * api / events:.0f} us an event; {arrivals.frames / span:,.0f} frames/s,"
        f" {arrivals.size / span / 2**20:.1f} MiB/s; projector and orchestrator:"
        f" {100 * roles / span:.0f} %, {1e6 * roles / events:.0f} us",
        flush=True,
    )


def _waits(flow: Flow) -> tuple[list[float], int]:
    """Return the sorted milliseconds from each commit to its row, and the replaced events.

    A row covers all earlier steps of its upload: those without a row count as replaced.
    """
    uploads = 1 + max(flow.arrivals.upload)
    counted = [0] * uploads
    waits, replaced = [], 0
    first = min(flow.arrivals.done)  # of the first step, unless all of those were replaced
    for upload, done, at in zip(
        flow.arrivals.upload, flow.arrivals.done, flow.arrivals.at, strict=True
    ):
        step = done - first
        if step < counted[upload]:
            continue
        steps = range(counted[upload], step + 1)
        waits += [1000 * (at - flow.committed[s * uploads + upload]) for s in steps]
        replaced += len(steps) - 1
        counted[upload] = step + 1
    return sorted(waits), replaced


def _share(waits: Sequence[float], share: float) -> float:
    return waits[int(share * (len(waits) - 1))]
