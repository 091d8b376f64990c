"""Whatever is killed, stopped or cut off at random: nothing is lost, stuck or done twice."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.assault import DEAD_AFTER, under_assault
from tests.chaos.customers import Customer, Job
from tests.chaos.inspection import check_bytes, inspect
from tests.chaos.plant import Plant, plant
from tests.chaos.receiver import EVENTS, listening
from tests.chaos.sender import Sender
from tests.support import run

CUSTOMERS = 3
SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))

IMPATIENT = {
    "worker_heartbeat": "0.5",
    "worker_dead_after": str(DEAD_AFTER),
    "step_progress_interval": "0.1",
    "webhook_timeout": "2",
    "allow_private_addresses": "true",
    "retry_policy": '{"attempts": 5, "first_delay": 0.1, "longest_delay": 1.0}',
    "pipelines": '{"default": {"steps": [{"processor": "checksum"}, {"processor": "linger"}]}}',
}


@pytest.mark.chaos
@pytest.mark.timeout(int(SECONDS) + 600)
def test_nothing_is_lost_stuck_or_done_twice_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", str(time.time_ns() % 2**32)))
    print(f"CHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}")
    with plant(tmp_path, **IMPATIENT) as running, listening(seed) as receiver:
        try:
            hook = {"url": receiver.url, "events": EVENTS}
            Sender(running, random.Random(seed)).ask("POST", "/v1/webhooks", hook)
            jobs, blows = besieged(running, seed)
            print(f"{sum(blows.values())} blows: {blows}; {len(jobs)} batches")
            print(run(inspect(running, jobs, receiver)))
            print(f"{len(receiver.heard)} messages, {len(set(receiver.heard))} of them different")
            check_bytes(Sender(running, random.Random(seed)), jobs)
        except BaseException:
            print(running.logs())
            raise


def besieged(running: Plant, seed: int) -> tuple[list[Job], dict[str, int]]:
    """The batches of customers that work while the plant is under assault, and what it met."""
    over = threading.Event()
    customers = [Customer(running, seed + number) for number in range(CUSTOMERS)]
    with ThreadPoolExecutor(CUSTOMERS) as pool:
        try:
            with under_assault(running, SECONDS, random.Random(seed)) as blows:
                working = [pool.submit(customer.work, over.is_set) for customer in customers]
                end = time.monotonic() + SECONDS
                while time.monotonic() < end and not any(one.done() for one in working):
                    time.sleep(0.1)
        finally:
            over.set()
        while not all(one.done() for one in working):
            running.revive()
            time.sleep(0.5)
        for one in working:
            one.result()
    return [job for customer in customers for job in customer.jobs], dict(blows)
