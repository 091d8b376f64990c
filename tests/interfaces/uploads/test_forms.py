from __future__ import annotations

import asyncio
import json
from pathlib import Path
from shutil import which
from typing import Any
from uuid import UUID

import pytest
from aiohttp import FormData

from domain.ids import batch_id_for, upload_id_for
from tests.interfaces.last_position import last_position
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import OWNER, Server, serving
from tests.support import eventually

LARGE = bytes(range(256)) * 2000
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}


def form_of(files: dict[str, bytes], **fields: str) -> FormData:
    form = FormData(quote_fields=False)  # names as browsers write them
    for name, text in fields.items():
        form.add_field(name, text)
    for name, content in files.items():
        form.add_field("file", content, filename=name, content_type="text/plain")
    return form


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    lines = ["--cut", f"Content-Disposition: form-data; {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


def file_part(name: str, content: bytes) -> bytes:
    return part(f'name="file"; filename="{name}"', content)


END = b"--cut--\r\n"


async def send(server: Server, body: Any, status: int = 201, **headers: str) -> Any:
    answer = await server.ask("POST", "/v1/batches", data=body, headers=headers)
    assert answer.status == status, answer.text
    return answer.json


def outcomes(answer: Any) -> list[tuple[str, str, str | None]]:
    return [(file["path"], file["status"], file.get("code")) for file in answer["files"]]


async def content(server: Server, batch: UUID | str, path: str) -> bytes:
    return await server.content(
        f"/v1/uploads/{upload_id_for(UUID(str(batch)), path, server.services.log.id_secret)}"
    )


async def test_a_form_is_a_whole_batch(server: Server) -> None:
    files = {"a.txt": b"hello", "empty": b"", "film.bin": LARGE, "dir/Übung.txt": b"\r\n--cu\r\n"}

    fields = {"label": "photos", "metadata": '{"from":"a form"}'}
    answer = await send(server, form_of(files, **fields))

    assert outcomes(answer) == [(name, "received", None) for name in files]
    assert answer["state"] == "sealed"
    batch = await server.services.log.batch(UUID(answer["id"]))
    assert (batch.label, batch.sealed) == ("photos", True)
    for name, whole in files.items():
        assert await content(server, answer["id"], name) == whole
    upload = await server.services.log.upload(UUID(answer["files"][0]["upload"]))
    assert upload.media_type == "text/plain"


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
async def test_curl_sends_a_form(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "film.bin").write_bytes(LARGE * 5)
    (tmp_path / 'odd "name".txt').write_bytes(b"quoted")

    async with serving(database_url, tmp_path / "data") as server:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-H", f"Authorization: Bearer {server.key}",
            "-F", "label=from curl", "-F", f"file=@{tmp_path}/film.bin",
            "-F", f'file=@"{tmp_path}/odd \\"name\\".txt"', f"{server.url}/v1/batches",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        answer = json.loads((await process.communicate())[0])

        assert [file["path"] for file in answer["files"]] == ["film.bin", 'odd "name".txt']
        assert await content(server, answer["id"], "film.bin") == LARGE * 5


@pytest.mark.options(max_file_size=1000)
async def test_each_file_is_judged_by_itself(server: Server) -> None:
    body = b"".join(
        [
            file_part("good", b"1"),
            file_part("../escape", b"2"),
            file_part("good", b"3"),
            file_part("", b""),
            file_part("big", b"x" * 2000),
            file_part("huge", LARGE),
            file_part("last", b"4"),
        ]
    )

    answer = await send(server, body + END, 201, **FORM)
    assert outcomes(answer) == [
        ("good", "received", None),
        ("../escape", "rejected", "invalid"),
        ("good", "rejected", "repeated"),
        ("big", "rejected", "too_large"),
        ("huge", "rejected", "too_large"),
        ("last", "received", None),
    ]
    assert await content(server, answer["id"], "good") == b"1"
    topics = await server.topics(f"/{answer['files'][3]['upload']}")
    assert topics == ["upload.rejected"]
    huge = await server.topics(f"/{answer['files'][4]['upload']}")
    assert huge[-1] == "upload.cancelled"


@pytest.mark.options(progress_interval=0.05)
async def test_a_form_cut_short_goes_on_with_its_key(server: Server) -> None:
    parts = [file_part("a", b"1" * 500), file_part("film", LARGE), file_part("c", b"3")]
    body = part('name="label"', b"cut") + b"".join(parts) + END
    key = {"Idempotency-Key": "monday"}

    batch = batch_id_for(OWNER, "monday", server.services.log.id_secret)
    film = upload_id_for(batch, "film", server.services.log.id_secret)
    async with Sender(server) as sender:
        headers = {**FORM, **key, "Content-Length": str(len(body))}
        await sender.begin("POST", "/v1/batches", headers, body[:400_000])
        await sender.leave()

    async def cut() -> bool:
        topics = await server.topics(f"/{film}")
        topics += await server.topics(
            f"/{upload_id_for(batch, 'a', server.services.log.id_secret)}"
        )
        return {"upload.transfer_interrupted", "upload.file_received"} <= set(topics)

    assert await eventually(cut)
    before = await server.services.log.upload(film)
    assert 0 < before.received < len(LARGE)
    assert await content(server, batch, "a") == b"1" * 500
    assert not (await server.services.log.batch(batch)).sealed

    answer = await send(server, body, 200, **FORM, **key)
    assert [status for _, status, _ in outcomes(answer)] == ["known", "received", "received"]
    assert answer["state"] == "sealed"
    assert await content(server, batch, "film") == LARGE
    again = await send(server, body, 200, **FORM, **key)
    assert [status for _, status, _ in outcomes(again)] == ["known"] * 3

    other = part('name="label"', b"another") + b"".join(parts) + END
    assert (await send(server, other, 422, **FORM, **key))["code"] == ("idempotency_key_reused")


async def test_an_invalid_form_is_refused_and_starts_no_batch(server: Server) -> None:
    file = file_part("a", b"1")
    cases: list[tuple[bytes, int, str]] = [
        (END, 422, "a file at least"),
        (part('name="label"', b"x") + END, 422, "a file at least"),
        (part('name="lable"', b"x") + file + END, 422, "no field of this form"),
        (part('name="metadata"', b"[]") + file + END, 422, "JSON object"),
        (part('name="pipeline"', b"x") + file + END, 422, "not known"),
        (part('name="label"', b"x" * 20_000) + file + END, 400, "at most 16384"),
        (part('name="label"', b"\xff") + file + END, 400, "UTF-8"),
        (part('filename="a"', b"x") + END, 400, "with a name"),
        (part('name="f"; filename=""', b"x") + END, 400, "must have a name"),
        (b"--cut\r\n" + b"X: y\r\n" * 20 + b"\r\n\r\n" + END, 400, "headers of a part"),
        (b"--cut\r\nX: " + b"y" * 9000 + b"\r\n\r\n" + END, 400, "at most 8192"),
        (b"--cut trailing\r\n" + END, 400, "behind it"),
        (b"no form at all", 400, "ends too soon"),
        (part('name="f"; filename="a"', b"x", "Content-Transfer-Encoding: base64"), 400, "encod"),
    ]

    for body, status, message in cases:
        problem = await send(server, body, status, **FORM)
        assert message in problem["detail"], (body[:60], problem)
    unnamed = {"Content-Type": "multipart/form-data"}
    assert "boundary" in (await send(server, END, 400, **unnamed))["detail"]
    assert await last_position(server.services.log) == 0


async def test_a_header_of_a_form_without_an_end_is_refused_while_it_comes_in(
    server: Server,
) -> None:
    async with Sender(server) as sender:
        headers = {**FORM, "Content-Length": "1000000"}
        await sender.begin("POST", "/v1/batches", headers, b"--cut\r\nX: " + b"y" * 10_000)
        status, head = await sender.answer()
        assert (status, (await sender.body(head))["code"]) == (400, "malformed_body")


async def test_bytes_behind_the_end_of_a_form_are_bounded(server: Server) -> None:
    body = file_part("a", b"1") + END
    assert "behind the end" in (await send(server, body + bytes(70_000), 400, **FORM))["detail"]
    await send(server, body + bytes(60_000), 201, **FORM)


@pytest.mark.options(max_manifest_files=1)
async def test_a_form_refused_after_its_first_file_leaves_the_batch_open(server: Server) -> None:
    late = file_part("a", b"1") + part('name="label"', b"late") + END
    second = file_part("a", b"1") + file_part("b", b"2") + END
    broken = file_part("a", b"1") + b"--cut"
    for body, status in ((late, 422), (broken, 400), (second, 413)):
        answer = await server.ask("POST", "/v1/batches", data=body, headers=FORM)
        problem = answer.json
        assert (answer.status, problem["detail"].endswith("to go on")) == (status, True)
        batch = UUID(answer.headers["Location"].rpartition("/")[2])
        assert await content(server, batch, "a") == b"1"
        assert not (await server.services.log.batch(batch)).sealed
    many = file_part("a", b"1") + file_part("b", b"2") + END
    assert "at most 1 files" in (await send(server, many, 413, **FORM))["detail"]
