from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from domain.ids import upload_id_for
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import Server, serving, stored_files
from tests.support import eventually

TAR = {"Content-Type": "application/x-tar"}
LARGE = bytes(range(256)) * 2000


def tar_of(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


async def open_batch(server: Server, **options: Any) -> UUID:
    answer = await server.ask("POST", "/v1/batches", json=options)
    assert answer.status == 201, answer.text
    return UUID(answer.json["id"])


async def send(server: Server, batch: UUID, body: Any, status: int = 200) -> Any:
    path = f"/v1/batches/{batch}/uploads"
    answer = await server.ask("POST", path, data=body, headers=TAR)
    assert answer.status == status, answer.text
    return answer.json


def outcomes(answer: Any) -> list[tuple[str, str, str | None]]:
    return [(file["path"], file["status"], file.get("code")) for file in answer["files"]]


async def content(server: Server, batch: UUID, path: str) -> bytes:
    return await server.content(
        f"/v1/uploads/{upload_id_for(batch, path, server.services.log.id_secret)}"
    )


async def test_every_file_of_a_bundle_is_an_upload_of_its_own(server: Server) -> None:
    files = {
        "a.txt": b"hello",
        "empty": b"",
        "photos/Übung 1.jpg": b"x" * 700,
        "n" * 100 + "/" + "m" * 120: b"long",
        "film.bin": LARGE,
    }

    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        batch = await open_batch(server)
        answer = await send(server, batch, tar_of(files, format))

        assert outcomes(answer) == [(name, "received", None) for name in files]
        assert (answer["received"], answer["known"], answer["rejected"]) == (5, 0, 0)
        for name, whole in files.items():
            assert await content(server, batch, name) == whole
        events = await server.topics(
            f"/{upload_id_for(batch, 'a.txt', server.services.log.id_secret)}"
        )
        assert events == ["upload.registered", "upload.file_received"]


async def test_members_are_appended_in_groups_that_the_batch_counts(server: Server) -> None:
    batch = await open_batch(server)
    await send(server, batch, tar_of({f"{n}": b"x" for n in range(300)}))

    events = [one.event for one in await server.services.log.stream(batch)]
    counts = [getattr(event, "count", None) for event in events]
    assert counts == [None, 250, 50]


async def test_each_member_is_judged_by_itself_and_refusals_are_on_record(
    database_url: str, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:

        def add(name: str, content: bytes = b"", type: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), type, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))

        add("./good", b"1")
        add("folder", type=tarfile.DIRTYPE)
        add("../escape", b"2")
        add("/absolute", b"3")
        add("link", type=tarfile.SYMTYPE)
        add("hard", type=tarfile.LNKTYPE)
        add("device", type=tarfile.CHRTYPE)
        add("good", b"another")
        add("big", b"x" * 2000)
        add("last", b"4")

    async with serving(database_url, tmp_path, max_file_size=1000) as server:
        batch = await open_batch(server)
        answer = await send(server, batch, archive.getvalue())

        assert outcomes(answer) == [
            ("good", "received", None),
            ("../escape", "rejected", "invalid"),
            ("/absolute", "rejected", "invalid"),
            ("link", "rejected", "not_a_file"),
            ("hard", "rejected", "not_a_file"),
            ("device", "rejected", "not_a_file"),
            ("good", "rejected", "repeated"),
            ("big", "rejected", "too_large"),
            ("last", "received", None),
        ]
        assert await content(server, batch, "good") == b"1"
        for file in answer["files"]:
            topics = await server.topics(f"/{file['upload']}")
            refused = file["status"] == "rejected"
            assert topics[0] == ("upload.rejected" if refused else "upload.registered")


async def test_a_bundle_sent_again_stores_nothing_twice(server: Server, tmp_path: Path) -> None:
    bundle = tar_of({"a": b"1", "b": b"22", "film": LARGE})

    batch = await open_batch(server)
    await send(server, batch, bundle)
    head, stored = await server.services.log.head(), len(stored_files(tmp_path))
    answer = await send(server, batch, bundle)

    assert [status for _, status, _ in outcomes(answer)] == ["known"] * 3
    assert await server.services.log.head() == head
    assert len(stored_files(tmp_path)) == stored


