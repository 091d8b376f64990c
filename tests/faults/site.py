"""A whole Uptrail in a process of its own, which a test may kill and start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import psycopg

from tests.faults.client import Client
from tests.support import free_port

UPTRAIL = Path(sys.executable).parent / "uptrail"
PROJECT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds until something that must happen counts as not happening

# Nothing of the machine's own configuration may reach the server under test.
_INHERITED = {name: text for name, text in os.environ.items() if not name.startswith("UPTRAIL_")}

Found = TypeVar("Found")


class Site:
    """`uptrail serve` with every role, always at the same port; `worker` is one more worker."""

    def __init__(self, database_url: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.database_url = database_url
        self.data_dir = folder / "data"
        self.port = free_port()
        self._hands = write_hands(folder / "hands")
        self._environment = {
            **_INHERITED,
            **{f"UPTRAIL_{name.upper()}": _text(value) for name, value in settings.items()},
            "PYTHONPATH": os.pathsep.join(map(str, (self._hands, PROJECT))),
        }
        self._said = folder / "said.log"
        self._processes: dict[subprocess.Popen[bytes], str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The first key, which the server made for itself."""
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def admin(self) -> Client:
        return Client(self.port, self.key)

    def key_for(self, owner: str, scope: str = "operator", **more: Any) -> Client:
        """Somebody else, with a key of their own."""
        made = self.admin.post("/v1/keys", {"owner": owner, "scope": scope, **more})
        return Client(self.port, made["text"])

    # Processes.

    def start(self, *roles: str) -> subprocess.Popen[bytes]:
        """Returns once the server answers."""
        chosen = [word for role in roles for word in ("--role", role)]
        process = self._spawn("serve", "--port", str(self.port), *chosen)
        eventually(lambda: process.poll() is not None or self._answers())
        assert process.poll() is None, self.said()
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker in a process of its own, once it is known to the queue."""
        before = self.workers()
        process = self._spawn("worker")
        eventually(lambda: self.workers() - before)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9: no goodbye, no cleaning up."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        del self._processes[process]

    def stop(self, command: str = "") -> None:
        """What runs this command, or whatever runs, ends in good order, and its exit code is 0."""
        running = [one for one, name in self._processes.items() if command in ("", name)]
        for process in running:
            del self._processes[process]
            process.terminate()
        assert [process.wait(PATIENCE) for process in running] == [0] * len(running), self.said()

    def running(self) -> list[psutil.Process]:
        """The processes, to be looked at from outside."""
        return [psutil.Process(process.pid) for process in self._processes]

    def said(self) -> str:
        """What the processes printed and logged so far."""
        return self._said.read_text(errors="replace")

    # The database, as an honest witness.

    def fetch(self, query: Any, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def execute(self, statement: Any, *parameters: object) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def head(self) -> int:
        """How many events are recorded, but for the counts that the orchestrator adds by itself."""
        counted = "SELECT count(*) FROM stored_events WHERE topic <> 'batch.progressed'"
        return int(self.fetch(counted)[0][0])

    def workers(self) -> set[int]:
        """Workers that the queue knows."""
        return {row[0] for row in self.fetch("SELECT id FROM procrastinate_workers")}

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        place = ("--data-dir", str(self.data_dir), "--database-url", self.database_url)
        with self._said.open("ab") as said:
            process = subprocess.Popen(
                [str(UPTRAIL), *words, *place], env=self._environment, stdout=said, stderr=said
            )
        self._processes[process] = words[0]
        return process

    def _answers(self) -> bool:
        try:
            return self.admin.answer("GET", "/readyz").status == 200
        except OSError:
            return False


@contextmanager
def open_site(database_url: str, folder: Path, **settings: Any) -> Iterator[Site]:
    """A place for a server; nothing runs yet. Everything started there is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(database_url, folder, settings)
    try:
        yield site
    finally:
        site.stop()


def eventually(condition: Callable[[], Found], deadline: float = PATIENCE) -> Found:
    """Waits until the condition gives something true, and returns that."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not so after {deadline:g} s: {condition}")
        time.sleep(0.02)
    return found


def steps(*processors: str, **options: Any) -> dict[str, Sequence[Any]]:
    """A pipeline of these processors, all with the same options."""
    return {"steps": [{"processor": name, "options": options} for name in processors]}


def write_hands(folder: Path) -> Path:
    """An installed package, as far as Python can tell, which offers processors of our own."""
    about = folder / "uptrail_hands-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: uptrail-hands\nVersion: 1.0\n")
    offered = "\n".join(f"{name} = tests.faults.hands:{name}" for name in ("hold", "stumble"))
    offered += "\npill = tests.crash.pills:pill"
    (about / "entry_points.txt").write_text(f"[uptrail.processors]\n{offered}\n")
    return folder


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
