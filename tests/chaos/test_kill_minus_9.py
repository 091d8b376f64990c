"""Processes are killed, stopped or cut off at random: nothing is lost, stuck or done twice."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.cluster import ProcessCluster, open_process_cluster
from tests.chaos.faults import DEAD_AFTER, inject_faults
from tests.chaos.invariant_checks import check_bytes, check_invariants
from tests.chaos.receiver import EVENTS, listening
from tests.chaos.sender import Sender
from tests.chaos.workload import Job, WorkloadClient
from tests.server_process import steps
from tests.support import run

CLIENTS = 3
SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))

IMPATIENT = {
    "worker_heartbeat": 0.5,
    "worker_dead_after": DEAD_AFTER,
    "step_progress_interval": 0.1,
    "webhook_timeout": 2,
    "allow_private_addresses": True,
    "retry_policy": {"attempts": 5, "first_delay": 0.1, "longest_delay": 1.0},
    "pipelines": {"default": steps("checksum", "linger")},
}


@pytest.mark.chaos
@pytest.mark.timeout(int(SECONDS) + 600)
def test_nothing_is_lost_stuck_or_done_twice_whatever_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", str(time.time_ns() % 2**32)))
    print(f"CHAOS_SEED={seed} CHAOS_SECONDS={SECONDS:g}")
    with open_process_cluster(tmp_path, **IMPATIENT) as running, listening(seed) as receiver:
        hook = {"url": receiver.url, "events": EVENTS}
        Sender(running, random.Random(seed)).ask("POST", "/v1/webhooks", hook)
        jobs, faults = run_under_faults(running, seed)
        print(f"{sum(faults.values())} faults: {faults}; {len(jobs)} batches")
        print(run(check_invariants(running, jobs, receiver)))
        print(f"{len(receiver.heard)} messages, {len(set(receiver.heard))} of them different")
        check_bytes(Sender(running, random.Random(seed)), jobs)


def run_under_faults(running: ProcessCluster, seed: int) -> tuple[list[Job], dict[str, int]]:
    """Let clients work while faults are injected; return their batches and the faults."""
    over = threading.Event()
    clients = [WorkloadClient(running, seed + number) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        try:
            with inject_faults(running, SECONDS, random.Random(seed)) as faults:
                working = [pool.submit(client.work, over.is_set) for client in clients]
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
    return [job for client in clients for job in client.jobs], dict(faults)
