from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from tests.interfaces.uploads.raw_http import Sender, header
from tests.interfaces.uploads.server import TUS, Server, upload_in
from tests.support import eventually, path_of

LARGE = bytes(range(256)) * 2000
PARTIAL = {"Content-Type": "application/partial-upload"}
VERSIONS = ("5", "6", "8")


def interop(version: str, **headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return {"Upload-Draft-Interop-Version": version, **named}


def digest(content: bytes) -> str:
    return f"sha-256=:{b64encode(sha256(content).digest()).decode()}:"


async def ask(
    server: Server, method: str, path: str, data: Any = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    async with server.client.request(method, path, data=data, headers=named) as answer:
        body = await answer.read()
        return answer.status, dict(answer.headers), json.loads(body) if body else None


async def create(server: Server, version: str = "8", **headers: str) -> str:
    said = {"Upload_Complete": "?0", **headers}
    status, answered, _ = await ask(server, "POST", "/v1/uploads", **interop(version, **said))
    assert (status, answered["Upload-Complete"]) == (201, "?0")
    return answered["Location"]


async def append(
    server: Server, location: str, offset: int, data: Any, *, last: bool = False, **headers: str
) -> tuple[int, dict[str, str], Any]:
    said = {"Upload_Offset": str(offset), "Upload_Complete": "?1" if last else "?0", **headers}
    said = {
        "Content_Type": "application/partial-upload",
        "Upload_Draft_Interop_Version": "8",
        **said,
    }
    return await ask(server, "PATCH", location, data, **said)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_interrupted_upload_goes_on_where_it_was(version: str, server: Server) -> None:
    said = interop(version, Upload_Complete="?1", Content_Length=str(len(LARGE)))
    said["Content-Disposition"] = "inline; filename*=UTF-8''%C3%9Cbung.bin"
    async with Sender(server) as sender:
        await sender.begin("POST", "/v1/uploads", {**said, "Content-Type": "film/x"})
        status, head = await sender.answer()
        assert (status, header(head, "Upload-Draft-Interop-Version")) == (104, version)
        assert header(head, "Location")
        location = path_of(header(head, "Location") or "")
        assert "max-size=" in (header(head, "Upload-Limit") or "")
        await sender.send(LARGE[:200_000])

    async def cut() -> bool:
        return "upload.transfer_interrupted" in await server.topics(location)

    assert await eventually(cut)
    async with Sender(server) as sender:
        await sender.begin("HEAD", location, interop(version))
        status, head = await sender.answer()
        offset = int(header(head, "Upload-Offset") or "")
        assert (status, offset) == (204, 200_000)
        assert header(head, "Upload-Complete") == "?0"
        assert header(head, "Upload-Length") == str(len(LARGE))
        assert header(head, "Cache-Control") == "no-store"

        rest = LARGE[offset:]
        headers = interop(version, Upload_Offset=str(offset), Upload_Complete="?1")
        length = {"Content-Length": str(len(rest))}
        await sender.begin("PATCH", location, {**headers, **PARTIAL, **length}, rest)
        status, head = await sender.answer()
        assert (status, header(head, "Upload-Complete")) == (201, "?1")
        assert header(head, "Upload-Offset") == str(len(LARGE))

    assert await server.content(location) == LARGE
    upload = await server.services.log.upload(upload_in(location))
    assert (upload.path, upload.media_type) == ("Übung.bin", "film/x")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_file_comes_in_parts(version: str, server: Server) -> None:
    location = await create(server, version)
    named = {"Upload_Draft_Interop_Version": version}
    status, answered, _ = await append(server, location, 0, b"01234", last=False, **named)
    assert status == (201 if version == "5" else 204)
    assert (answered["Upload-Offset"], answered["Upload-Complete"]) == ("5", "?0")
    status, answered, body = await append(server, location, 5, b"56789", last=True, **named)
    assert (status, answered["Upload-Complete"]) == (201, "?1")
    assert (body["size"], body["state"]) == (10, "received")
    assert await server.content(location) == b"0123456789"


async def test_a_whole_small_file_is_created_in_one_request(server: Server) -> None:
    for content in (b"hello", b""):
        headers = interop("6", Upload_Complete="?1", Content_Length=str(len(content)))
        async with Sender(server) as sender:
            await sender.begin("POST", "/v1/uploads", headers, content)
            status, head = await sender.answer()
            location = header(head, "Location")
            assert (status, location is not None) == (104, True)
            status, head = await sender.answer()
        assert (status, header(head, "Location")) == (201, location)
        assert str(location).startswith("http://test/v1/uploads/")
        assert header(head, "Upload-Complete") == "?1"
        assert await server.content(path_of(str(location))) == content


async def test_a_client_of_another_version_is_served_without_104(server: Server) -> None:
    for named in ({}, interop("7"), interop("next")):
        async with Sender(server) as sender:
            headers = {**named, "Upload-Complete": "?1", "Content-Length": "300000"}
            await sender.begin("POST", "/v1/uploads?path=dir/raw.bin", headers)
            await sender.send(bytes(300_000))
            status, head = await sender.answer()
            location = str(header(head, "Location"))
            assert (status, header(head, "Upload-Complete")) == (201, "?1")
        upload = await server.services.log.upload(upload_in(location))
        assert (upload.path, upload.received) == ("dir/raw.bin", 300_000)


async def test_a_tus_request_is_never_taken_for_the_draft_protocol(server: Server) -> None:
    both = {**TUS, **interop("8", Upload_Complete="?1"), "Upload-Length": "5"}
    answer = await server.ask("POST", "/v1/uploads", headers=both)
    assert (answer.status, answer.headers["Tus-Resumable"]) == (201, "1.0.0")
    assert (await server.ask("POST", "/v1/uploads", data=b"x")).status == 412


async def test_a_file_of_unknown_length_ends_where_its_last_body_does(server: Server) -> None:
    async def chunked() -> Any:
        yield b"01234"
        yield b"56789"

    headers = interop("8", Upload_Complete="?1")
    answer = await server.ask("POST", "/v1/uploads", data=chunked(), headers=headers)
    assert answer.status == 201
    assert await server.content(answer.headers["Location"]) == b"0123456789"

    location = await create(server)
    await append(server, location, 0, b"01234")
    status, answered, _ = await append(server, location, 5, b"", last=True)
    assert (status, answered["Upload-Complete"]) == (201, "?1")
    assert await server.content(location) == b"01234"


async def test_a_write_is_answered_with_the_position_from_which_it_can_be_read(
    server: Server,
) -> None:

    async def placed(answered: tuple[int, dict[str, str], Any]) -> None:
        status, headers, _ = answered
        assert status in (201, 204)
        assert int(headers["Uptrail-Position"]) == await server.services.log.head()

    said = interop("8", Upload_Complete="?1")
    await placed(await ask(server, "POST", "/v1/uploads", b"hello", **said))
    said = interop("8", Upload_Complete="?0")
    await placed(await ask(server, "POST", "/v1/uploads", b"hello", **said))
    location = await create(server)
    await placed(await append(server, location, 0, b"hello"))
    await placed(await append(server, location, 5, b"!", last=True))
    await placed(await append(server, location, 6, b"", last=True))
    await placed(await ask(server, "DELETE", location, **interop("8")))


async def test_a_wrong_offset_is_refused_with_the_right_one(server: Server) -> None:
    location = await create(server)
    await append(server, location, 0, b"01234")
    status, answered, body = await append(server, location, 2, b"xx")
    assert (status, answered["Upload-Offset"]) == (409, "5")
    assert answered["Upload-Complete"] == "?0"
    assert body["type"].endswith("http-problem-types#mismatching-upload-offset")
    assert (body["expected-offset"], body["provided-offset"]) == (5, 2)


async def test_a_finished_upload_repeats_its_answer_and_takes_nothing_more(server: Server) -> None:
    location = await create(server)
    _, _, first = await append(server, location, 0, b"01234", last=True)
    status, answered, again = await append(server, location, 5, b"", last=True)
    assert (status, answered["Upload-Complete"], again) == (201, "?1", first)
    for last in (True, False):
        status, answered, body = await append(server, location, 5, b"more", last=last)
        assert (status, answered["Upload-Complete"]) == (400, "?0")
        assert body["type"].endswith("#completed-upload")
    answer = await server.ask("HEAD", location, headers=interop("8"))
    assert answer.headers["Upload-Complete"] == "?1"
    assert await server.content(location) == b"01234"


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("Upload-Length", "5", "6"),
        ("Upload-Complete", "?0", "?1"),
        ("Upload-Draft-Interop-Version", "6", "8"),
        ("Upload-Offset", "0", "1"),
    ],
)
async def test_a_repeated_header_with_another_value_is_refused_by_name(
    header: str, first: str, second: str, server: Server
) -> None:
    location = await create(server, Upload_Length="5")
    path, method = ("/v1/uploads", "POST") if header != "Upload-Offset" else (location, "")
    head = await server.services.log.head()
    headers = interop("8", Upload_Complete="?1", Upload_Length="5")
    headers |= {**PARTIAL, "Content-Length": "5"}
    headers |= {header: first, header.lower(): second}
    async with Sender(server) as sender:
        await sender.begin(method or "PATCH", path, headers, b"hello")
        status, answer = await sender.answer()
        problem = await sender.body(answer)

    assert (status, problem["code"]) == (400, "bad_parameter")
    assert problem["errors"][0]["pointer"] == header
    assert await server.services.log.head() == head


