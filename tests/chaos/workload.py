"""Users with batches: they send files, pause, cancel and retry, and remember every response."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import msgspec

from tests.chaos.cluster import ProcessCluster
from tests.chaos.sender import Gone, Sender

FILES = 12  # a batch
CHUNK = 16 * 1024  # bytes a request
PATIENCE = 240.0  # seconds for a batch to end
SIZES = (0, 100, 4000, 40_000, 120_000)  # bytes, at most

WRONG = "sha256:" + "0" * 64


class Job(msgspec.Struct, kw_only=True):
    """A batch, what was acknowledged of it, and how its client says it must end.

    `sent` is where each file was acknowledged, by name.
    """

    id: UUID
    files: dict[str, bytes]
    sent: dict[str, str] = {}
    cancelled: bool = False

    @property
    def path(self) -> str:
        return f"/v1/batches/{self.id}"


class WorkloadClient:
    """User that sends one batch after the other."""

    def __init__(self, cluster: ProcessCluster, seed: int) -> None:
        self._chance = random.Random(seed)
        self._sender = Sender(cluster, self._chance)
        self._cluster = cluster
        self.jobs: list[Job] = []

    def work(self, over: Callable[[], bool]) -> None:
        """Batch after batch until it is over; the last one is seen to its end as well."""
        while not over():
            self._one_batch()

    def _one_batch(self) -> None:
        job = self._started()
        cancel = self._chance.random() < 0.15
        if self._chance.random() < 0.2:
            self._command(job, "pause")
            self._command(job, "resume", surely=True)
        with ThreadPoolExecutor(3) as pool:
            sending = [pool.submit(self._send, job, name) for name in job.files]
            if cancel:
                time.sleep(self._chance.uniform(0, 1))
                self._command(job, "cancel", surely=True)
                job.cancelled = True
            for one in sending:
                one.result()
        if not job.cancelled:
            self._command(job, "seal", surely=True)
        self._see_to_the_end(job)
        if not job.cancelled and self._chance.random() < 0.3:
            self._see_to_the_end(job, since=self._command(job, "retry"))

    def _started(self) -> Job:
        body = {"label": "chaos", "priority": self._chance.randint(-5, 5)}
        answer = self._sender.ask("POST", "/v1/batches", body)
        job = Job(id=UUID(answer["id"]), files=_contents(self._chance))
        self.jobs.append(job)
        return job

    def _send(self, job: Job, name: str) -> None:
        sender = Sender(self._cluster, random.Random(self._chance.random()))
        wrong = {"checksum": WRONG} if "wrong" in name else {}
        try:
            job.sent[name] = sender.send(job.path, name, job.files[name], CHUNK, **wrong)
        except Gone:
            assert job.cancelled or not job.sent.get(name), f"{name} of {job.id} is gone"

    def _command(self, job: Job, command: str, *, surely: bool = False) -> int:
        """The position of what it led to; 0 where it was refused."""
        answer = self._sender.ask("POST", f"{job.path}/{command}", may_refuse=not surely)
        return answer["position"] if answer else 0

    def _see_to_the_end(self, job: Job, since: int = 0) -> None:
        """Returns when the batch is completed as of a position that is not before `since`."""
        deadline = time.monotonic() + PATIENCE
        view: dict[str, Any] = {}
        while view.get("state") != "completed":
            if time.monotonic() > deadline:
                raise AssertionError(f"the batch does not end: {view}")
            time.sleep(0.2)
            # A read model that is behind does not know the batch yet.
            path = f"{job.path}?min_position={since}"
            view = self._sender.ask("GET", path, may_refuse=True) or {}


def _contents(chance: random.Random) -> dict[str, bytes]:
    """Files of which some fit in one request; some will fail now and then, some for good."""
    kinds = ("plain", "plain", "plain", "flaky", "flaky", "wrong")
    return {
        f"folder/{number}-{chance.choice(kinds)}.bin": chance.randbytes(chance.choice(SIZES))
        for number in range(FILES)
    }
