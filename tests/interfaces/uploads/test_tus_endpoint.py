"""`/files/` behaves as tusd does, so that tus clients work unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from application.ports.auth import Scope
from infrastructure.settings_loader import BadSetting, read_text
from tests.interfaces.rest import server as api
from tests.interfaces.uploads.server import (
    BYTES,
    TUS,
    Server,
    metadata,
    serving,
    stored_files,
    upload_in,
)
from tests.support import path_of

TEXT = b"0123456789"
COLLECTIONS = ("/files", "/v1/uploads")
SPELLINGS = ("", "/", "?token=a%2Fb", "/?token=a&b")


async def _created(server: Server, endpoint: str = "/files/", **headers: str) -> str:
    """The path of a new upload of ten bytes."""
    said = {**TUS, "Upload-Length": "10", **headers}
    answer = await server.ask("POST", endpoint, headers=said)
    assert answer.status == 201, answer.text
    return path_of(answer.headers["Location"])


async def _stored(server: Server, **pairs: str) -> str:
    headers = {**BYTES, "Upload-Length": "10", **metadata(**pairs)}
    answer = await server.ask("POST", "/files/", headers=headers, data=TEXT)
    assert answer.status == 201, answer.text
    return path_of(answer.headers["Location"])


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_endpoint_and_resource_are_found_with_and_without_a_slash_or_a_query(
    collection: str, server: Server
) -> None:
    client = server.client
    for spelled in SPELLINGS:
        async with client.options(f"{collection}{spelled}") as answer:
            assert (answer.status, answer.headers["Tus-Version"]) == (204, "1.0.0")
        location = await _created(server, f"{collection}{spelled}")
        assert location.startswith(f"{collection}/")
        resource = f"{location}{spelled}"
        async with client.options(resource) as answer:
            assert answer.headers["Tus-Resumable"] == "1.0.0"
        assert await server.patch(resource, 0, TEXT[:4]) == 204
        assert await server.offset(resource) == 4
        headers = {**BYTES, "Upload-Offset": "4", "X-HTTP-Method-Override": "PATCH"}
        async with client.post(resource, headers=headers, data=TEXT[4:]) as answer:
            assert (answer.status, answer.headers["Upload-Offset"]) == (204, "10")
        called_off = await _created(server, f"{collection}{spelled}")
        async with client.delete(f"{called_off}{spelled}", headers=TUS) as answer:
            assert answer.status == 204
        async with client.head(f"{called_off}{spelled}", headers=TUS) as answer:
            assert answer.status == 410


async def test_get_gives_the_bytes_at_files_and_json_at_v1_uploads(
    database_url: str, tmp_path: Path
) -> None:
    async with api.serving(database_url, tmp_path) as server:
        headers = {**BYTES, "Upload-Length": "10", **metadata(filename="a.txt")}
        made = await server.post("/files/", headers=headers, data=TEXT)
        location = made.headers["Location"]
        id = location.rpartition("/")[2]
        position = made.headers["Uptrail-Position"]
        for spelled in SPELLINGS:
            assert (await server.get(f"{location}{spelled}")).body == TEXT
        for slash in ("", "/"):
            shown = await server.get(f"/v1/uploads/{id}{slash}?min_position={position}")
            assert (shown.status, shown.json["id"]) == (200, id)
            listed = await server.get(f"/v1/batches/{shown.json['batch']}/uploads{slash}")
            assert [row["id"] for row in listed.json["items"]] == [id]
        batch = (await server.post("/v1/batches", json={})).json["id"]
        added = await server.post(f"/v1/batches/{batch}/uploads/", json=[{"path": "b"}])
        assert (added.status, added.json["added"]) == (200, 1)
        tus = {**TUS, "Upload-Length": "10", **metadata(filename="c.txt")}
        joined = await server.post(f"/v1/batches/{batch}/uploads/?x=1", headers=tus)
        assert joined.status == 201
        assert path_of(joined.headers["Location"]).startswith("/v1/uploads/")


async def test_a_download_takes_ranges_and_is_named_as_its_file(server: Server) -> None:
    location = await _stored(server, filename="Übung 1.bin", filetype="application/x-a")
    answer = await server.ask("GET", location, headers={"Range": "bytes=2-4"})
    assert (answer.status, answer.body) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"
    assert answer.headers["Content-Type"] == "application/x-a"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    disposition = answer.headers["Content-Disposition"]
    assert disposition.startswith("attachment; ")
    assert "filename*=UTF-8''%C3%9Cbung%201.bin" in disposition
    # Programs look at a file before they fetch it, and know nothing of tus.
    answer = await server.ask("HEAD", location)
    assert (answer.status, answer.headers["Upload-Length"]) == (200, "10")
    assert (await server.ask("HEAD", location.replace("/files", "/v1/uploads"))).status == 412


@pytest.mark.parametrize(
    ("media_type", "shown"),
    [
        ("image/png", True),
        ("text/plain", True),
        ("video/webm", True),
        ("text/html", False),
        ("image/svg+xml", False),
        ("application/pdf", False),
        ("text/plain;charset=utf-8", False),
        ("IMAGE/PNG", False),
        ("nonsense", False),
    ],
)
async def test_only_types_without_scripts_are_shown_by_browsers(
    media_type: str, shown: bool, server: Server
) -> None:
    location = await _stored(server, filename="a", filetype=media_type)
    answer = await server.ask("GET", location)
    kind = answer.headers["Content-Disposition"].partition(";")[0]
    assert kind == ("inline" if shown else "attachment")
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    answer = await server.ask("GET", f"/v1/uploads/{upload_in(location)}/content")
    assert answer.headers["Content-Disposition"].startswith("attachment")


async def test_an_incomplete_upload_gives_the_bytes_that_are_on_record(
    server: Server, tmp_path: Path
) -> None:
    location = await _created(server)
    answer = await server.ask("GET", location)
    assert (answer.status, answer.body) == (204, b"")
    assert await server.patch(location, 0, TEXT[:4]) == 204
    answer = await server.ask("GET", location)
    assert (answer.status, answer.body) == (200, TEXT[:4])
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert (await server.ask("DELETE", location, headers=TUS)).status == 204
    assert (await server.ask("GET", location)).status == 404
    assert stored_files(tmp_path) == []


async def test_uploads_of_other_owners_cannot_be_read_or_written_there(server: Server) -> None:
    location = await _stored(server, filename="a.txt")
    other = server.as_(await server.key_with(Scope.OPERATOR, "other"))
    viewer = server.as_(await server.key_with(Scope.VIEWER))
    nobody = {"Authorization": "Bearer up_0000000000000000_nonsense"}
    for headers, status in ((other, 404), (viewer, 200), (nobody, 401)):
        assert (await server.ask("GET", location, headers=headers)).status == status
    for headers, status in ((other, 404), (viewer, 403), (nobody, 401)):
        said = {**BYTES, "Upload-Offset": "0", **headers}
        assert (await server.ask("PATCH", location, headers=said, data=b"x")).status == status
        assert (await server.ask("DELETE", location, headers={**TUS, **headers})).status == status
    said = {**TUS, "Upload-Length": "1", **viewer}
    assert (await server.ask("POST", "/files/", headers=said)).status == 403


async def test_an_upload_there_has_a_batch_of_its_own_as_anywhere(server: Server) -> None:
    first, second = [await _stored(server, filename="a.txt") for _ in range(2)]
    uploads = [await server.services.log.upload(upload_in(one)) for one in (first, second)]
    assert len({upload.batch for upload in uploads}) == 2
    assert await server.topics(first) == await server.topics(second)


async def test_parts_that_were_made_there_are_joined_by_either_endpoint(server: Server) -> None:
    for endpoint in ("/files/", "/v1/uploads"):
        parts = []
        for text in (TEXT[:5], TEXT[5:]):
            headers = {**BYTES, "Upload-Length": "5", "Upload-Concat": "partial"}
            made = await server.ask("POST", "/files", headers=headers, data=text)
            parts.append(made.headers["Location"] + "/")
        headers = {**TUS, "Upload-Concat": "final;" + " ".join(parts)}
        made = await server.ask("POST", endpoint, headers=headers)
        assert made.status == 201, made.text
        location = path_of(made.headers["Location"])
        assert location.startswith(f"{endpoint.rstrip('/')}/")
        assert await server.content(f"/v1/uploads/{upload_in(location)}") == TEXT


async def test_an_ietf_client_uploads_there_too(server: Server) -> None:
    headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "8"}
    answer = await server.ask("POST", "/files/?path=dir/a.bin&token=1", headers=headers, data=TEXT)
    assert answer.status == 201, answer.text
    location = path_of(answer.headers["Location"])
    assert location.startswith("/files/")
    assert (await server.services.log.upload(upload_in(location))).path == "dir/a.bin"
    answer = await server.ask("GET", location)
    assert answer.body == TEXT


async def test_the_path_of_the_endpoint_is_a_setting(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path, tus_path="/api/tus") as server:
        location = await _created(server, "/api/tus/")
        assert location.startswith("/api/tus/")
        assert await server.patch(location, 0, TEXT) == 204
        assert (await server.ask("POST", "/files/", headers=TUS)).status == 404
    async with serving(database_url, tmp_path, tus_path="") as server:
        assert (await server.ask("POST", "/files/", headers=TUS)).status == 404
        assert (await _created(server, "/v1/uploads/")).startswith("/v1/uploads/")


@pytest.mark.parametrize(
    "path", ["/", "files", "/v1", "/v1/uploads/", "/static/x", "/a/../b", "/a?"]
)
def test_a_path_that_is_taken_or_none_is_refused_as_a_setting(path: str) -> None:
    with pytest.raises(BadSetting, match="tus_path must be a path such as /files/"):
        read_text("tus_path", path, "test")
