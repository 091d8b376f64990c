"""Installs the peers from their lock files, on demand, into folders that git ignores."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
VENV = HERE / ".venv"
PATIENCE = 600  # seconds for one installation


class Missing(Exception):
    """A peer cannot run on this machine; the message is the reason."""


@cache
def python_peer() -> str:
    """Install tuspyserver; return the path of its Python. Raises Missing."""
    python, lock = VENV / "bin" / "python", HERE / "requirements.txt"
    if _stale(VENV / ".ready", lock):
        print("  installing tuspyserver", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(VENV))
        install = ("-m", "pip", "--disable-pip-version-check", "-q", "install")
        _run(str(python), *install, "--require-hashes", "-r", str(lock))
        (VENV / ".ready").touch()
    return str(python)


@cache
def node_peer() -> str:
    """Install @tus/server; return the path of node. Raises Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("node and npm are not on the PATH")
    ready = HERE / "node_modules" / ".ready"
    if _stale(ready, HERE / "package-lock.json"):
        print("  installing @tus/server", flush=True)
        _run(npm, "ci", "--no-progress", "--loglevel=error")
        ready.touch()
    return node


def _stale(ready: Path, lock: Path) -> bool:
    return not ready.exists() or ready.stat().st_mtime < lock.stat().st_mtime


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"it could not be installed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise Missing(f"it could not be installed: {last}")
