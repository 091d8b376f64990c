"""One simulation: a seed decides on load, faults and the order of everything."""

from __future__ import annotations

import asyncio
import gc
import logging
import random as global_random
import sys
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import procrastinate.utils
import structlog

from infrastructure.jobs import worker as worker_module
from infrastructure.postgres import listener as listener_module
from interfaces.feed import hub as hub_module
from tests.memory.database import StoredRow
from tests.memory.event_log import decoded
from tests.memory.webhooks import pending_deliveries
from tests.simulation.event_loop import SimulatedLoop
from tests.simulation.faults import FaultRates, draw_rates
from tests.simulation.laws import (
    LawBroken,
    LogLaws,
    check_end,
    check_read_model,
    check_webhooks,
    describe,
)
from tests.simulation.watchers import Watcher
from tests.simulation.workload import Clients, Steps, wait_until
from tests.simulation.world import Machine, World, run_api, run_orchestrator, run_worker

DURATION = 30.0  # seconds with load and faults
SETTLE_WITHIN = 400.0  # seconds without faults until everything must have ended
SHOWN_LINES = 400  # of a story


class SimulationFailed(AssertionError):
    """A law was broken. The message tells how to reproduce it, and what happened."""

    def __init__(self, seed: int, reason: str, story: Sequence[str]) -> None:
        self.seed = seed
        self.reason = reason
        self.story = story
        shown = "\n".join(story[-SHOWN_LINES:])
        super().__init__(
            f"seed {seed}: {reason}\nreproduce it by: make simulate SEED={seed}\n{shown}"
        )


class Report(msgspec.Struct, kw_only=True):
    """What a simulation came to."""

    seed: int
    steps: int
    events: int
    seconds: float
    story: list[str]


def simulate(seed: int) -> Report:
    """Run the simulation of this seed. Raises SimulationFailed."""
    loop = SimulatedLoop(seed)
    simulation = Simulation(seed, loop)
    world = simulation.world
    with _deterministic(seed, world, simulation):
        try:
            loop.run_until_complete(simulation.run())
        except Exception as error:
            simulation.fail(f"{type(error).__name__}: {error}")
        finally:
            loop.abandon_tasks()
            with suppress(Exception):
                loop.close()
    if simulation.failure is not None:
        raise SimulationFailed(seed, simulation.failure, world.story)
    return Report(
        seed=seed,
        steps=loop.steps,
        events=len(world.database.rows),
        seconds=loop.time(),
        story=world.story,
    )


