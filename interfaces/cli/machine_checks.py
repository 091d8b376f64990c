"""Checks of `uptrail doctor` across machines: processes, blob store, master keys."""

from __future__ import annotations

from application.errors import Unavailable
from infrastructure.blobs.shared import BlobStoreMismatch, identity_matches
from infrastructure.postgres.connection import Connection
from infrastructure.settings import Settings
from interfaces.cli.checks import CheckResult, Level

ROLES = ("api", "orchestrator", "worker")

_ALIVE = """
SELECT role, count(*) FROM orchestration.processes, unnest(roles) role
WHERE seen_at > now() - make_interval(secs => %s) GROUP BY role"""


async def machines(connection: Connection, settings: Settings) -> list[CheckResult]:
    """Check the processes per role, and that blobs and master keys belong to this database."""
    roles, blobs = await _roles(connection, settings), await _blobs(connection, settings)
    return [roles, *blobs, *await _master_key(connection, settings)]


async def _master_key(connection: Connection, settings: Settings) -> list[CheckResult]:
    """Nothing where no server has started on this database yet."""
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
    told = ", ".join(f"{role} {alive.get(role, 0)}" for role in ROLES)
    missing = [role for role in ROLES if role not in alive]
    if alive and missing:
        advice = "start one: " + " ".join(
            ["uptrail serve", *(f"--role {name}" for name in missing)]
        )
        return CheckResult(Level.WARN, "processes", told, advice)
    return CheckResult(Level.OK, "processes", told)


async def _blobs(connection: Connection, settings: Settings) -> list[CheckResult]:
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
        told = f"{place} does not hold the bytes of this database"
        return [CheckResult(Level.FAIL, "same blobs", told, BlobStoreMismatch(place, None).hint)]
    return [] if same is None else [CheckResult(Level.OK, "same blobs", "those of this database")]
