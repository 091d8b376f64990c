"""Files of the product that two requests pass through, in the order of their first function call.

A server runs under a profile function in a process of its own, so any commit can be traced. Child
processes of workers are not traced. Every request passes the server, the middlewares and the check
of its key: a request to an unknown path shows which files these are.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT = 120.0  # seconds
KEY_CACHE_TIME = 1.1  # seconds; longer than a server accepts a key without reading it again
SETTLE_TIMES = (3.0, 10.0, 30.0)  # seconds that a batch gets to complete; tried in turn
BODY = b"x" * 1000
UPLOAD = {"Upload-Length": str(len(BODY)), "Upload-Metadata": "filename YS50eHQ="}  # a.txt
BYTES = {"Content-Type": "application/offset+octet-stream"}

# Every line on standard input is the name of a file to write the traced files to, as JSON; then
# tracing begins anew. Code of modules and classes that are imported late is no step of a journey.
_TRACER = """
import json, os, sys, threading

tree = sys.argv.pop(1) + os.sep
entered = {}

def enter(frame, event, argument):
    if event == "call" and frame.f_code.co_flags & 2:  # CO_NEWLOCALS, of functions alone
        entered.setdefault(frame.f_code.co_filename)

def report():
    for line in sys.stdin:
        files = [name.removeprefix(tree) for name in list(entered) if name.startswith(tree)]
        entered.clear()
        path = line.strip()
        with open(path + ".part", "w") as file:
            json.dump(files, file)
        os.rename(path + ".part", path)

threading.Thread(target=report, daemon=True).start()
threading.setprofile(enter)
sys.setprofile(enter)
from interfaces.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Journey:
    """Files in order, and those of them that other requests, or an idle server, run as well."""

    files: list[str]
    of_every_request: frozenset[str] = frozenset()
    also_idle: frozenset[str] = frozenset()


class TracedServer:
    """A server whose entered files can be asked for."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, port: int) -> None:
        self._process = process
        self._folder = folder
        self._port = port
        self._reports = 0

    def entered(self) -> list[str]:
        """Return the files entered since the last call."""
        self._reports += 1
        path = self._folder / f"entered-{self._reports}.json"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        _wait_until(path.exists, "the traced server does not report")
        return [file for file in json.loads(path.read_text()) if not file.startswith(".venv")]

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[dict[str, str], bytes]:
        """Send a request; return headers and body. Raises urllib.error.URLError."""
        key = (self._folder / "data" / "admin.key").read_text().strip()
        request = urllib.request.Request(
            path if "://" in path else f"http://127.0.0.1:{self._port}{path}",
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {key}", "Tus-Resumable": "1.0.0", **(headers or {})},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return dict(response.headers), response.read()

    def send_json(self, method: str, path: str, content: Any = None) -> Any:
        body = b"" if content is None else json.dumps(content).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        return json.loads(self.send(method, path, body, headers)[1])


def trace(tree: Path) -> tuple[Journey, Journey]:
    """Return the journeys of a tus PATCH, and of a batch from its start to its completion."""
    with _traced_server(tree, "api") as server:
        _trace_patch(server)  # once before: late imports and first connections
        _send_to_unknown_path(server)
        server.entered()
        _send_to_unknown_path(server)
        shared = frozenset(server.entered())
        files = _trace_patch(server)
        patch = Journey(files, of_every_request=shared & set(files))
    with _traced_server(tree) as server:
        _run_batch(server, SETTLE_TIMES[1])
        return patch, _trace_batch(server)


def _send_to_unknown_path(server: TracedServer) -> None:
    """Send a request with a valid key to a path without a handler."""
    time.sleep(KEY_CACHE_TIME)  # else the check of the key may be left out
    try:
        server.send("GET", "/v1/nowhere")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise


def _trace_patch(server: TracedServer) -> list[str]:
    batch = server.send_json("POST", "/v1/batches", {"label": "journey"})["id"]
    headers, _ = server.send("POST", f"/v1/batches/{batch}/uploads", headers=UPLOAD)
    time.sleep(KEY_CACHE_TIME)  # also whatever follows the creation
    server.entered()
    server.send("PATCH", headers["Location"], BODY, {**BYTES, "Upload-Offset": "0"})
    return server.entered()


def _trace_batch(server: TracedServer) -> Journey:
    for settle in SETTLE_TIMES:
        server.entered()
        time.sleep(settle)
        idle = frozenset(server.entered())
        batch = _run_batch(server, settle)
        files = server.entered()
        if server.send_json("GET", f"/v1/batches/{batch}")["state"] == "completed":
            return Journey(files, also_idle=idle & set(files))
    raise TimeoutError(f"a batch of one file did not complete within {settle:g} s")


def _run_batch(server: TracedServer, settle: float) -> str:
    batch: str = server.send_json("POST", "/v1/batches", {"label": "journey"})["id"]
    server.send("POST", f"/v1/batches/{batch}/uploads", BODY, {**UPLOAD, **BYTES})
    server.send("POST", f"/v1/batches/{batch}/seal")
    time.sleep(settle)
    return batch


@contextmanager
def _traced_server(tree: Path, *roles: str) -> Iterator[TracedServer]:
    with tempfile.TemporaryDirectory(prefix="uptrail-journey-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL runs as another user where we are root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        serve = ["serve", "--port", str(port), "--data-dir", str(folder / "data")]
        for role in roles:
            serve += ["--role", role]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPTRAIL_")}
        environment |= {"PYTHONPATH": str(tree), "UPTRAIL_LOG_LEVEL": "error"}
        with subprocess.Popen(
            [sys.executable, "-c", _TRACER, str(tree), *serve],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            server = TracedServer(process, folder, port)
            try:
                _wait_until(lambda: _is_ready(server, process), "the traced server does not start")
                yield server
            finally:
                process.send_signal(signal.SIGTERM)


def _is_ready(server: TracedServer, process: subprocess.Popen[str]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the traced server ended with {process.returncode}")
    try:
        server.send("GET", "/v1/batches")
    except (OSError, urllib.error.URLError):
        return False
    return True


def _wait_until(condition: Any, failure: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(0.05)