async def test_files_declared_or_begun_before_are_completed(server: Server) -> None:
    files = [{"path": "a", "size": 3}, {"path": "b", "size": 4}, {"path": "c", "size": 9}]
    batch = await open_batch(server, files=[*files, {"path": "d"}], seal=True)
    assert (
        await server.patch(
            f"/v1/uploads/{upload_id_for(batch, 'b', server.services.log.id_secret)}", 0, b"wh"
        )
        == 204
    )
    bundle = tar_of({"a": b"abc", "b": b"what", "c": b"other", "d": b"dd", "new": b"n"})
    answer = await send(server, batch, bundle)

    assert outcomes(answer) == [
        ("a", "received", None),
        ("b", "received", None),
        ("c", "rejected", "other_size"),
        ("d", "received", None),
        ("new", "rejected", "invalid_state"),
    ]
    assert await content(server, batch, "a") == b"abc"
    assert await content(server, batch, "b") == b"what"


async def test_complete_members_are_kept_when_the_connection_breaks(server: Server) -> None:
    bundle = tar_of({"a": b"1" * 600, "b": b"2" * 600, "c": b"3" * 600})

    batch = await open_batch(server)
    async with Sender(server) as sender:
        headers = {**TAR, "Content-Length": str(len(bundle))}
        path = f"/v1/batches/{batch}/uploads"
        await sender.begin("POST", path, headers, bundle[: 2 * 1536 + 512 + 100])
        sender.reset()
    ids = [upload_id_for(batch, name, server.services.log.id_secret) for name in "abc"]

    async def kept() -> bool:
        return set(await server.services.log.versions(ids)) == set(ids[:2])

    assert await eventually(kept)
    answer = await send(server, batch, bundle)
    assert [status for _, status, _ in outcomes(answer)] == ["known", "known", "received"]


async def test_an_invalid_archive_is_refused_with_the_reason(server: Server) -> None:
    whole = tar_of({"a": b"1", "b": b"2"})
    cases = {
        b"": "ends too soon",
        b"no archive, but long enough for one block" * 30: "no tar archive",
        whole[:1024]: "ends too soon",
        whole[:1536]: "ends too soon",
        whole + whole: "more after the end",
        whole[:1024] + b"\xff" * 512: "no tar archive",
    }

    for body, message in cases.items():
        problem = await send(server, await open_batch(server), body, 400)
        assert message in problem["detail"], body[:40]
        assert problem["code"] == "malformed_body"

    batch = await open_batch(server)
    problem = await send(server, batch, whole[:1024], 400)
    assert "1 files were taken" in problem["detail"]
    assert await content(server, batch, "a") == b"1"


@pytest.mark.parametrize(
    ("fields", "count"),
    [({"comment": "x" * 70_000}, 1), ({"comment": "x"}, 17)],
    ids=["one that is too large", "too many"],
)
async def test_extended_headers_of_a_member_are_bounded(
    server: Server, fields: dict[str, str], count: int
) -> None:
    member = tarfile.TarInfo("a")
    member.pax_headers = fields
    headers = member.tobuf(tarfile.PAX_FORMAT)
    extended, own = headers[: -tarfile.BLOCKSIZE], headers[-tarfile.BLOCKSIZE :]

    problem = await send(server, await open_batch(server), extended * count + own, 400)

    assert "extended header" in problem["detail"]


async def test_a_sparse_file_is_refused_and_its_map_is_not_stored_for_it(server: Server) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("sparse")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        member.size = 5
        tar.addfile(member, io.BytesIO(b"1\n0\n5"))

    answer = await send(server, await open_batch(server), archive.getvalue())

    assert outcomes(answer) == [("sparse", "rejected", "not_a_file")]


@pytest.mark.options(max_manifest_files=2)
async def test_a_request_has_so_many_files_at_most(server: Server) -> None:
    batch = await open_batch(server)
    problem = await send(server, batch, tar_of({"a": b"1", "b": b"2", "c": b"3"}), 413)
    assert "2 files were taken" in problem["detail"]


async def test_another_owner_has_no_such_batch(server: Server) -> None:
    await send(server, server.services.new_id(), tar_of({"a": b"1"}), 404)
