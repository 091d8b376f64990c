from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interfaces.uploads.tus_protocol import OVERRIDE
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import BYTES, TUS, Server, stored_files, upload_in


@pytest.mark.options(max_file_size=1000)
async def test_options_need_no_key(server: Server) -> None:
    for path in ("/v1/uploads", f"/v1/uploads/{server.services.new_id()}"):
        answer = await server.ask("OPTIONS", path)
        assert answer.status == 204
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert answer.headers["Tus-Max-Size"] == "1000"
        assert "termination" in answer.headers["Tus-Extension"]


async def test_an_upload_goes_in_by_pieces_and_comes_out_whole(server: Server) -> None:
    location = await server.create(10)
    assert location.startswith("/v1/uploads/")
    assert await server.patch(location, 0, b"01234") == 204
    assert await server.offset(location) == 5
    assert await server.patch(location, 0, b"01234") == 409
    assert await server.patch(location, 5, b"56789") == 204
    assert await server.patch(location, 10, b"") == 204

    assert await server.content(location) == b"0123456789"
    assert await server.topics(location) == [
        "upload.registered",
        "upload.file_progressed",
        "upload.file_progressed",
        "upload.file_received",
    ]


async def test_a_write_is_answered_with_the_position_from_which_it_can_be_read(
    server: Server,
) -> None:
    ask, log = server.client.request, server.services.log
    whole = {**BYTES, "Upload-Length": "5"}
    announced = {**TUS, "Upload-Length": "9"}
    location = await server.create(9)
    for method, path, headers, body in (
        ("POST", "/v1/uploads", announced, b""),
        ("POST", "/v1/uploads", whole, b"hello"),
        ("POST", "/v1/uploads", {**whole, "Upload-Length": "9"}, b"hello"),
        ("PATCH", location, {**BYTES, "Upload-Offset": "0"}, b"hello"),
        ("PATCH", location, {**BYTES, "Upload-Offset": "5"}, b"!!!!"),
        ("PATCH", location, {**BYTES, "Upload-Offset": "9"}, b""),
        ("DELETE", location, TUS, b""),
    ):
        async with ask(method, path, headers=headers, data=body) as answer:
            assert answer.status in (201, 204)
            assert int(answer.headers["Uptrail-Position"]) == await log.head()


async def test_a_finished_upload_repeats_its_answer_at_its_end_only(server: Server) -> None:
    location = await server.create(5)
    assert await server.patch(location, 0, b"hello") == 204

    assert await server.patch(location, 5, b"") == 204
    assert await server.patch(location, 3, b"") == 409
    assert await server.patch(location, 5, b"x") == 413


async def test_a_body_of_unknown_length_is_taken(server: Server) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"01234"
        yield b"56789"

    location = await server.create(10)
    assert await server.patch(location, 0, body()) == 204
    assert await server.content(location) == b"0123456789"


async def test_more_bytes_than_declared_are_refused_and_not_kept(server: Server) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"01234567"
        yield b"89 and more"

    location = await server.create(10)
    assert await server.patch(location, 0, b"x" * 11) == 413
    assert await server.offset(location) == 0
    assert await server.patch(location, 0, body()) == 413
    assert await server.offset(location) == 0
    assert await server.patch(location, 0, b"0123456789") == 204
    assert await server.patch(location, 10, b"x") == 413
    assert await server.content(location) == b"0123456789"


async def test_a_deferred_length_may_come_with_the_bytes(server: Server) -> None:
    headers = {**TUS, "Upload-Defer-Length": "1"}
    answer = await server.ask("POST", "/v1/uploads", headers=headers)
    location = answer.headers["Location"]
    assert await server.patch(location, 0, b"01234") == 204
    answer = await server.ask("HEAD", location, headers=TUS)
    assert answer.headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in answer.headers
    assert await server.patch(location, 5, b"56789", **{"Upload-Length": "10"}) == 204
    assert await server.content(location) == b"0123456789"


