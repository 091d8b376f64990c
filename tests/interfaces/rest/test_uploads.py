"""Files join a batch by list or line by line; uploads are shown, cancelled and retried."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from application.ports.auth import Scope
from domain.ids import upload_id_for
from domain.upload.events import AttemptFailed, AttemptStarted, UploadFailed
from tests.interfaces.rest.server import OWNER, Server

NDJSON = {"Content-Type": "application/x-ndjson"}


async def fail(server: Server, upload: UUID) -> int:
    """An upload whose only attempt failed, as its worker recorded it."""
    services = server.services
    at, by = services.now(), "worker:w1"
    log = services.log
    version = (await log.versions([upload]))[upload]
    append = append_to_stream(
        upload,
        version,
        AttemptStarted(at=at, by=by, number=1, worker="w1"),
        AttemptFailed(
            at=at,
            by=by,
            number=1,
            step="thumbnail",
            error_type="Broken",
            message="not an image",
            permanent=True,
            duration=0.1,
        ),
        UploadFailed(at=at, by=by, step="thumbnail", message="not an image"),
        owner=OWNER,
    )
    return (await log.append(append)).position


@pytest.mark.options(max_file_size=100)
async def test_each_file_of_a_list_is_judged_by_itself(server: Server) -> None:
    id = (await server.batch("known")).json["id"]
    files = [
        {"path": "new", "size": 1},
        {"path": "known", "size": 10},
        {"path": "../out"},
        {"path": "huge", "size": 101},
    ]
    for body in (files, {"files": files}):
        answer = await server.post(f"/v1/batches/{id}/uploads", json=body)

        assert answer.status == 200
        results = [(f["status"], f.get("code")) for f in answer.json["files"]]
        assert results[1:] == [
            ("known", None),
            ("rejected", "invalid"),
            ("rejected", "too_large"),
        ]
        assert answer.json["rejected"] == 2
    assert results[0] == ("known", None)
    assert answer.json["files"][0]["upload"] == str(
        upload_id_for(UUID(id), "new", server.services.log.id_secret)
    )
    params = {"min_position": answer.json["position"], "state": "rejected"}
    page = await server.get(f"/v1/batches/{id}/uploads", params=params)
    assert {upload["path"] for upload in page.json["items"]} == {"../out", "huge"}


async def test_files_come_line_by_line_in_chunks_of_any_size(server: Server) -> None:
    id = (await server.batch()).json["id"]
    text = b"\n".join(json.dumps({"path": f"f{n}"}).encode() for n in range(2500)) + b"\n\n"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), 777):
            yield text[start : start + 777]

    answer = await server.post(f"/v1/batches/{id}/uploads", data=chunks(), headers=NDJSON)

    assert answer.status == 200
    assert (answer.json["added"], len(answer.json["files"])) == (2500, 2500)
    again = await server.post(f"/v1/batches/{id}/uploads", data=text, headers=NDJSON)
    assert (again.json["added"], again.json["known"]) == (0, 2500)
    assert again.json["position"] == answer.json["position"]


async def test_a_refused_line_is_named_with_the_number_of_accepted_ones(server: Server) -> None:
    started = await server.batch()
    path = f"/v1/batches/{started.json['id']}/uploads"
    good = b'{"path": "a"}\n'
    cases: list[tuple[bytes, int, str]] = [
        (good + b'{"path": 1}\n', 422, "/1/path"),
        (good + b'{"path": "b", "sise": 1}', 422, "/1/sise"),
        (good + b"{", 400, "/1"),
        (good + b"\xff\n", 400, "/1"),
        (b'{"path": "' + b"a" * 70_000, 413, ""),
    ]
    for body, status, pointer in cases:
        answer = await server.post(path, data=body, headers=NDJSON)

        assert answer.status == status
        assert not pointer or answer.pointers == [pointer]
        assert "the 0 files before" in answer.json["detail"]
    params = {"min_position": started.json["position"]}
    assert (await server.get(path, params=params)).json["items"] == []


@pytest.mark.options(max_manifest_files=3)
async def test_more_files_than_a_manifest_holds_are_refused(server: Server) -> None:
    id = (await server.batch()).json["id"]
    path = f"/v1/batches/{id}/uploads"
    files = [{"path": str(n)} for n in range(31)]
    listed = await server.post(path, json=files[:4])
    lines = "\n".join(json.dumps(file) for file in files)
    streamed = await server.post(path, data=lines, headers=NDJSON)

    assert (listed.status, listed.pointers) == (422, ["/files"])
    assert (streamed.status, streamed.code) == (413, "too_large")


async def test_nothing_joins_a_sealed_batch(server: Server) -> None:
    id = (await server.batch("a", seal=True)).json["id"]

    answer = await server.post(f"/v1/batches/{id}/uploads", json=[{"path": "b"}])

    assert (answer.status, answer.code) == (409, "invalid_state")


async def test_a_file_joins_over_tus_on_the_same_path(server: Server) -> None:
    id = (await server.batch()).json["id"]
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "5",
        "Upload-Metadata": "filename aGkudHh0",
        "Content-Type": "application/offset+octet-stream",
    }
    created = await server.post(f"/v1/batches/{id}/uploads", headers=headers, data=b"hello")

    assert created.status == 201, created.body
    upload = UUID(created.headers["Location"].rpartition("/")[2])
    assert (await server.services.log.upload(upload)).received == 5
    metrics = await server.get("/metrics")
    assert b"uptrail_http_received_bytes_total" in metrics.body


async def test_an_upload_shows_its_attempts_and_is_retried(server: Server) -> None:
    started = await server.batch("a")
    upload = UUID(started.json["uploads"][0])
    services = server.services
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }
    sent = await server.ask("PATCH", f"/v1/uploads/{upload}", headers=headers, data=b"0123456789")
    assert sent.status == 204, sent.body
    early = await server.post(f"/v1/uploads/{upload}/retry")
    assert (early.status, early.code) == (409, "invalid_state")
    position = await fail(server, upload)
    params = {"min_position": position}

    shown = await server.get(f"/v1/uploads/{upload}", params=params)
    attempts = await server.get(f"/v1/uploads/{upload}/attempts", params=params)
    then = await server.get(f"/v1/uploads/{upload}", params={"at": started.json["position"]})

    assert (shown.json["state"], shown.json["error"]) == ("failed", "not an image")
    assert "blob" not in shown.json
    (attempt,) = attempts.json["items"]
    assert (attempt["number"], attempt["state"], attempt["worker"]) == (1, "failed", "w1")
    assert attempts.json["next"] is None
    assert then.json["state"] == "registered"
    retried = await server.post(f"/v1/uploads/{upload}/retry")
    assert (retried.status, retried.json["state"]) == (202, "received")
    assert (await services.log.upload(upload)).state == "received"


async def test_an_upload_is_cancelled_once_with_the_reason_given(server: Server) -> None:
    started = await server.batch("a")
    path = f"/v1/uploads/{started.json['uploads'][0]}"
    sender = await server.key_for(Scope.UPLOADER)
    key = {"Idempotency-Key": "stop"}
    options: dict[str, Any] = {"json": {"reason": "wrong file"}, "key": sender}

    first = await server.post(f"{path}/cancel", headers=key, **options)
    again = await server.post(f"{path}/cancel", headers=key, **options)
    refused = await server.post(f"{path}/cancel", **options)

    assert (first.status, first.json["state"]) == (202, "cancelled")
    assert (again.status, again.json["state"]) == (202, "cancelled")
    assert (refused.status, refused.code) == (409, "invalid_state")
    params = {"min_position": first.json["position"]}
    events = (await server.get(f"{path}/history", params=params)).json["items"]
    assert [event["type"] for event in events][-1] == "upload.cancelled"
    assert events[-1]["data"] == {"reason": "wrong file"}
