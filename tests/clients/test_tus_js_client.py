from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from application.commands import StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext
from application.transfers import quotas
from domain.ids import is_partial_upload
from tests.clients.installed import require_package, run_script, tus_js
from tests.interfaces.uploads.server import OWNER, TUS, Server, serving, stored_files, upload_in

CONTENT = bytes(range(256)) * 4096  # 1 MiB
METADATA = {"filename": "film é.bin", "filetype": "video/mp4"}


def _job(server: Server, file: Path, **more: Any) -> dict[str, Any]:
    options = {"metadata": METADATA, "protocol": "tus-v1", **more.pop("options", {})}
    endpoint = f"{server.url}/v1/uploads"
    known = {"endpoint": endpoint, "key": server.key, "file": str(file), "how": "send"}
    return {**known, **more, "options": options}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "film.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"uploadDataDuringCreation": True},
        {"chunkSize": 300_000},
        {"chunkSize": 300_000, "uploadDataDuringCreation": True},
        {"overridePatchMethod": True, "chunkSize": 300_000},
        {"parallelUploads": 4},
        {"parallelUploads": 3, "chunkSize": 100_000},
        {"addRequestId": True},
    ],
    ids=str,
)
async def test_a_file_arrives_as_it_was(
    options: dict[str, Any], file: Path, server: Server, tmp_path: Path
) -> None:
    result = await tus_js(_job(server, file, options=options))

    location = result["url"].removeprefix(server.url)
    upload = await server.services.log.upload(upload_in(location))
    assert await server.content(location) == CONTENT
    assert (upload.path, upload.media_type) == ("film é.bin", "video/mp4")
    assert not is_partial_upload(upload.id)
    assert len(stored_files(tmp_path / "data")) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"removeFingerprintOnSuccess": True, "metadataForPartialUploads": {"a": "b"}},
        {"parallelUploads": 2, "headers": {"X-Custom": "1"}, "addRequestId": True},
        {"parallelUploads": 2, "parallelUploadBoundaries": [
            {"start": 0, "end": 1000}, {"start": 1000, "end": len(CONTENT)},
        ]},
        {"protocol": "ietf-draft-05"},
        {"protocol": "ietf-draft-05", "chunkSize": 300_000, "uploadDataDuringCreation": True},
    ],
    ids=str,
)  # fmt: skip
async def test_documented_options_work_at_the_tus_endpoint(
    options: dict[str, Any], file: Path, database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path / "data") as server:
        endpoint = f"{server.url}/files/"
        storage = str(tmp_path / "urls.json")
        job = _job(server, file, options=options, endpoint=endpoint, storage=storage)
        result = await tus_js(job)
        assert result["url"].startswith(endpoint)
        answer = await server.ask("GET", result["url"])
        assert answer.body == CONTENT
    kept = json.loads((tmp_path / "urls.json").read_text() or "{}")
    assert (not kept) == bool(options.get("removeFingerprintOnSuccess"))


async def test_a_stream_whose_length_is_known_at_its_end(file: Path, server: Server) -> None:
    options = {"uploadLengthDeferred": True, "chunkSize": 300_000}
    result = await tus_js(_job(server, file, options=options, stream=True))
    assert await server.content(result["url"].removeprefix(server.url)) == CONTENT


@pytest.mark.parametrize("options", [{"chunkSize": 200_000}, {"chunkSize": 200_000, "p": 2}])
async def test_an_aborted_upload_resumes_at_its_offset(
    options: dict[str, Any], file: Path, server: Server, tmp_path: Path
) -> None:
    parallel = {"parallelUploads": options["p"]} if "p" in options else {}
    options = {"chunkSize": options["chunkSize"], **parallel}
    storage = str(tmp_path / "urls.json")

    begun = _job(server, file, options=options, storage=storage, how="abort")
    await tus_js(begun)
    uploads = len(stored_files(tmp_path / "data"))
    result = await tus_js({**begun, "how": "resume"})

    assert result["resumed"]
    location = result["url"].removeprefix(server.url)
    assert await server.content(location) == CONTENT
    assert uploads >= 1
    assert len(stored_files(tmp_path / "data")) == 1


async def test_a_terminated_upload_is_gone(file: Path, server: Server, tmp_path: Path) -> None:
    result = await tus_js(_job(server, file, how="terminate"))
    location = result["url"].removeprefix(server.url)
    assert (await server.ask("HEAD", location, headers=TUS)).status == 410
    assert stored_files(tmp_path / "data") == []


async def test_parallel_parts_join_a_batch_as_one_upload(file: Path, server: Server) -> None:
    services = server.services
    batch = StartBatch(id=services.new_id(), owner=OWNER)
    await start_batch(services.log, batch, CommandContext("key:test", services.now()))
    endpoint = f"{server.url}/v1/batches/{batch.id}/uploads"
    job = _job(server, file, options={"parallelUploads": 4}, endpoint=endpoint)
    location = (await tus_js(job))["url"].removeprefix(server.url)

    assert (await services.log.upload(upload_in(location))).batch == batch.id
    assert await server.content(location) == CONTENT


async def test_the_clients_own_end_to_end_specification_passes_against_files(
    database_url: str, tmp_path: Path
) -> None:
    require_package("tus-js-client")
    async with serving(database_url, tmp_path / "data") as server:
        urls = await run_script("end_to_end.mjs", f"{server.url}/files/", server.key)
        assert len(set(urls)) == 3


async def test_four_files_at_once_arrive_where_one_transfer_is_allowed_at_a_time(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "PERMIT_TIMEOUT", 0.25)  # so that refusals are met, too

    require_package("tus-js-client")
    async with serving(database_url, tmp_path / "data", max_owner_transfers=1) as server:
        urls = await run_script("together.mjs", f"{server.url}/files/", server.key, "4")
        for number, url in enumerate(urls):
            answer = await server.ask("GET", url)
            assert answer.body == bytes([number]) * 300_000
