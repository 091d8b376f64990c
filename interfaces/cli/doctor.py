"""`uptrail doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio

import aiohttp

from interfaces.cli import checks, output
from interfaces.cli.checks import Finding, Level
from interfaces.cli.errors import Exit
from interfaces.cli.options import Common, running_in

PATIENCE = aiohttp.ClientTimeout(total=5)
SIGNS = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}


def doctor(*, common: Common | None = None) -> int:
    """Check this machine and the server, with what to do."""
    common = common or Common()
    findings = asyncio.run(_examine(common))
    if common.json:
        output.emit(findings)
    else:
        for finding in findings:
            output.say(f"{SIGNS[finding.level]}  {finding.check:<12}  {finding.told}")
            if finding.advice:
                output.say(f"{'':20}{finding.advice}")
    bad = any(finding.level is Level.FAIL for finding in findings)
    return Exit.ERROR if bad else Exit.OK


async def _examine(common: Common) -> list[Finding]:
    from interfaces.cli.bucket_check import bucket
    from interfaces.cli.database_checks import database
    from interfaces.cli.sandbox_check import sandbox

    settings = common.settings()
    found = [checks.python(), checks.data_dir(settings)]
    if found[-1].level is not Level.FAIL:
        if settings.blob_bucket is not None:
            found.append(await bucket(settings.blob_bucket))
        else:
            found += [checks.disk(settings), checks.blobs(settings)]
    found.append(await sandbox())
    found += await database(settings)
    running = running_in(settings.data_dir)
    url = common.url or (running.url if running else None)
    found.append(await _server(url))
    return found


async def _server(url: str | None) -> Finding:
    if url is None:
        return Finding(Level.WARN, "server", "none runs here", "start one with: uptrail serve")
    try:
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as session,
            session.get(f"{url}/readyz") as response,
        ):
            text = (await response.text()).strip()
    except (aiohttp.ClientError, TimeoutError) as error:
        told = f"{url} does not answer: {error or type(error).__name__}"
        return Finding(Level.FAIL, "server", told, "restart it; its log tells why")
    if response.status != 200:
        return Finding(Level.WARN, "server", f"{url} is not ready: {text}", "its log tells why")
    return Finding(Level.OK, "server", f"{url} is ready")
