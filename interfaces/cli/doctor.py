"""`uptrail doctor`: checks of this machine, the server and its database, with advice."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psycopg

from application.errors import Unavailable
from infrastructure.blobs.shared import BlobStoreMismatch, identity_matches
from infrastructure.event_store.committer import UnsafeWriter, check_no_db_functions
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.database_url import BadDatabaseUrl
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.embedded.system import EmbeddedPostgresError
from infrastructure.postgres.requirements import CheckResult, Level, examine, tightest_limit
from infrastructure.postgres.schema import heads
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderLost, DecoderPool
from infrastructure.settings import Settings
from interfaces.bootstrap.container import ALL_ROLES, needs_of_server
from interfaces.cli import console
from interfaces.cli.console import ClientOptions, Exit, find_running_server, size

OLDEST_PYTHON = (3, 11)
SLOW_SYNC = 0.05  # seconds; slower disks make every small upload wait
SYNCS = 5


def python() -> CheckResult:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return CheckResult(Level.FAIL, "python", version, "use Python 3.11 or newer")
    return CheckResult(Level.OK, "python", version)


def data_dir(settings: Settings) -> CheckResult:
    """Check that it is writable, and that other users cannot read it."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".probe-{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        detail = f"{folder}: {error.strerror}"
        return CheckResult(Level.FAIL, "data folder", detail, "choose another with --data-dir")
    if folder.stat().st_mode & 0o077:
        detail = f"{folder} can be read by other users"
        return CheckResult(Level.WARN, "data folder", detail, f"chmod 700 {folder}")
    return CheckResult(Level.OK, "data folder", str(folder))


def disk(settings: Settings) -> CheckResult:
    try:
        free = shutil.disk_usage(_existing(settings.blob_dir)).free
    except OSError as error:
        return CheckResult(Level.FAIL, "disk", str(error), "check the folder of the blobs")
    detail = f"{size(free)} free"
    if free < settings.min_free_bytes:
        advice = f"uploads are refused below {size(settings.min_free_bytes)}: free some space"
        return CheckResult(Level.FAIL, "disk", detail, advice)
    if free < 10 * settings.min_free_bytes:
        return CheckResult(Level.WARN, "disk", detail, "free some space soon")
    return CheckResult(Level.OK, "disk", detail)


def blobs(settings: Settings) -> CheckResult:
    """Check that bytes can be made durable there, and how fast."""
    folder = settings.blob_dir
    probe = folder / f".probe-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        began = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(SYNCS):
                file.write(bytes(64 * 1024))
                file.flush()
                os.fdatasync(file.fileno())
        took = (time.perf_counter() - began) / SYNCS
    except OSError as error:
        return CheckResult(
            Level.FAIL, "blobs", f"{folder}: {error.strerror}", "choose another folder"
        )
    finally:
        probe.unlink(missing_ok=True)
    detail = f"{folder}, {1000 * took:.1f} ms to make 64 KiB durable"
    if took > SLOW_SYNC:
        return CheckResult(Level.WARN, "blobs", detail, "a faster disk makes small uploads faster")
    return CheckResult(Level.OK, "blobs", detail)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return folder if folder.exists() else _existing(folder.parent)


ROLES = ("api", "orchestrator", "worker")

_ALIVE = """
SELECT role, count(*) FROM orchestration.processes, unnest(roles) role
WHERE seen_at > now() - make_interval(secs => %s) GROUP BY role"""


async def machines(connection: Connection, settings: Settings) -> list[CheckResult]:
    """Check the processes per role, and that blobs and master keys belong to this database."""
    roles, blobs = await _roles(connection, settings), await _same_blobs(connection, settings)
    return [roles, *blobs, *await _master_key(connection, settings)]


async def _master_key(connection: Connection, settings: Settings) -> list[CheckResult]:
    """Check the master key; no finding before the first start of a server."""
    from infrastructure.erasure.master_keys import NoMasterKey, master_keys_of
    from infrastructure.erasure.wrapped_keys import require_master_key

    try:
        id = await require_master_key(connection, master_keys_of(settings))
    except NoMasterKey as error:
        return [CheckResult(Level.FAIL, "master key", str(error), error.hint)]
    return [] if id is None else [CheckResult(Level.OK, "master key", f"{id} opens owners' keys")]


async def _roles(connection: Connection, settings: Settings) -> CheckResult:
    cursor = await connection.execute(_ALIVE, (settings.worker_dead_after,))
    alive: dict[str, int] = dict(await cursor.fetchall())
    detail = ", ".join(f"{role} {alive.get(role, 0)}" for role in ROLES)
    missing = [role for role in ROLES if role not in alive]
    if alive and missing:
        advice = "start one: " + " ".join(
            ["uptrail serve", *(f"--role {name}" for name in missing)]
        )
        return CheckResult(Level.WARN, "processes", detail, advice)
    return CheckResult(Level.OK, "processes", detail)


async def _same_blobs(connection: Connection, settings: Settings) -> list[CheckResult]:
    """Check the identity of the blob store; no finding before the first start of a server."""
    from infrastructure.blobs.s3.client import BadLocation, BucketUnusable
    from interfaces.bootstrap.container import describe_blob_location, open_blobs

    if settings.blob_bucket is not None and settings.database_url is None:
        return []
    try:
        async with open_blobs(settings, settings.database_url or "") as blobs:
            same = await identity_matches(connection, blobs)
    except (OSError, Unavailable, BucketUnusable, BadLocation):
        return []  # another check reports why they cannot be used
    place = describe_blob_location(settings)
    if same is False:
        detail = f"{place} does not hold the bytes of this database"
        return [CheckResult(Level.FAIL, "same blobs", detail, BlobStoreMismatch(place, None).hint)]
    return [] if same is None else [CheckResult(Level.OK, "same blobs", "those of this database")]


# What `uptrail doctor` looks at in a bucket: that blobs can be kept there.


async def bucket(text: str) -> CheckResult:
    """Check that objects can be written, read, listed and deleted."""
    from infrastructure.blobs.s3.client import BadLocation, BucketUnusable, parse_location
    from infrastructure.blobs.s3.store import check_bucket, open_client

    try:
        location = parse_location(text)
        async with open_client(location) as opened:
            began = time.perf_counter()
            await check_bucket(opened)
            took = time.perf_counter() - began
    except BadLocation as error:
        return CheckResult(Level.FAIL, "blobs", str(error), "check UPTRAIL_BLOBS or --blobs")
    except BucketUnusable as error:
        return CheckResult(Level.FAIL, "blobs", str(error), error.hint)
    return CheckResult(Level.OK, "blobs", f"{location}, {1000 * took:.0f} ms to write and delete")


# What `uptrail doctor` asks the database: who it is, what time it is, and what is left behind.

CLOCK_OFF = 2.0  # seconds
FAR_BEHIND = 10_000  # positions


async def database(settings: Settings) -> list[CheckResult]:
    """Check the database; one failed finding if it is unreachable."""
    try:
        async with _reached(settings) as url:
            if url is None:
                detail = (
                    "none is named: an embedded one is made at the first start, for this machine"
                )
                return [CheckResult(Level.OK, "database", detail)]
            return await _examined(url, settings)
    except (psycopg.Error, EmbeddedPostgresError, OSError, BadDatabaseUrl) as error:
        advice = "check UPTRAIL_DATABASE_URL" if settings.database_url else "see what it says"
        return [CheckResult(Level.FAIL, "database", str(error).strip(), advice)]


async def _examined(url: str, settings: Settings) -> list[CheckResult]:
    """Check the requirements of every start; if they fail, stop there."""
    required = await examine(url)
    if any(finding.level is Level.FAIL for finding in required):
        return required
    async with await connect(url, name="doctor") as connection:
        return [
            await _version(connection),
            await _clock(connection),
            *required,
            await _connections(connection, settings),
            *await _schema(connection, settings),
        ]


@asynccontextmanager
async def _reached(settings: Settings) -> AsyncIterator[str | None]:
    """Return the URL; None if no embedded server exists, because a check must not create one."""
    if settings.database_url:
        yield settings.database_url
    elif not (settings.data_dir / "postgres").exists():
        yield None
    else:
        server = EmbeddedPostgres(settings.data_dir)
        url = await asyncio.to_thread(server.start)
        try:
            yield url
        finally:
            await asyncio.to_thread(server.stop)


async def _version(connection: Connection) -> CheckResult:
    number = connection.info.server_version
    return CheckResult(Level.OK, "database", f"PostgreSQL {number // 10_000}.{number % 10_000}")


async def _connections(connection: Connection, settings: Settings) -> CheckResult:
    """Check that the connection limit suffices for a server with every role."""
    needs = needs_of_server(settings, ALL_ROLES)
    least, most = sum(need.least for need in needs), sum(need.most for need in needs)
    limit = await tightest_limit(connection)
    detail = f"{limit.source}, {limit.used} in use; a server needs {least} to {most}"
    advice = limit.remedy.format(most)
    if limit.most < least:
        return CheckResult(Level.FAIL, "connections", detail, advice)
    if limit.most < most:
        return CheckResult(Level.WARN, "connections", detail, advice)
    return CheckResult(Level.OK, "connections", detail)


async def _clock(connection: Connection) -> CheckResult:
    theirs = await _one(connection, "SELECT clock_timestamp()")
    off = abs((datetime.now(UTC) - theirs).total_seconds())
    if off > CLOCK_OFF:
        detail = f"{off:.0f} s apart from the database's"
        return CheckResult(Level.WARN, "clock", detail, "set the clocks by NTP: retries go by them")
    return CheckResult(Level.OK, "clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


async def _schema(connection: Connection, settings: Settings) -> list[CheckResult]:
    try:
        await check_no_db_functions(connection)
    except UnsafeWriter as error:
        return [CheckResult(Level.FAIL, "event log", str(error), "drop the function")]
    if await _one(connection, "SELECT to_regclass('alembic_version')") is None:
        return [CheckResult(Level.OK, "schema", "made at the first start")]
    cursor = await connection.execute("SELECT version_num FROM alembic_version")
    applied = {row[0] for row in await cursor.fetchall()}
    if applied != heads():
        detail = f"migration {', '.join(sorted(applied))}, not {', '.join(sorted(heads()))}"
        return [
            CheckResult(Level.WARN, "schema", detail, "the next start of the server migrates it")
        ]
    return [
        CheckResult(Level.OK, "schema", f"migration {', '.join(sorted(applied))}"),
        *[await _behind(connection, name) for name in ("read_model", "orchestrator")],
        await _jobs(connection, settings),
        *await machines(connection, settings),
    ]


async def _behind(connection: Connection, name: str) -> CheckResult:
    query = """SELECT coalesce(max(notification_id), 0) - coalesce((SELECT notification_id
        FROM notification_tracking WHERE application_name = %s), 0) FROM stored_events"""
    behind = await _one(connection, query, name)
    check, detail = name.replace("_", " "), f"{behind} positions behind the log"
    if behind > FAR_BEHIND:
        advice = "is a server with the role orchestrator running? its log tells of errors"
        return CheckResult(Level.WARN, check, detail, advice)
    return CheckResult(Level.OK, check, detail)


async def _jobs(connection: Connection, settings: Settings) -> CheckResult:
    query = """SELECT count(*) FILTER (WHERE j.status = 'todo'),
        count(*) FILTER (WHERE j.status = 'doing'),
        count(*) FILTER (WHERE j.status = 'doing' AND (w.id IS NULL OR
            w.last_heartbeat < now() - make_interval(secs => %s)))
        FROM procrastinate_jobs j LEFT JOIN procrastinate_workers w ON w.id = j.worker_id"""
    cursor = await connection.execute(query, (settings.worker_dead_after,))
    waiting, running, stalled = await cursor.fetchone() or (0, 0, 0)
    detail = f"{waiting} waiting, {running} running"
    if stalled:
        detail += f", {stalled} left by a dead worker"
        advice = "a running orchestrator gives them to another worker by itself"
        return CheckResult(Level.WARN, "jobs", detail, advice)
    return CheckResult(Level.OK, "jobs", detail)


async def _one(connection: Connection, query: str, *values: object) -> Any:
    cursor = await connection.execute(query.encode(), values or None)
    row = await cursor.fetchone()
    return row[0] if row else None


PATIENCE = aiohttp.ClientTimeout(total=5)
SIGNS = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}


def doctor(*, common: ClientOptions | None = None) -> int:
    """Check this machine and the server, with what to do."""
    common = common or ClientOptions()
    findings = asyncio.run(_examine(common))
    if common.json:
        console.emit(findings)
    else:
        for finding in findings:
            console.print_line(f"{SIGNS[finding.level]}  {finding.check:<12}  {finding.detail}")
            if finding.advice:
                console.print_line(f"{'':20}{finding.advice}")
    bad = any(finding.level is Level.FAIL for finding in findings)
    return Exit.ERROR if bad else Exit.OK


async def _examine(common: ClientOptions) -> list[CheckResult]:

    settings = common.settings()
    found = [python(), data_dir(settings)]
    if found[-1].level is not Level.FAIL:
        if settings.blob_bucket is not None:
            found.append(await bucket(settings.blob_bucket))
        else:
            found += [disk(settings), blobs(settings)]
    found.append(await sandbox())
    found += await database(settings)
    running = find_running_server(settings.data_dir)
    url = common.url or (running.url if running else None)
    found.append(await _server(url))
    return found


async def _server(url: str | None) -> CheckResult:
    if url is None:
        return CheckResult(Level.WARN, "server", "none runs here", "start one with: uptrail serve")
    try:
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as session,
            session.get(f"{url}/readyz") as response,
        ):
            text = (await response.text()).strip()
    except (aiohttp.ClientError, TimeoutError) as error:
        detail = f"{url} does not answer: {error or type(error).__name__}"
        return CheckResult(Level.FAIL, "server", detail, "restart it; its log tells why")
    if response.status != 200:
        return CheckResult(Level.WARN, "server", f"{url} is not ready: {text}", "its log tells why")
    return CheckResult(Level.OK, "server", f"{url} is ready")


