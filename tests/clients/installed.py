"""Requirements of third-party clients: Node.js, and the packages that package.json names."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"

_NEEDED = "`npm ci` in tests/clients installs what this test runs"


def _missing(what: str) -> None:
    """Skips the test, unless everything is required."""
    if os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
        pytest.fail(what)
    pytest.skip(what)


def require_package(name: str) -> Path:
    """The folder of an npm package."""
    if not (MODULES / name).is_dir():
        _missing(_NEEDED)
    return MODULES / name


def require_node() -> str:
    node = shutil.which("node")
    if node is None:
        _missing("Node.js is not installed")
    return str(node)


async def tus_js(job: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the job by tus-js-client. Raises AssertionError with its error."""
    require_package("tus-js-client")
    answer: dict[str, Any] = await run_script("tus.mjs", json.dumps(job))
    return answer


async def run_script(name: str, *arguments: str, trust: Path | None = None) -> Any:
    """Run a script of this folder and return the JSON that it prints.

    `trust` is a file with certificates that Node.js is to trust. Raises AssertionError with the
    script's complaint.
    """
    environ = {**os.environ, "NODE_EXTRA_CA_CERTS": str(trust)} if trust else None
    process = await asyncio.create_subprocess_exec(
        require_node(),
        str(HERE / name),
        *arguments,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, complaint = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, complaint.decode(errors="replace")
    return json.loads(output)
