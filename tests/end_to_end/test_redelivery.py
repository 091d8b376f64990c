"""
The fault: a message that was delivered again ran its whole batch a second time beside the first,
and a worker that died left its batch "processing" for ever.

Here an attempt is claimed by appending its event at an expected version. A second delivery finds
it taken, a dead worker's attempt is abandoned, and what a zombie says later is refused.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import MakeCluster
from tests.end_to_end.histories import by_stream, check_gapless
from tests.server_process import Cluster, steps, wait_for

FILES = {f"{number}.txt": b"x" for number in range(4)}

# The queue delivers each of these uploads twice, also while a worker has it.
DELIVER_AGAIN = """
INSERT INTO procrastinate_jobs (queue_name, task_name, status, args)
SELECT j.queue_name, j.task_name, 'todo',
  jsonb_build_object('batch', j.args -> 'batch', 'uploads', jsonb_build_array(upload))
FROM procrastinate_jobs j, jsonb_array_elements(j.args -> 'uploads') AS upload
WHERE j.status = 'doing'"""


class HeldWorkers:
    """A cluster whose workers are processes of their own, held in the middle of a step."""

    def __init__(self, make_cluster: MakeCluster, folder: Path) -> None:
        self.marks = folder / "marks"
        self.gate = folder / "gate"
        self.marks.mkdir()
        pipeline = steps("hold", marks=str(self.marks), gate=str(self.gate))
        self.cluster = make_cluster(
            pipelines={"default": pipeline}, worker_heartbeat=0.2, worker_dead_after=5
        )
        self.cluster.start("api", "orchestrator")

    def at_work(self) -> dict[str, int]:
        """Uploads that are in a step right now, and the process that runs each attempt.

        A mark may be there for a moment before its number is.
        """
        texts = {mark.name: mark.read_text() for mark in self.marks.iterdir()}
        return {name: int(text) for name, text in texts.items() if text}

    def until_at_work(self, attempts: int) -> None:
        wait_for(lambda: len(self.at_work()) == attempts)

    def attempts(self, batch: str) -> dict[str, list[dict[str, Any]]]:
        """The attempts of each upload of the batch."""
        client = self.cluster.admin
        return {
            upload["id"]: client.get(f"/v1/uploads/{upload['id']}/attempts")["items"]
            for upload in client.uploads(batch).values()
        }

    def until_succeeded(self, batch: str) -> None:
        wait_for(lambda: self.cluster.admin.batch(batch)["outcome"] == "succeeded")


@pytest.fixture(scope="module")
def module_workers(make_cluster: MakeCluster, folder: Path) -> HeldWorkers:
    return HeldWorkers(make_cluster, folder)


@pytest.fixture
def workers(module_workers: HeldWorkers) -> Iterator[HeldWorkers]:
    """With closed gates, and no marks."""
    module_workers.gate.unlink(missing_ok=True)
    for mark in module_workers.marks.iterdir():
        mark.unlink()
    yield module_workers
    module_workers.gate.touch()


def test_a_redelivered_job_never_runs_a_file_twice_at_once(workers: HeldWorkers) -> None:
    cluster = workers.cluster
    for _ in range(2):
        cluster.start_worker()
    batch = cluster.admin.send_batch(FILES)
    workers.until_at_work(len(FILES))
    before = jobs(cluster)

    for _ in range(3):
        cluster.execute(DELIVER_AGAIN)
        wait_for(lambda: jobs(cluster) == before)  # taken, looked at, and dropped
    # A claim that was never committed could run as well: nothing but the four may be at work.
    assert len(workers.at_work()) == len(FILES)
    workers.gate.touch()
    workers.until_succeeded(batch)

    for attempts in workers.attempts(batch).values():
        assert [(attempt["number"], attempt["state"]) for attempt in attempts] == [(1, "succeeded")]
    check_gapless(by_stream(cluster.admin.history(f"/v1/batches/{batch}")))
    stop_workers(cluster)


def test_a_dead_worker_never_leaves_a_file_processing(workers: HeldWorkers) -> None:
    cluster = workers.cluster
    doomed = cluster.start_worker()
    batch = cluster.admin.send_batch(FILES)
    workers.until_at_work(len(FILES))

    cluster.kill(doomed)  # in the middle of a step of every file
    workers.gate.touch()
    cluster.start_worker()
    workers.until_succeeded(batch)

    for attempts in workers.attempts(batch).values():
        first, second = attempts
        assert (first["number"], first["state"]) == (1, "abandoned")
        assert (second["number"], second["state"]) == (2, "succeeded")
        assert first["worker"] != second["worker"]
        assert first["worker"] in first["message"]
    check_gapless(by_stream(cluster.admin.history(f"/v1/batches/{batch}")))
    stop_workers(cluster)


def test_a_zombie_never_writes(workers: HeldWorkers) -> None:
    """A worker is stopped for so long that it is given up; then it comes back, and goes on."""
    cluster = workers.cluster
    zombie = cluster.start_worker()
    batch = cluster.admin.send_batch(FILES)
    workers.until_at_work(len(FILES))
    os.kill(zombie.pid, signal.SIGSTOP)
    buried = cluster.workers()
    wait_for(lambda: not cluster.workers() & buried)
    workers.gate.touch()
    cluster.start_worker()
    workers.until_succeeded(batch)
    events = cluster.admin.history(f"/v1/batches/{batch}")

    os.kill(zombie.pid, signal.SIGCONT)
    # It finds the gate open, ends its steps, and is heard of no more under its old name.
    wait_for(lambda: zombie.pid not in workers.at_work().values())
    other = cluster.admin.send_batch(FILES)
    workers.until_succeeded(other)

    assert cluster.admin.history(f"/v1/batches/{batch}") == events
    for attempts in workers.attempts(batch).values():
        assert [attempt["state"] for attempt in attempts] == ["abandoned", "succeeded"]
        assert f"-{zombie.pid}-" not in attempts[1]["worker"]
    check_gapless(by_stream(cluster.admin.history(f"/v1/batches/{batch}")))
    stop_workers(cluster)


def jobs(cluster: Cluster) -> int:
    rows = cluster.fetch(
        "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    )
    return int(rows[0][0])


def stop_workers(cluster: Cluster) -> None:
    cluster.stop("worker")
    wait_for(lambda: not cluster.workers())