# Check of `uptrail doctor`: restrictions that the decoder sandbox has on this machine.

CHECK = "decoders"

_PROBE = "infrastructure.processors.sandbox_probe:probe"
_LIMITS = DecoderLimits(memory=512 * 1024 * 1024, seconds=5)
_PATIENCE = 30.0  # seconds


async def sandbox() -> CheckResult:
    """Try, inside a decoder's sandbox, what a hostile file would try."""
    if sys.platform == "win32":
        detail = "no sandbox on this system"
        return CheckResult(Level.WARN, CHECK, detail, "let workers run on Linux")
    try:
        async with DecoderPool(most=1) as decoders, asyncio.timeout(_PATIENCE):
            answer = (await decoders.run(_PROBE, b"", {}, _LIMITS)).answer
        return describe(answer)
    except (DecoderLost, OSError, KeyError, TimeoutError) as error:
        detail = f"no decoder can be run: {error or type(error).__name__}"
        return CheckResult(Level.FAIL, CHECK, detail, "see the server's log for the reason")


def describe(answer: dict[str, Any]) -> CheckResult:
    """Return the finding for the answer of a probe. Raises KeyError for an unknown answer."""
    applied, attempts = answer["applied"], answer["attempts"]
    user = f"uid {answer['uid']}" + ("" if applied["user"] else " (the server's own user)")
    active = [user, "resource limits"]
    absent: list[str] = []
    for name, value in (("seccomp", applied["seccomp"]), ("Landlock", applied["landlock"])):
        version = f" {value}" if value and name == "Landlock" else ""
        (active if value else absent).append(name + version)
    detail = ", ".join(active) + (f"; not in this kernel: {', '.join(absent)}" if absent else "")
    possible = [name.replace("_", " ") for name, refused in attempts.items() if refused is None]
    if answer["uid"] == 0:
        advice = "run uptrail as another user than root, or with the capability to change users"
        return CheckResult(Level.WARN, CHECK, f"{detail}; decoders run as root", advice)
    if possible:
        advice = "a kernel with seccomp or Landlock (Linux 5.13) denies it; see docs/operating.md"
        return CheckResult(Level.WARN, CHECK, f"{detail}; can still {', '.join(possible)}", advice)
    return CheckResult(Level.OK, CHECK, f"{detail}; a probe could do nothing but decode")
