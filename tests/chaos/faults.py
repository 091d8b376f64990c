"""Faults at random while a cluster works: kills, standstills, dropped connections."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.chaos.cluster import NAMES, ORCHESTRATOR, WORKER, ProcessCluster

DEAD_AFTER = 2.0  # seconds of silence after which the cluster takes a worker for dead
PAUSES = (0.3, 2.5)  # seconds between two faults

KINDS = (
    "kill api",
    "kill orchestrator",
    "kill worker",
    "kill postgres",
    "stop api",
    "stop orchestrator",
    "stop worker",
    "drop connections",
)


def _inject_one(cluster: ProcessCluster, kind: str, chance: random.Random) -> None:
    what, _, target = kind.partition(" ")
    if target == "postgres":
        cluster.kill_postgres()
        return
    if what == "drop":
        cluster.drop_connections()
        return
    name = chance.choice([name for name in NAMES if name.startswith(target)])
    if what == "kill":
        cluster.kill_and_start(name)
    else:
        cluster.stop_for(name, _standstill(target, chance))


def _standstill(role: str, chance: random.Random) -> float:
    """A worker stands still until it was taken for dead: what it does then is a zombie's."""
    if role == WORKER:
        return DEAD_AFTER + chance.uniform(0.5, 2.5)
    return chance.uniform(0.5, 4.0 if role == ORCHESTRATOR else 2.0)


@contextmanager
def inject_faults(
    cluster: ProcessCluster, seconds: float, chance: random.Random
) -> Iterator[Counter[str]]:
    """Each kind of fault at least once, and any of them for so long; the block may end later."""
    faults: Counter[str] = Counter()
    order = list(KINDS)
    chance.shuffle(order)
    over = threading.Event()
    failed: list[BaseException] = []

    def next_kind() -> str:
        return order.pop() if order else chance.choice(KINDS)

    attacker = threading.Thread(
        target=_guarded, args=(_inject, failed, cluster, seconds, chance, next_kind, faults, over)
    )
    attacker.start()
    try:
        yield faults
    finally:
        over.set()
        attacker.join()
    if failed:
        raise failed[0]


def _guarded(work: Callable[..., None], failed: list[BaseException], *args: object) -> None:
    try:
        work(*args)
    except BaseException as error:
        failed.append(error)


def _inject(
    cluster: ProcessCluster,
    seconds: float,
    chance: random.Random,
    next_kind: Callable[[], str],
    faults: Counter[str],
    over: threading.Event,
) -> None:
    end = threading.Timer(seconds, over.set)
    end.start()
    try:
        while not over.is_set() or len(faults) < len(KINDS):
            over.wait(chance.uniform(*PAUSES))
            cluster.revive()
            kind = next_kind()
            _inject_one(cluster, kind, chance)
            faults[kind] += 1
    finally:
        end.cancel()