@pytest.mark.options(max_file_size=1000)
async def test_lengths_that_contradict_each_other_are_refused(server: Server) -> None:
    async def short() -> Any:
        yield b"01"

    said = interop("8", Upload_Complete="?1", Upload_Length="9")
    status, _, body = await ask(server, "POST", "/v1/uploads", b"12345", **said)
    assert (status, body["code"]) == (400, "inconsistent_length")
    assert body["type"].endswith("#inconsistent-upload-length")

    location = await create(server, Upload_Length="10")
    for data, last, headers in (
        (b"12345", True, {}),
        (b"12345", False, {"Upload_Length": "11"}),
        (b"x" * 11, False, {}),
        (short(), True, {}),
    ):
        status, _, body = await append(server, location, 0, data, last=last, **headers)
        assert (status, body["code"]) == (400, "inconsistent_length"), data
    assert (await append(server, location, 2, b"23456789", last=True))[0] == 201

    answer = await server.ask("OPTIONS", "/v1/uploads")
    assert "max-size=1000" in answer.headers["Upload-Limit"]
    said = interop("8", Upload_Complete="?0", Upload_Length="1001")
    status, answered, _ = await ask(server, "POST", "/v1/uploads", **said)
    assert (status, "max-size=1000" in answered["Upload-Limit"]) == (413, True)


