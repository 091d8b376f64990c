"""tus-js-client as a client of the IETF's drafts: interop versions 5 and 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.installed import tus_js
from tests.interfaces.uploads.server import Server, upload_in

CONTENT = bytes(range(256)) * 4096  # 1 MiB
METADATA = {"filename": "film é.bin", "filetype": "video/mp4"}
DRAFTS = ("ietf-draft-03", "ietf-draft-05")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "film.bin"
    path.write_bytes(CONTENT)
    return path


def _job(server: Server, file: Path, draft: str, how: str = "send", **more: Any) -> dict[str, Any]:
    options = {"metadata": METADATA, "protocol": draft, **more.pop("options", {})}
    return {
        "endpoint": f"{server.url}/v1/uploads",
        "key": server.key,
        "file": str(file),
        "how": how,
        "options": options,
        **more,
    }


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"options": {"uploadDataDuringCreation": True}},
        {"options": {"chunkSize": 300_000}},
        {"options": {"chunkSize": 300_000, "uploadDataDuringCreation": True}},
        {"options": {"chunkSize": 300_000, "overridePatchMethod": True}},
        {"options": {"chunkSize": 300_000, "uploadLengthDeferred": True}, "stream": True},
    ],
    ids=str,
)
async def test_a_file_arrives_as_it_was(
    more: dict[str, Any], draft: str, file: Path, server: Server
) -> None:
    result = await tus_js(_job(server, file, draft, **more))

    location = result["url"].removeprefix(server.url)
    assert await server.content(location) == CONTENT
    upload = await server.services.log.upload(upload_in(location))
    assert (upload.path, upload.media_type) == ("film é.bin", "video/mp4")


@pytest.mark.parametrize("draft", DRAFTS)
async def test_an_aborted_upload_is_resumed_by_another_process(
    draft: str, file: Path, server: Server, tmp_path: Path
) -> None:
    kept = {"storage": str(tmp_path / "urls.json"), "options": {"chunkSize": 300_000}}
    begun = await tus_js(_job(server, file, draft, "abort", **kept))
    location = begun["url"].removeprefix(server.url)
    assert (await server.services.log.upload(upload_in(location))).received == 300_000

    ended = await tus_js(_job(server, file, draft, "resume", **kept))
    assert (ended["url"], ended["resumed"]) == (begun["url"], True)
    assert await server.content(location) == CONTENT


@pytest.mark.parametrize("draft", DRAFTS)
async def test_an_upload_is_terminated(draft: str, file: Path, server: Server) -> None:
    ended = await tus_js(_job(server, file, draft, "terminate"))
    location = ended["url"].removeprefix(server.url)
    assert (await server.topics(location))[-1] == "upload.cancelled"
