"""Run a server under mixed traffic and kills for a while, and write a page with what it used.

`python -m benchmarks.soak --minutes 30 --page docs/soak.md`. Ends with 1 if a file was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import psycopg
from PIL import Image

from benchmarks import cpu
from benchmarks.servers import free_port
from benchmarks.uploads import KIB, MIB
from infrastructure.postgres.embedded.server import EmbeddedPostgres

SAMPLE_INTERVAL = 5.0  # seconds
CHUNK = MIB  # bytes of one PATCH
RETRY_PAUSE = 0.5  # seconds
SETTLE_TIMEOUT = 900.0  # seconds for all batches to end after the traffic
START_TIMEOUT = 60.0  # seconds
CHECKED_FILES = 200  # downloaded and compared at the end
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}

Sleep = Callable[[float, float], Awaitable[None]]


@dataclass
class Server:
    """`uptrail serve` as a child process that may be killed and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    ended_cpu: Counter[str] = field(default_factory=Counter)  # seconds of processes that are gone

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "uptrail"), "serve"]
        command += ["--port", str(self.port), "--data-dir", str(self.folder)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPTRAIL_")}
        environment["UPTRAIL_LOG_LEVEL"] = "error"
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.ended_cpu.update(self._cpu())
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def cpu(self) -> Counter[str]:
        """Return the processor seconds of the server and of its decoders so far."""
        return self.ended_cpu + Counter(self._cpu())

    def memory(self) -> int:
        """Return the resident bytes of the server process."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * KIB

    def descriptors(self) -> int:
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def _cpu(self) -> dict[str, float]:
        assert self.process is not None
        own = cpu.of_process(self.process.pid)
        return {"server": own, "decoders": cpu.of_tree(self.process.pid) - own}


@dataclass
class Results:
    """Counts and samples collected during the run."""

    files: dict[str, str] = field(default_factory=dict)  # acknowledged upload: hash of its bytes
    bytes: int = 0
    batches: list[str] = field(default_factory=list)
    latencies: dict[str, list[float]] = field(default_factory=dict)  # seconds by request
    acknowledged_at: dict[str, float] = field(default_factory=dict)  # batch: when it was started
    feed_delays: list[float] = field(default_factory=list)  # from the response to a feed frame
    repeated: Counter[str] = field(default_factory=Counter)  # requests that were sent again
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


class Client:
    """HTTP client that repeats a request while the server is away."""

    def __init__(self, session: aiohttp.ClientSession, results: Results) -> None:
        self.session = session
        self.results = results

    async def ask(
        self, name: str, method: str, path: str, **options: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body. Any status below 500 is an answer."""
        while True:
            began = time.monotonic()
            try:
                async with self.session.request(method, path, **options) as response:
                    body = await response.read()
                    if response.status < 500 and response.status not in (423, 429):
                        taken = time.monotonic() - began
                        self.results.latencies.setdefault(name, []).append(taken)
                        return response.status, dict(response.headers), body
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            self.results.repeated[name] += 1
            await asyncio.sleep(RETRY_PAUSE)

    async def start_batch(self, label: str) -> str:
        headers = {"Idempotency-Key": f"{label}-{random.random()}"}
        _, found, _ = await self.ask(
            "POST /v1/batches", "POST", "/v1/batches", json={"label": label}, headers=headers
        )
        path = "/" + found["Location"].split("/", 3)[3]
        self.results.batches.append(path)
        self.results.acknowledged_at[path.rpartition("/")[2]] = time.monotonic()
        return path

    async def seal(self, batch: str) -> None:
        await self.ask("POST seal", "POST", f"{batch}/seal")

    def acknowledge(self, upload: str, content: bytes) -> None:
        self.results.files[upload] = sha256(content).hexdigest()
        self.results.bytes += len(content)


async def send_photos(client: Client, chance: random.Random, photos: Sequence[bytes]) -> None:
    """Upload a few pictures, each in one request."""
    batch = await client.start_batch("photos")
    for number in range(chance.randint(3, 12)):
        content = photos[number % len(photos)]
        headers = {**TUS, **BYTES, "Upload-Length": str(len(content)), **_named(f"{number}.jpg")}
        status, found, _ = await client.ask(
            "POST file", "POST", f"{batch}/uploads", data=content, headers=headers
        )
        if status == 201:
            client.acknowledge(found["Location"].rpartition("/")[2], content)
    await client.seal(batch)


async def send_documents(client: Client, chance: random.Random, _: Sequence[bytes]) -> None:
    """Upload small texts in bundles, as the command line does."""
    batch = await client.start_batch("documents")
    for bundle in range(chance.randint(1, 3)):
        files = {
            f"{bundle}/{number}.txt": f"{bundle} {number} {chance.random()}\n".encode() * 100
            for number in range(chance.randint(10, 60))
        }
        _, _, body = await client.ask(
            "POST bundle",
            "POST",
            f"{batch}/uploads",
            data=_archive(files),
            headers={"Content-Type": "application/x-tar"},
        )
        for path, upload in _received(body):
            client.acknowledge(upload, files[path])
    await client.seal(batch)


async def send_video(client: Client, chance: random.Random, _: Sequence[bytes]) -> None:
    """Upload one large file in chunks over a connection that is cut at times."""
    batch = await client.start_batch("video")
    content = chance.randbytes(chance.randint(2, 12) * MIB)
    headers = {**TUS, "Upload-Length": str(len(content)), **_named("video.bin")}
    _, found, _ = await client.ask("POST upload", "POST", f"{batch}/uploads", headers=headers)
    location = "/" + found["Location"].split("/", 3)[3]
    offset = 0
    while offset < len(content):
        chunk = content[offset : offset + CHUNK]
        headers = {**TUS, **BYTES, "Upload-Offset": str(offset)}
        if chance.random() < 0.1:
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                cut = _cut(chunk, chance.randrange(len(chunk)))
                await client.session.patch(location, data=cut, headers=headers)
        else:
            await client.ask("PATCH", "PATCH", location, data=chunk, headers=headers)
        _, found, _ = await client.ask("HEAD", "HEAD", location, headers=TUS)
        offset = int(found["Upload-Offset"])
    client.acknowledge(location.rpartition("/")[2], content)
    await client.seal(batch)


async def act_as_operator(client: Client, chance: random.Random, _: Sequence[bytes]) -> None:
    """Read lists and histories and retry a batch, as an operator does."""
    await client.ask("GET batches", "GET", "/v1/batches")
    if client.results.batches:
        batch = chance.choice(client.results.batches)
        await client.ask("GET batch", "GET", batch)
        await client.ask("GET history", "GET", f"{batch}/history")
        await client.ask("POST retry", "POST", f"{batch}/retry")
    await asyncio.sleep(2.0)


async def watch(client: Client, chance: random.Random, _: Sequence[bytes]) -> None:
    """Watch the feed for a while."""
    with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        async with client.session.ws_connect("/v1/feed") as socket:
            await socket.send_json({"type": "subscribe", "batches": "*"})
            end = time.monotonic() + chance.uniform(10, 60)
            while (left := end - time.monotonic()) > 0:
                message = await socket.receive(left)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                _note_delays(client.results, message.json())
    await asyncio.sleep(RETRY_PAUSE)


def _note_delays(results: Results, frame: dict[str, Any]) -> None:
    if frame["type"] != "changes":  # a snapshot has batches from before the viewer came
        return
    now = time.monotonic()
    for row in frame["batches"]:
        if (at := results.acknowledged_at.pop(row["id"], None)) is not None:
            results.feed_delays.append(now - at)


CLIENTS = (
    send_photos,
    send_photos,
    send_documents,
    send_documents,
    send_video,
    act_as_operator,
    watch,
)


def _named(path: str) -> dict[str, str]:
    return {"Upload-Metadata": "filename " + b64encode(path.encode()).decode()}


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _received(body: bytes) -> Iterator[tuple[str, str]]:
    for one in json.loads(body).get("files", ()):
        if one["status"] in ("received", "known"):
            yield one["path"], one["upload"]


async def _cut(chunk: bytes, size: int) -> AsyncIterator[bytes]:
    yield chunk[:size]
    raise ConnectionResetError("the line was cut")


def _photos(chance: random.Random) -> list[bytes]:
    photos = []
    for _ in range(8):
        image = Image.frombytes("RGB", (400, 300), chance.randbytes(400 * 300 * 3))
        buffer = io.BytesIO()
        image.resize((1600, 1200)).save(buffer, "JPEG", quality=70)
        photos.append(buffer.getvalue())
    return photos


@dataclass(frozen=True)
class Usage:
    """Sizes of the database by table and of its WAL, in bytes."""

    tables: dict[str, int]
    wal: int


def _usage(url: str) -> Usage:
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace NOT IN ('pg_catalog'::regnamespace,"
            " 'information_schema'::regnamespace)"
        ).fetchall()
        wal = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')").fetchone()
    assert wal is not None
    return Usage({name: int(size) for name, size in rows}, int(wal[0]))


def _postmaster(folder: Path) -> int:
    """Process id of the embedded PostgreSQL, whose folder may be a symbolic link."""
    file = folder / "postgres" / "cluster" / "postmaster.pid"
    return int(file.read_text().split()[0])


class Soak:
    """One run: traffic, kills, samples, and the checks afterwards."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.server = Server(folder, free_port())
        self.results = Results()
        self.postgres_cpu = 0.0  # seconds

    async def run(self, postgres: EmbeddedPostgres) -> dict[str, Any]:
        url = postgres.start()
        self.server.start()
        await self._until_ready()
        before = _usage(url)
        key = (self.folder / "admin.key").read_text().strip()
        base = f"http://127.0.0.1:{self.server.port}"
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(
            base, headers={"Authorization": f"Bearer {key}"}, timeout=timeout
        ) as session:
            client = Client(session, self.results)
            began = time.monotonic()
            await self._traffic(client, postgres)
            settled = await self._settle(client)
            lasted = time.monotonic() - began
            lost = await self._lost(client)
        after = _usage(postgres.start())
        self._count_postgres()
        usage = self.server.cpu()
        verified = self._command("verify")
        return {
            "lasted": lasted,
            "settled": settled,
            "lost": lost,
            "before": before,
            "after": after,
            "cpu": {**usage, "PostgreSQL": self.postgres_cpu},
            "verified": verified,
        }

    async def _traffic(self, client: Client, postgres: EmbeddedPostgres) -> None:
        photos = _photos(self.chance)
        end = time.monotonic() + self.seconds

        async def repeat(work: Callable[..., Awaitable[None]], seed: float) -> None:
            chance = random.Random(seed)
            while time.monotonic() < end:
                await work(client, chance, photos)
                await asyncio.sleep(chance.uniform(0.5, 4.0))

        async with asyncio.TaskGroup() as tasks:
            for work in CLIENTS:
                tasks.create_task(repeat(work, self.chance.random()))
            sampler = tasks.create_task(self._sample())
            tasks.create_task(self._kill(postgres))
            await asyncio.sleep(self.seconds)
            sampler.cancel()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            with suppress(OSError, StopIteration):  # the server is being started
                if time.monotonic() - self.server.started_at > START_TIMEOUT / 4:
                    self.results.memory.append(self.server.memory())
                    self.results.descriptors.append(self.server.descriptors())

    async def _kill(self, postgres: EmbeddedPostgres) -> None:
        """Kill the server after a third of the time, and PostgreSQL after two thirds."""
        await asyncio.sleep(self.seconds / 3)
        self.server.kill()
        self.server.start()
        await asyncio.sleep(self.seconds / 3)
        self._count_postgres()
        os.kill(_postmaster(self.folder), signal.SIGKILL)
        await asyncio.to_thread(postgres.start)

    def _count_postgres(self) -> None:
        self.postgres_cpu += cpu.of_tree(_postmaster(self.folder))

    async def _settle(self, client: Client) -> bool:
        """Wait until each batch has an outcome; False if one has none in time."""
        end = time.monotonic() + SETTLE_TIMEOUT
        for batch in self.results.batches:
            while b'"outcome":null' in (await client.ask("GET batch", "GET", batch))[2]:
                if time.monotonic() > end:
                    return False
                await asyncio.sleep(0.2)
        return True

    async def _lost(self, client: Client) -> list[str]:
        """Return acknowledged uploads without the bytes that were sent, of a sample."""
        uploads = sorted(self.results.files)
        chosen = self.chance.sample(uploads, min(CHECKED_FILES, len(uploads)))
        lost = []
        for upload in chosen:
            _, _, body = await client.ask("GET content", "GET", f"/v1/uploads/{upload}/content")
            if sha256(body).hexdigest() != self.results.files[upload]:
                lost.append(upload)
        for upload in uploads:
            status, _, _ = await client.ask("GET upload", "GET", f"/v1/uploads/{upload}")
            if status != 200:
                lost.append(upload)
        return lost

    async def _until_ready(self) -> None:
        url = f"http://127.0.0.1:{self.server.port}/readyz"
        end = time.monotonic() + START_TIMEOUT
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < end:
                with suppress(aiohttp.ClientError, ConnectionError):
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
        raise TimeoutError("the server is not ready")

    def _command(self, *arguments: str) -> bool:
        command = [str(Path(sys.executable).parent / "uptrail"), *arguments]
        done = subprocess.run([*command, "--data-dir", str(self.folder)], capture_output=True)
        if done.returncode:
            print(done.stdout.decode(), done.stderr.decode())
        return done.returncode == 0


@contextmanager
def _data_folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="uptrail-soak-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "data"


def page(soak: Soak, found: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    results = soak.results
    files = max(1, len(results.files))
    grown = {
        name: (size - found["before"].tables.get(name, 0)) / files
        for name, size in found["after"].tables.items()
    }
    wal = (found["after"].wal - found["before"].wal) / files / KIB
    memory = [size / MIB for size in results.memory]
    lines = [
        "# Soak",
        "",
        f"`make soak MINUTES={soak.seconds / 60:.0f}` on {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores: one server with every role and the embedded PostgreSQL;",
        "clients send photos, bundles of documents and large files over a line that is cut;",
        "an operator reads and retries; viewers come and go. The server is killed (-9) after a",
        "third of the time, PostgreSQL after two thirds.",
        "",
        "| | |",
        "|---|---|",
        f"| duration, with the processing of the rest | {found['lasted'] / 60:.1f} min |",
        f"| files acknowledged; a second; bytes | {len(results.files):,}; "
        f"{len(results.files) / found['lasted']:.1f}; {results.bytes / MIB:,.0f} MiB |",
        f"| batches; all ended | {len(results.batches):,}; {'yes' if found['settled'] else 'NO'} |",
        f"| files lost or altered | {len(found['lost'])} |",
        f"| `uptrail verify` afterwards | {'passed' if found['verified'] else 'FAILED'} |",
        f"| requests repeated, because of kills and preemptions | {results.repeated.total():,} |",
        f"| memory of the server, lowest to highest | {min(memory):.0f} to {max(memory):.0f} MiB |",
        f"| its memory after a tenth of the time, and at the end | {memory[len(memory) // 10]:.0f}"
        f", {memory[-1]:.0f} MiB |",
        f"| open descriptors, lowest to highest | {min(results.descriptors)} to "
        f"{max(results.descriptors)} |",
    ]
    lines += [
        f"| CPU time per file: {name} | {1000 * seconds / files:.1f} ms |"
        for name, seconds in found["cpu"].items()
    ]
    lines += [
        f"| WAL per file | {wal:.1f} KiB |",
        f"| database per file | {sum(grown.values()):,.0f} bytes |",
    ]
    largest = sorted(grown.items(), key=lambda one: -one[1])[:6]
    lines += [f"| of it `{name}` | {size:,.0f} bytes |" for name, size in largest]
    lines += ["", "| latency | requests | median | 95 % | 99 % |", "|---|---|---|---|---|"]
    measured = {
        **results.latencies,
        "from a started batch to its row in the feed": results.feed_delays,
    }
    for name, seconds in sorted(measured.items()):
        if len(seconds) >= 2:
            cuts = [1000 * cut for cut in quantiles(seconds, n=100)]
            lines.append(
                f"| {name} | {len(seconds):,} | {cuts[49]:.0f} ms | {cuts[94]:.0f} ms "
                f"| {cuts[98]:.0f} ms |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--page", type=Path, help="write the result here, in Markdown")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    arguments = parser.parse_args()
    print(f"{arguments.minutes:g} minutes, seed {arguments.seed}", flush=True)
    with _data_folder() as folder:
        folder.mkdir()
        postgres = EmbeddedPostgres(folder)
        soak = Soak(folder, arguments.minutes * 60, arguments.seed)
        try:
            found = asyncio.run(soak.run(postgres))
        finally:
            soak.server.stop()
            postgres.stop()
            postgres.discard()
    text = page(soak, found)
    print(text)
    if arguments.page:
        arguments.page.write_text(text)
    return 0 if found["settled"] and found["verified"] and not found["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
