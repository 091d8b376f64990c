"""A whole server that keeps its bytes in a bucket: uploads, processing, downloads, deletion."""

from __future__ import annotations

from pathlib import Path

from aiohttp import ClientSession
from yarl import URL

from infrastructure.blobs.s3.client import MIB, Location
from infrastructure.blobs.s3.store import open_client
from infrastructure.settings import Settings
from interfaces.cli.doctor import Level
from interfaces.cli.doctor import bucket as checked_bucket
from tests.infrastructure.blobs.test_s3 import noise, objects_in, uploads_in
from tests.interfaces.conftest import LiveServer, serving
from tests.support import eventually, path_of, run

TUS = {"Tus-Resumable": "1.0.0"}
WHOLE = noise(12 * MIB)
HALF = 7 * MIB


def test_an_upload_goes_on_at_another_server_and_is_processed_from_the_bucket(
    location: Location, database_url: str, tmp_path: Path
) -> None:
    where = f"s3://{location.bucket}/{location.prefix}?endpoint={location.endpoint}&style=path"
    settings = Settings(data_dir=tmp_path, database_url=database_url, port=0, blobs=where)
    with serving(settings) as live:
        path = run(_begun(live))
        abandoned = run(_begun(live))
    with serving(settings) as live:
        run(_finished(live, path))
        run(_deleted(live, abandoned))

    async def left() -> None:
        async with open_client(location) as bucket:
            upload = path.rpartition("/")[2]
            names = await objects_in(bucket)
            assert f"uploads/{upload}" in names
            assert not [name for name in names if name.endswith("~tail")]
            assert await uploads_in(bucket) == []
        assert (await checked_bucket(where)).level is Level.OK

    run(left())


def test_what_was_called_off_damaged_or_expired_leaves_nothing_in_the_bucket(
    location: Location, database_url: str, tmp_path: Path
) -> None:
    where = f"s3://{location.bucket}/{location.prefix}?endpoint={location.endpoint}&style=path"
    settings = Settings(
        data_dir=tmp_path, database_url=database_url, port=0, blobs=where, upload_expiry=8.0
    )

    async def abandon_uploads(live: LiveServer) -> None:
        async with open_client(location) as bucket:
            await _deleted(live, await _begun(live))
            async with _client(live) as client:
                async with client.post("/v1/batches", json={}) as answer:
                    batch = path_of(answer.headers["Location"])
                await _begun(live, f"{batch}/uploads")
                async with client.post(f"{batch}/cancel") as answer:
                    assert answer.status == 202
                damaged = await _created(client, "/v1/uploads")
                wrong = {"Upload-Checksum": "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk="}
                assert await _patched(client, damaged, 0, WHOLE[:HALF], **wrong) == 460
            await _begun(live)
            assert len(await uploads_in(bucket)) >= 1

            async def nothing() -> bool:
                stored = [name for name in await objects_in(bucket) if name.startswith("uploads/")]
                return not stored and not await uploads_in(bucket)

            await eventually(nothing, 60)

    with serving(settings) as live:
        run(abandon_uploads(live))


def _client(live: LiveServer) -> ClientSession:
    headers = {**TUS, "Authorization": f"Bearer {live.key}"}
    return ClientSession(URL(live.url), headers=headers)


async def _begun(live: LiveServer, collection: str = "/v1/uploads") -> str:
    """A resource with half of the file."""
    async with _client(live) as client:
        path = await _created(client, collection)
        assert await _patched(client, path, 0, WHOLE[:HALF]) == 204
        return path


async def _created(client: ClientSession, collection: str) -> str:
    length = {"Upload-Length": str(len(WHOLE))}
    async with client.post(collection, headers=length) as answer:
        assert answer.status == 201, await answer.text()
        return path_of(answer.headers["Location"])


async def _patched(
    client: ClientSession, path: str, offset: int, content: bytes, **more: str
) -> int:
    async def body():  # type: ignore[no-untyped-def]
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]

    headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
    headers |= more
    async with client.patch(path, data=body(), headers=headers) as answer:
        return answer.status


async def _finished(live: LiveServer, path: str) -> None:
    async with _client(live) as client:
        async with client.head(path) as answer:
            assert int(answer.headers["Upload-Offset"]) == HALF
        assert await _patched(client, path, HALF, WHOLE[HALF:]) == 204

        async def state() -> bool:
            async with client.get(path, headers={"Accept": "application/json"}) as answer:
                return bool((await answer.json())["state"] == "completed")

        await eventually(state)
        async with client.get(f"{path}/content") as answer:
            assert await answer.read() == WHOLE


async def _deleted(live: LiveServer, path: str) -> None:
    async with _client(live) as client, client.delete(path) as answer:
        assert answer.status == 204