class Simulation:
    """The parts of one simulation and its course."""

    def __init__(self, seed: int, loop: SimulatedLoop) -> None:
        random = Random(seed)
        self.failure: str | None = None
        self.world = World(seed, loop, draw_rates(random))
        self._loop = loop
        self._random = random
        self._laws = LogLaws(self.world.database)
        self._positions: set[int] = set()
        self.world.database.on_commit.append(self._recorded)

    def fail(self, reason: str) -> None:
        """End the simulation: a law is broken. Only the first reason counts."""
        if self.failure is None:
            self.failure = reason
            self.world.tell(f"LAW BROKEN: {reason}")
            self.world.has_ended = True
        self._loop.stop()

    async def run(self) -> None:
        world, random = self.world, self._random
        apis = [Machine(world, f"api-{n}", run_api) for n in (1, 2)]
        others = [Machine(world, f"orchestrator-{n}", run_orchestrator) for n in (1, 2)]
        others += [Machine(world, f"worker-{n}", run_worker) for n in (1, 2)]
        steps = Steps(world, self.fail)
        clients = Clients(world, apis, random)
        for machine in (*apis, *others):
            machine.start()
        senders = [
            asyncio.ensure_future(self._send(clients, owner, number))
            for owner in ("acme", "globex", "initech")
            for number in range(random.randint(1, 3))
        ]
        owners = ("acme", "globex", "initech")
        watchers = {owner: Watcher(world, apis, owner) for owner in owners}
        clients.on_batch = lambda owner, id: watchers[owner].batches.append(str(id))
        watching = [asyncio.ensure_future(self._watch(one)) for one in watchers.values()]
        senders += [
            asyncio.ensure_future(clients.add_webhook(owner))
            for owner in owners
            for _ in range(random.randint(0, 2))
        ]
        world.receiver.fails = random.choice((0.0, 0.2, 0.5))
        meddlers = [asyncio.ensure_future(clients.interfere())]
        meddlers += [
            asyncio.ensure_future(self._make_faults(machine)) for machine in world.machines
        ]
        await asyncio.sleep(DURATION)
        world.tell("no more faults")
        world.rates.stop()
        steps.rate = world.receiver.fails = 0.0
        for watcher in watchers.values():
            watcher.is_patient = True
        for meddler in meddlers:
            meddler.cancel()
        await asyncio.wait(meddlers)
        for machine in world.machines:
            if machine.parts is None:
                machine.start()
        await asyncio.gather(*senders)
        await clients.finish()
        await wait_until(self._is_settled, within=SETTLE_WITHIN)
        await asyncio.sleep(5.0)
        self._check_end(clients, watchers.values())
        for watch in watching:
            watch.cancel()
        await asyncio.wait(watching)

    async def _watch(self, watcher: Watcher) -> None:
        try:
            await watcher.run()
        except AssertionError as broken:
            self.fail(str(broken))

    async def _send(self, clients: Clients, owner: str, number: int) -> None:
        await asyncio.sleep(self._random.random() * 10)
        try:
            await clients.send_batch(owner, number)
        except LawBroken as broken:
            self.fail(str(broken))

    async def _make_faults(self, machine: Machine) -> None:
        """Kill, slow down and confuse one process, again and again."""
        world, random = self.world, self._random
        while True:
            await asyncio.sleep(1.0)
            parts, rates = machine.parts, world.rates
            if parts is None:
                machine.start()
                continue
            if random.random() < rates.kills / 5:
                await asyncio.sleep(random.random())
                if random.random() < 0.3:
                    await machine.stop()
                else:
                    machine.kill()
                await asyncio.sleep(random.random() * 5)
                machine.start()
            elif random.random() < rates.clock_steps:
                parts.now.skew = random.uniform(-5.0, 5.0)
                world.tell(f"{machine.name}: its clock is off by {parts.now.skew:.3f} s")
            elif random.random() < rates.slow_processes:
                slowness = random.choice((20.0, 500.0))
                parts.wire.slowness = parts.disk_wire.slowness = slowness
                world.tell(f"{machine.name}: {slowness:g} times slower")
                await asyncio.sleep(random.random() * 5)
                parts.wire.slowness = parts.disk_wire.slowness = 1.0
            elif random.random() < rates.lost_sessions and parts.sessions:
                world.tell(f"{machine.name}: a session is terminated")
                random.choice(parts.sessions).terminate()
            elif random.random() < rates.duplicate_jobs:
                self._duplicate_job()

    def _duplicate_job(self) -> None:
        database = self.world.database
        if jobs := sorted(database.jobs):
            job = database.jobs[self._random.choice(jobs)]
            copy = msgspec.structs.replace(
                job, id=next(database.job_ids), status="todo", worker=None
            )
            database.jobs[copy.id] = copy
            self.world.tell(f"job {job.id} is delivered twice")

    def _recorded(self, rows: list[StoredRow]) -> None:
        for row in rows:
            self.world.tell(describe(decoded(row)))
        self._positions.update(row.position for row in rows)
        try:
            self._laws.check(rows)
            if len(self.world.database.rows) % 25 == 0:
                check_read_model(self.world.database)
        except AssertionError as broken:
            self.fail(str(broken))

    def _is_settled(self) -> bool:
        database = self.world.database
        head = database.rows[-1].position if database.rows else 0
        return (
            all(row["state"] == "completed" for row in database.batches.values())
            and all(
                database.positions.get(name, 0) == head for name in ("orchestrator", "read_model")
            )
            and not any(job.status in ("todo", "doing") for job in database.jobs.values())
            and not pending_deliveries(database)
        )

    def _check_end(self, clients: Clients, watchers: Iterable[Watcher]) -> None:
        try:
            missing = [p for p in clients.acknowledged if p not in self._positions]
            if missing:
                raise LawBroken(f"acknowledged at {missing}, and not in the log")
            check_end(self.world.database, self.world.disk)
            check_webhooks(self.world.database, self.world.receiver.accepted)
            for watcher in watchers:
                watcher.check_end()
        except AssertionError as broken:
            self.fail(str(broken))


@contextmanager
def _deterministic(seed: int, world: World, simulation: Simulation) -> Iterator[None]:
    """Let nothing in that differs from run to run: clocks, names, randomness, the collector."""

    def log(_: Any, level: str, fields: MutableMapping[str, Any]) -> Any:
        if level in ("warning", "error", "exception"):
            fields.pop("exc_info", None)
            world.tell(f"log: {level} {fields.pop('event')} {dict(sorted(fields.items()))}")
        raise structlog.DropEvent

    configuration = structlog.get_config()
    state = global_random.getstate()
    global_random.seed(seed)
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    simulation._loop.set_exception_handler(lambda loop, context: None)
    collects = gc.isenabled()
    gc.disable()
    logging.disable(logging.CRITICAL)
    structlog.configure(processors=[log])
    try:
        with (
            mock.patch.object(procrastinate.utils, "utcnow", world.database.now),
            mock.patch.object(worker_module, "POLL_INTERVAL", 0.25),
            mock.patch.object(hub_module, "time", SimpleNamespace(thread_time=lambda: 0.0)),
            mock.patch.object(listener_module, "POLL_INTERVAL", world.poll_interval),
            mock.patch.object(
                worker_module, "socket", SimpleNamespace(gethostname=lambda: "machine")
            ),
            mock.patch.object(worker_module, "os", SimpleNamespace(getpid=lambda: 1)),
        ):
            yield
    finally:
        structlog.configure(**configuration)
        global_random.setstate(state)
        sys.unraisablehook = unraisable
        logging.disable(logging.NOTSET)
        if collects:
            gc.enable()


__all__ = ["FaultRates", "Report", "SimulationFailed", "simulate"]