@pytest.mark.options(progress_interval=0.01)
async def test_a_body_with_another_digest_leaves_no_trace(server: Server) -> None:
    location = await create(server)
    right = {"Content_Digest": digest(LARGE)}
    spoilt = LARGE[:-1] + b"x"
    status, _, body = await append(server, location, 0, spoilt, last=False, **right)
    assert (status, body["code"]) == (400, "digest_mismatch")
    assert body["type"].endswith("#digest-mismatching-values")
    answer = await server.ask("HEAD", location, headers=interop("8"))
    assert answer.headers["Upload-Offset"] == "0"
    assert (await append(server, location, 0, LARGE, last=True, **right))[0] == 201
    assert await server.content(location) == LARGE

    for content in (b"small", LARGE):
        for name in ("Content_Digest", "Repr_Digest"):
            headers = interop("8", Upload_Complete="?1", **{name: digest(content + b"x")})
            status, _, body = await ask(server, "POST", "/v1/uploads", content, **headers)
            assert (status, body["code"]) == (400, "digest_mismatch")
    headers = interop("8", Upload_Complete="?0", Repr_Digest=digest(b"whole"))
    location = (await ask(server, "POST", "/v1/uploads", **headers))[1]["Location"]
    upload = await server.services.log.upload(upload_in(location))
    assert upload.checksum == f"sha256:{sha256(b'whole').hexdigest()}"

    for bad, code in (
        ("md5=:YWJj:", "unsupported_digest"),
        ("sha-256=abc", "invalid_digest"),
        ("sha-256=:YWJj:", "invalid_digest"),
    ):
        status, _, body = await append(server, location, 0, b"x", Content_Digest=bad)
        assert (status, body["code"]) == (400, code)


async def test_a_cancelled_upload_is_not_found_any_more(server: Server) -> None:
    location = await create(server, "5")
    named = interop("5")
    status, _, _ = await ask(server, "DELETE", location, **{**named, "Upload_Offset": "0"})
    assert status == 400
    assert (await ask(server, "DELETE", location, **named))[0] == 204
    assert (await ask(server, "DELETE", location, **named))[0] == 404
    assert (await ask(server, "HEAD", location, **named))[0] == 404
    assert (await append(server, location, 0, b"x"))[0] == 404


async def test_the_media_type_of_an_append_is_required_from_version_6_on(server: Server) -> None:
    for version, status in (("5", 201), ("6", 415), ("8", 415)):
        location = await create(server, version)
        headers = interop(version, Upload_Offset="0", Upload_Complete="?0")
        headers["Content-Type"] = "application/octet-stream"
        assert (await ask(server, "PATCH", location, b"x", **headers))[0] == status


@pytest.mark.options(progress_interval=0.05)
async def test_the_newest_request_wins_and_progress_is_reported(server: Server) -> None:
    location = await create(server, Upload_Length=str(len(LARGE)))
    async with Sender(server) as stuck, Sender(server) as newer:
        headers = interop("8", Upload_Offset="0", Upload_Complete="?1")
        length = {"Content-Length": str(len(LARGE))}
        await stuck.begin("PATCH", location, {**headers, **PARTIAL, **length}, LARGE[:1000])
        for at in range(1000, 2200, 50):
            await stuck.send(LARGE[at : at + 50])
            await asyncio.sleep(0.06)
        status, head = await stuck.answer()
        assert (status, header(head, "Location")) == (104, None)
        assert int(header(head, "Upload-Offset") or "") > 0

        await newer.begin("HEAD", location, interop("8"))
        status, head = await newer.answer()
        assert (status, header(head, "Upload-Offset")) == (204, "2200")
        assert (await stuck.answer())[0] == 423


async def test_a_file_joins_a_batch_once(server: Server) -> None:
    answer = await server.ask("POST", "/v1/batches", json={})
    path = f"/v1/batches/{answer.json['id']}/uploads?path=dir/a.txt"
    headers = interop("8", Upload_Complete="?1")
    status, _, first = await ask(server, "POST", path, b"hello", **headers)
    assert (status, first["path"]) == (201, "dir/a.txt")
    assert (await ask(server, "POST", path, b"hello", **headers))[2] == first

    other = path.replace("a.txt", "b.txt")
    headers["Upload-Complete"] = "?0"
    assert (await ask(server, "POST", other, b"hel", **headers))[0] == 201
    status, answered, _ = await ask(server, "POST", other, b"hel", **headers)
    assert (status, answered["Upload-Offset"], "Location" in answered) == (409, "3", True)
