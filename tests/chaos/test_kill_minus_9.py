"""Server, worker and PostgreSQL are killed at random while files are in flight."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.plant import POSTGRES, SERVER, WORKER, Plant, plant
from tests.chaos.sender import Sender

FILES = 500
SENDERS = 6
CHUNK = 16 * 1024
KILLING = float(os.environ.get("CHAOS_SECONDS", "12"))
ENDING = 240.0
IMPATIENT = {"worker_heartbeat": "0.5", "worker_dead_after": "2"}


@pytest.mark.chaos
@pytest.mark.timeout(int(KILLING) + 500)
def test_nothing_acknowledged_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", str(time.time_ns() % 2**32)))
    print(f"CHAOS_SEED={seed}")
    files = contents(random.Random(seed))
    with plant(tmp_path, **IMPATIENT) as running:
        try:
            batch = "/v1/batches/" + Sender(running).ask("POST", "/v1/batches", {})["id"]
            with killing(running, random.Random(seed + 1)) as kills:
                sent = send_all(running, batch, files)
            print(f"killed {dict(kills)}")
            assert min(kills[role] for role in (SERVER, WORKER, POSTGRES)) > 0
            running.revive()
            Sender(running).ask("POST", f"{batch}/seal")
            check_outcome(wait_for_the_end(running, batch), len(files))
            check_bytes(running, sent, files)
            check_history(running, batch, sent)
        except BaseException:
            print(running.logs())
            raise


def contents(chance: random.Random) -> dict[str, bytes]:
    """Files of which some fit in one request and some take several."""
    return {
        f"folder/{number}.bin": chance.randbytes(chance.choice((0, 100, 4000, 40_000, 120_000)))
        for number in range(FILES)
    }


@contextmanager
def killing(running: Plant, chance: random.Random) -> Iterator[Counter[str]]:
    """Kills at random moments for a while, each kind at least once, until the block ends."""
    kills: Counter[str] = Counter()
    over = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + KILLING
        order = [SERVER, WORKER, POSTGRES]
        while not over.is_set() or len(kills) < 3:
            if time.monotonic() > deadline and len(kills) == 3:
                return
            role = order.pop() if order else chance.choice((SERVER, WORKER, POSTGRES))
            over.wait(chance.uniform(0.2, 2.5))
            running.kill(role)
            kills[role] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield kills
    finally:
        over.set()
        killer.join()


def send_all(running: Plant, batch: str, files: dict[str, bytes]) -> dict[str, str]:
    """Where each file was acknowledged, by name."""

    def send(name: str) -> str:
        return Sender(running).send(batch, name, files[name], CHUNK)

    with ThreadPoolExecutor(SENDERS) as pool:
        return dict(zip(files, pool.map(send, files), strict=True))


def wait_for_the_end(running: Plant, batch: str) -> dict[str, Any]:
    deadline = time.monotonic() + ENDING
    while time.monotonic() < deadline:
        view: dict[str, Any] = Sender(running).ask("GET", batch)
        if view["state"] == "completed":
            return view
        time.sleep(0.2)
    raise AssertionError(f"the batch does not end: {view}")


def check_outcome(view: dict[str, Any], files: int) -> None:
    assert view["outcome"] == "succeeded", view
    assert view["counts"] == {"completed": files}
    assert view["percent"] == 100


def check_bytes(running: Plant, sent: dict[str, str], files: dict[str, bytes]) -> None:
    assert len(set(sent.values())) == len(files)
    for name, location in sent.items():
        assert Sender(running).content(location) == files[name], name


def check_history(running: Plant, batch: str, sent: dict[str, str]) -> None:
    """Versions without a gap, positions that rise, attempts that are numbered once."""
    streams: dict[str, list[dict[str, Any]]] = {}
    after: int | None = 0
    while after is not None:
        page = Sender(running).ask("GET", f"{batch}/history?after={after}&limit=1000")
        for event in page["items"]:
            streams.setdefault(event["stream"], []).append(event)
        after = page["next"]
    assert len(streams) == len(sent) + 1
    for stream, events in streams.items():
        assert [event["version"] for event in events] == list(range(1, len(events) + 1)), stream
        positions = [event["position"] for event in events]
        assert positions == sorted(set(positions)), stream
        attempts = [e["data"]["number"] for e in events if e["type"] == "upload.attempt_started"]
        assert attempts == list(range(1, len(attempts) + 1)), stream
        completions = [e for e in events if e["type"].endswith(".completed")]
        assert len(completions) == 1, stream
