from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from application.ports.auth import Scope
from domain.upload.events import (
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    UploadCompleted,
    UploadQuarantined,
    UploadQueued,
)
from domain.upload.state import UploadState
from infrastructure.processors.http import PostgresRemoteSteps
from infrastructure.read_model.projector import catch_up
from interfaces.common.requests import ByteRange, Unsatisfiable, parse_range
from tests.interfaces.uploads.server import BYTES, OWNER, Server, serving, stored_files, upload_in

TEXT = b"0123456789"
BY: dict[str, Any] = {"at": datetime(2026, 1, 1, tzinfo=UTC), "by": "worker:test"}


async def _stored(server: Server, name: str = "a.txt", media_type: str = "text/html") -> str:
    pairs = {"filename": name, "filetype": media_type}
    said = ",".join(f"{key} {b64encode(text.encode()).decode()}" for key, text in pairs.items())
    headers = {**BYTES, "Upload-Length": str(len(TEXT)), "Upload-Metadata": said}
    answer = await server.ask("POST", "/v1/uploads", headers=headers, data=TEXT)
    return answer.headers["Location"]


async def _processed(server: Server, id: UUID, *events: object) -> None:
    version = (await server.services.log.upload(id)).version
    await server.services.log.append(append_to_stream(id, version, *events, owner=OWNER))  # type: ignore[arg-type]
    server.services.log.forget(id)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", ByteRange(0, 10, 10)),
        ("bytes=2-4", ByteRange(2, 5, 10)),
        ("bytes=2-99", ByteRange(2, 10, 10)),
        ("bytes=-3", ByteRange(7, 10, 10)),
        ("bytes=-99", ByteRange(0, 10, 10)),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_a_range_header_means_one_part_or_everything(
    header: str | None, part: ByteRange | None
) -> None:
    assert parse_range(header, 10) == part


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_outside_of_the_content_is_unsatisfiable(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, size)


async def test_stored_bytes_are_given_back_as_an_attachment(server: Server) -> None:
    location = await _stored(server, 'Ü "1".html')
    answer = await server.ask("GET", f"{location}/content")
    assert answer.body == TEXT
    said = answer.headers
    assert said["Content-Disposition"] == (
        "attachment; filename=\"_ _1_.html\"; filename*=UTF-8''%C3%9C%20%221%22.html"
    )
    assert said["Content-Type"] == "text/html"
    assert said["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in said["Content-Security-Policy"]
    answer = await server.ask("HEAD", f"{location}/content")
    assert answer.headers["Content-Length"] == "10"
    known = {"If-None-Match": said["ETag"]}
    assert (await server.ask("GET", f"{location}/content", headers=known)).status == 304


async def test_byte_ranges_are_served(server: Server) -> None:
    path = f"{await _stored(server)}/content"
    answer = await server.ask("GET", path, headers={"Range": "bytes=2-4"})
    assert (answer.status, answer.body) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"
    answer = await server.ask("GET", path, headers={"Range": "bytes=10-"})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */10"
    other = {"Range": "bytes=2-4", "If-Range": '"another"'}
    answer = await server.ask("GET", path, headers=other)
    assert (answer.status, answer.body) == (200, TEXT)


async def test_bytes_that_are_missing_are_never_passed_off_as_whole(
    server: Server, tmp_path: Path
) -> None:
    location = await _stored(server)
    stored_files(tmp_path)[0].write_bytes(b"short")
    assert (await server.ask("GET", f"{location}/content")).status == 500


async def test_an_upload_of_another_owner_does_not_exist(server: Server) -> None:
    location = await _stored(server)
    waiting = await server.create(5)
    rival = server.as_(await server.key_with(Scope.OPERATOR, "rival"))
    viewer = server.as_(await server.key_with(Scope.VIEWER))
    limited = server.as_(await server.key_with(Scope.UPLOADER, batch=server.services.new_id()))
    for key, status in ((rival, 404), (limited, 404), (viewer, 200)):
        assert (await server.ask("GET", f"{location}/content", headers=key)).status == status
    for key, status in ((rival, 404), (limited, 404), (viewer, 403)):
        headers = {**BYTES, "Upload-Offset": "0", **key}
        for method in ("HEAD", "PATCH", "DELETE"):
            async with server.client.request(method, waiting, headers=headers) as answer:
                assert answer.status == status
    for key in (limited, viewer):
        headers = {**BYTES, "Upload-Length": "0", **key}
        assert (await server.ask("POST", "/v1/uploads", headers=headers)).status == 403


async def test_a_quarantined_file_is_readable_for_operators_only(server: Server) -> None:
    location = await _stored(server)
    await _processed(
        server,
        upload_in(location),
        UploadQueued(**BY),
        AttemptStarted(number=1, worker="w", **BY),
        UploadQuarantined(step="antivirus", reason="found", **BY),
    )
    operator = server.as_(await server.key_with(Scope.OPERATOR))
    assert (await server.ask("GET", f"{location}/content")).status == 404
    assert (await server.ask("GET", f"{location}/content", headers=operator)).status == 200


async def test_artifacts_are_given_back_by_name(database_url: str, server: Server) -> None:
    location = await _stored(server)
    await server.services.blobs.put("artifacts/1", b"pixels")
    await _processed(
        server,
        upload_in(location),
        UploadQueued(**BY),
        AttemptStarted(number=1, worker="w", **BY),
        AttemptSucceeded(number=1, artifacts={"small.webp": "artifacts/1"}, duration=0.1, **BY),
        UploadCompleted(**BY),
    )
    await catch_up(database_url, server.services.log)
    answer = await server.ask("GET", f"{location}/artifacts/small.webp")
    assert (answer.status, answer.body) == (200, b"pixels")
    assert (await server.ask("GET", f"{location}/artifacts/other")).status == 404


async def test_a_service_is_refused_once_another_process_has_ended_its_attempt(
    database_url: str, tmp_path: Path, server: Server
) -> None:
    id = upload_in(await _stored(server))
    await _processed(server, id, UploadQueued(**BY), AttemptStarted(number=1, worker="w", **BY))
    link = await PostgresRemoteSteps(server.pool).open(id, 1, download_within=60)
    assert (await server.services.log.upload(id)).state is UploadState.PROCESSING
    async with serving(database_url, tmp_path) as another:
        ended = AttemptFailed(
            number=1,
            step="http",
            error_type="Broken",
            message="it does not answer",
            permanent=True,
            duration=0.1,
            **BY,
        )
        await _processed(another, id, ended)
        path = f"/v1/callbacks/{link.callback}"
        assert (await server.ask("POST", path, json={"result": {}})).status == 410
        assert (await server.ask("GET", f"/v1/callbacks/{link.download}/content")).status == 410

        await _processed(another, id, AttemptStarted(number=2, worker="w", **BY))
        assert (await server.ask("POST", path, json={"result": {}})).status == 410