async def test_metadata_is_echoed_exactly_and_used(server: Server) -> None:
    name = b64encode("Übung 1.txt".encode()).decode()
    said = f"filename {name},filetype dGV4dC9wbGFpbg==, flag , odd /w=="

    location = await server.create(3, **{"Upload-Metadata": said})
    answer = await server.ask("HEAD", location, headers=TUS)
    assert answer.headers["Upload-Metadata"] == said
    assert answer.headers["Cache-Control"] == "no-store"
    upload = await server.services.log.upload(upload_in(location))
    assert (upload.path, upload.media_type) == ("Übung 1.txt", "text/plain")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"Upload-Length": "5"}, 412),
        ("POST", {"Tus-Resumable": "0.2.2", "Upload-Length": "5"}, 412),
        ("POST", {**TUS}, 400),
        ("POST", {**TUS, "Upload-Length": "-5"}, 400),
        ("POST", {**TUS, "Upload-Length": "5", "Upload-Defer-Length": "1"}, 400),
        ("POST", {**TUS, "Upload-Length": "5", "Upload-Metadata": "a !"}, 422),
        ("POST", {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename Li4vYQ=="}, 422),
        ("POST", {**TUS, "Upload-Length": "1001"}, 413),
        ("PATCH", {**TUS, "Upload-Offset": "0"}, 415),
        ("PATCH", {**BYTES}, 400),
        ("PATCH", {**BYTES, "Upload-Offset": "zero"}, 400),
        ("PATCH", {**BYTES, "Upload-Offset": "0", "Content-Encoding": "gzip"}, 415),
    ],
)
@pytest.mark.options(max_file_size=1000)
async def test_an_invalid_request_is_refused(
    method: str, headers: dict[str, str], status: int, server: Server
) -> None:
    path = await server.create(5) if method == "PATCH" else "/v1/uploads"
    head = await server.services.log.head()
    async with Sender(server) as sender:
        await sender.begin(method, path, {**headers, "Content-Length": "0"})
        answered, said = await sender.answer()

    assert answered == status
    assert b"Tus-Resumable: 1.0.0" in said
    assert await server.services.log.head() == head


@pytest.mark.parametrize(
    ("method", "header", "first", "second"),
    [
        ("POST", "Upload-Length", "5", "6"),
        ("POST", "Upload-Metadata", "filename YQ==", "filename Yg=="),
        ("POST", "Upload-Concat", "partial", "final;/a"),
        ("PATCH", "Upload-Offset", "0", "1"),
        ("PATCH", "Upload-Checksum", "sha1 AAAA", "md5 AAAA"),
        ("PATCH", "Tus-Resumable", "1.0.0", "0.2.2"),
        ("POST", "X-HTTP-Method-Override", "PATCH", "DELETE"),
    ],
)
async def test_a_repeated_header_with_another_value_is_refused_by_name(
    method: str, header: str, first: str, second: str, server: Server
) -> None:
    required = {"POST": {"Upload-Length": "5"}, "PATCH": {"Upload-Offset": "0"}}[method]

    location = await server.create(5)
    path = "/v1/uploads" if method == "POST" and header != OVERRIDE else location
    head = await server.services.log.head()
    headers = {**BYTES, **required, header: first, header.lower(): second}
    async with Sender(server) as sender:
        await sender.begin(method, path, {**headers, "Content-Length": "0"})
        status, answer = await sender.answer()
        problem = await sender.body(answer)

    assert (status, problem["code"]) == (400, "bad_parameter")
    assert problem["errors"][0]["pointer"] == header
    assert await server.services.log.head() == head


async def test_a_header_repeated_with_the_same_value_is_accepted(server: Server) -> None:
    async with Sender(server) as sender:
        location = await server.create(5)
        twice = {**BYTES, "Upload-Offset": "0", "upload-offset": "0", "Content-Length": "5"}
        await sender.begin("PATCH", location, twice, b"hello")
        assert (await sender.answer())[0] == 204


@pytest.mark.options(min_free_bytes=2**60)
async def test_a_refused_body_is_not_even_asked_for(server: Server) -> None:
    headers = {**BYTES, "Upload-Length": "5000000", "Content-Length": "5000000"}
    async with Sender(server) as sender:
        await sender.begin("POST", "/v1/uploads", {**headers, "Expect": "100-continue"})
        status, said = await sender.answer()

    assert status == 507
    assert b"Connection: close" in said


async def test_a_body_beyond_the_size_of_its_upload_is_not_even_asked_for(server: Server) -> None:
    location = await server.create(10)
    headers = {**BYTES, "Upload-Offset": "0", "Content-Length": "11", "Expect": "100-continue"}
    async with Sender(server) as sender:
        await sender.begin("PATCH", location, headers)
        assert (await sender.answer())[0] == 413


async def test_a_body_that_is_wanted_is_asked_for(server: Server) -> None:
    async with Sender(server) as sender:
        headers = {**BYTES, "Upload-Length": "5", "Content-Length": "5"}
        await sender.begin("POST", "/v1/uploads", {**headers, "Expect": "100-continue"})
        assert (await sender.answer())[0] == 100
        await sender.send(b"hello")
        assert (await sender.answer())[0] == 201


async def test_lost_bytes_are_reported_and_beyond_what_was_recorded_nothing_is_trusted(
    server: Server, tmp_path: Path
) -> None:
    location = await server.create(10)
    assert await server.patch(location, 0, b"01234") == 204
    file = stored_files(tmp_path)[0]
    file.write_bytes(b"01234 never acknowledged")
    assert await server.offset(location) == 5
    file.write_bytes(b"012")
    assert await server.offset(location) == 3
    assert "upload.bytes_lost" in await server.topics(location)
    assert await server.patch(location, 3, b"3456789") == 204
    assert await server.content(location) == b"0123456789"
