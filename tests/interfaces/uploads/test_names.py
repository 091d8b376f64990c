"""File names are accepted unchanged or refused with a reason, equally in every upload protocol."""

from __future__ import annotations

import io
import tarfile
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from unicodedata import normalize
from urllib.parse import quote
from uuid import UUID

import aiohttp
import pytest

from application.commands import RegisterUpload
from application.handlers.execute import CommandContext
from application.handlers.uploads import register_upload
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from infrastructure.read_model.projector import catch_up
from tests.interfaces.uploads.server import BYTES, OWNER, TUS, Server, upload_in

BODY = b"hello"


class Answered(NamedTuple):
    """Result for a file: its path, or the reason for its refusal."""

    path: str | None
    reason: str = ""


async def _alone(server: Server, answer: aiohttp.ClientResponse) -> Answered:
    """Return the result from a protocol that sends one file."""
    if answer.status == 201:
        upload = await server.services.log.upload(upload_in(answer.headers["Location"]))
        return Answered(upload.path)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["code"]) == (422, "invalid"), problem
    return Answered(None, problem["detail"])


async def _listed(answer: aiohttp.ClientResponse) -> Answered:
    """Return the result of the last file in a response that lists files."""
    body = await answer.json(content_type=None)
    if answer.status >= 400:
        return Answered(None, body["detail"])
    file = body["files"][-1]
    if file["status"] == "rejected":
        return Answered(None, file["message"])
    return Answered(file["path"])


async def by_tus(server: Server, batch: UUID, name: bytes) -> Answered:
    headers = {**TUS, "Upload-Length": "5"}
    headers["Upload-Metadata"] = f"filename {b64encode(name).decode()}"
    path = f"/v1/batches/{batch}/uploads"
    async with server.client.post(path, headers=headers) as answer:
        return await _alone(server, answer)


async def by_tus_with_bytes(server: Server, batch: UUID, name: bytes) -> Answered:
    headers = {**BYTES, "Upload-Length": "5"}
    headers["Upload-Metadata"] = f"relativePath {b64encode(b'null').decode()},"
    headers["Upload-Metadata"] += f"name {b64encode(name).decode()}"
    path = f"/v1/batches/{batch}/uploads/"
    async with server.client.post(path, headers=headers, data=BODY) as answer:
        return await _alone(server, answer)


async def by_query(server: Server, batch: UUID, name: bytes) -> Answered:
    from yarl import URL

    url = f"{server.url}/v1/batches/{batch}/uploads?path={quote(name, safe='')}"
    async with server.client.post(
        URL(url, encoded=True), headers={"Upload-Complete": "?1"}, data=BODY
    ) as answer:
        return await _alone(server, answer)


async def by_disposition(server: Server, batch: UUID, name: bytes) -> Answered:
    headers = {"Upload-Complete": "?1"}
    headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    path = f"/v1/batches/{batch}/uploads"
    async with server.client.post(path, headers=headers, data=BODY) as answer:
        return await _alone(server, answer)


async def by_tar(server: Server, batch: UUID, name: bytes) -> Answered:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        member.size = len(BODY)
        tar.addfile(member, io.BytesIO(BODY))
    headers = {"Content-Type": "application/x-tar"}
    path = f"/v1/batches/{batch}/uploads"
    async with server.client.post(path, headers=headers, data=archive.getvalue()) as answer:
        return await _listed(answer)


async def by_list(server: Server, batch: UUID, name: bytes) -> Answered:
    file = {"path": name.decode(), "size": 5}
    async with server.client.post(f"/v1/batches/{batch}/uploads", json=[file]) as answer:
        return await _listed(answer)


def _form(*dispositions: bytes) -> bytes:
    parts = [
        b"--b\r\nContent-Disposition: form-data; name=file; %b\r\n\r\nhello\r\n" % disposition
        for disposition in dispositions
    ]
    return b"".join(parts) + b"--b--\r\n"


async def _sent_form(server: Server, body: bytes, agent: str = "curl/8") -> list[dict[str, Any]]:
    headers = {"Content-Type": "multipart/form-data; boundary=b", "User-Agent": agent}
    answer = await server.ask("POST", "/v1/batches", headers=headers, data=body)
    assert answer.status == 201, answer.text
    files: list[dict[str, Any]] = answer.json["files"]
    return files


async def by_form(server: Server, batch: UUID, name: bytes) -> Answered:
    """Upload with a valid second file, into a new batch each time."""
    body = _form(b'filename="well.txt"', b'filename="%b"' % name)
    file = (await _sent_form(server, body))[-1]
    if file["status"] == "rejected":
        return Answered(None, file["message"])
    return Answered(file["path"])


Way = Callable[[Server, UUID, bytes], Awaitable[Answered]]
WAYS: tuple[Way, ...] = (
    by_tus,
    by_tus_with_bytes,
    by_query,
    by_disposition,
    by_tar,
    by_list,
    by_form,
)

REFUSED = {
    "report\u202egnp.exe": "control characters (U+202E is one)",
    "\u202aC-photo.jpg": "control characters (U+202A is one)",
    "a\u2066b.txt": "control characters (U+2066 is one)",
    "a\u2028b.txt": "control characters (U+2028 is one)",
    "a\x7fb.txt": "control characters (U+007F is one)",
    "写" * 256: "names of at most 255 characters",
    "😀" * 128: "names of at most 255 characters",
    "/".join(["写" * 200] * 4): "at most 2048 bytes",
    "a/../b": "without empty, . or .. segments",
}
TAKEN = (
    "写" * 255,
    "😀" * 127 + "x",
    "é" * 255,
    "/".join(["写" * 200] * 3),
    "شعار\u200f.png",
    "👩\u200d👩\u200d👧.jpg",
    "می\u200cخواهم.txt",
    "100%25 sure.txt",
    "a 'quoted' + plus & more;.txt",
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
async def test_a_name_is_taken_or_refused_whichever_way_it_comes(way: Way, server: Server) -> None:
    batch = await server.start_batch()
    for name in TAKEN:
        if way is by_disposition and "/" in name:
            continue  # the last segment is all that this header may say
        assert await way(server, batch, name.encode()) == Answered(name), name
    head = await server.services.log.head()
    for name, reason in REFUSED.items():
        if way is by_disposition and "/" in name:
            continue
        path, detail = await way(server, batch, name.encode())
        assert (path, reason in detail) == (None, True), (name, detail)
        assert await way(server, batch, name.encode()) == (path, detail)
    if way in (by_tus, by_tus_with_bytes, by_query, by_disposition):
        assert await server.services.log.head() == head


FIELDS = {
    by_tus: "Upload-Metadata/filename",
    by_tus_with_bytes: "Upload-Metadata/name",
    by_query: "path",
    by_disposition: "Content-Disposition",
    by_tar: "path",
    by_form: "path",
}


@pytest.mark.parametrize("way", FIELDS, ids=lambda way: str(way.__name__))
async def test_a_name_that_is_no_utf_8_is_refused_and_never_another_name(
    way: Way, database_url: str, server: Server
) -> None:
    batch = await server.start_batch()
    for name in (b"caf\xe9.txt", b"\xff\xfe.bin"):
        for _ in range(2):  # sent again, it is refused again
            path, detail = await way(server, batch, name)
            assert path is None
            assert FIELDS[way] in detail, detail
    known = await server.services.log.batch(batch)
    await catch_up(database_url, server.services.log)
    rows = await server.services.queries.uploads(known.id, owner=OWNER)
    assert {row.state for row in rows.items} <= {"rejected"}


async def test_two_spellings_of_a_name_are_one_upload_of_a_batch(
    database_url: str, server: Server
) -> None:
    composed, decomposed = "caf\u00e9/\u00fc.txt", normalize("NFD", "café/ü.txt")

    for first, second in ((composed, decomposed), (decomposed, composed)):
        for way in (by_tus, by_tus_with_bytes, by_query, by_tar, by_list):
            batch = await server.start_batch()
            assert (await way(server, batch, first.encode())).path == first
            for again in (by_tus, by_query, by_tar, by_list):
                await again(server, batch, second.encode())
            await catch_up(database_url, server.services.log)
            rows = await server.services.queries.uploads(batch, owner=OWNER)
            assert [row.path for row in rows.items] == [first]  # as it was spelled first
    both = [{"path": composed}, {"path": decomposed}]
    answer = await server.ask("POST", "/v1/batches", json={"files": both})
    assert answer.status == 422
    assert "is the same as that of files/0" in answer.json["detail"]


async def test_an_upload_that_an_earlier_version_registered_is_found_by_its_spelling(
    database_url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed = normalize("NFD", "Übung.txt")

    for way in (by_tus, by_tus_with_bytes, by_query, by_tar, by_list):
        batch = await server.start_batch()
        with monkeypatch.context() as before:  # ids as version 0.1 derived them
            before.setattr("domain.ids.normalize", lambda form, path: path)
            upload_id_for.cache_clear()
            command = RegisterUpload(batch=batch, file=FileDeclaration(path=decomposed, size=5))
            context = CommandContext("key:test", server.services.now())
            registered = await register_upload(server.services.log, command, context)
        upload_id_for.cache_clear()
        secret = server.services.log.id_secret
        assert upload_id_for(batch, decomposed, secret) != registered.upload.id

        await way(server, batch, decomposed.encode())
        await catch_up(database_url, server.services.log)
        rows = await server.services.queries.uploads(batch, owner=OWNER)
        assert [row.id for row in rows.items] == [registered.upload.id]


AIOHTTP = "Python/3.11 aiohttp/3.14.5"


@pytest.mark.parametrize(
    ("disposition", "agent", "path"),
    [
        # Browsers, curl 7.81 and newer, requests, httpx: WHATWG.
        ('filename="My%20Photo.jpg"', "Mozilla/5.0", "My%20Photo.jpg"),
        ('filename="say %22hi%22.txt"', "curl/8", 'say "hi".txt'),
        ('filename="é 100%.txt"', "python-requests/2.32", "é 100%.txt"),
        # curl before 7.81, and httpx: a backslash.
        (r'filename="say \"hi\".txt"', "curl/7.68", 'say "hi".txt'),
        # aiohttp is recognised by its User-Agent alone.
        ('filename="My%20Photo%20%C3%A9.jpg"', AIOHTTP, "My Photo é.jpg"),
        ('filename="dir%2Fa.jpg"', AIOHTTP, "dir/a.jpg"),
        ('filename="My%20Photo é.jpg"', AIOHTTP, "My%20Photo é.jpg"),  # quote_fields=False
        # RFC 8187.
        ("filename=\"x.jpg\"; filename*=UTF-8''%C3%A9.jpg", "any", "é.jpg"),
        ("filename*=utf-8'en'%e2%82%ac%20rates.txt; filename=\"x.jpg\"", "any", "€ rates.txt"),
        ("filename*=UTF-8''only.jpg", "any", "only.jpg"),
        ("filename*=iso-8859-1''caf%E9.txt", "any", "café.txt"),
        ("filename*=koi8-r''%C1.txt; filename=\"plain.txt\"", "any", "plain.txt"),
        ("filename*=UTF-8''; filename=\"plain.txt\"", "any", "plain.txt"),
        # Parameters that are nothing to us, and a semicolon too many.
        ('filename="a.txt"; creation-date="Mon; \\"1\\""; size=3;', "any", "a.txt"),
    ],
)
async def test_a_form_names_its_files_as_its_client_means_them(
    disposition: str, agent: str, path: str, server: Server
) -> None:
    (file,) = await _sent_form(server, _form(disposition.encode()), agent)
    assert (file["status"], file["path"]) == ("received", path)


UNREADABLE = [
    "filename=My Photo.jpg",
    'filename="a"b.jpg"',
    'filename="a.jpg"; filename="b.jpg"',
    'filename="a.jpg',
    'filename="a.jpg" b.jpg',
    'filename="a.jpg"\r\nContent-Disposition: form-data; name="file"; filename="b.jpg"',
]


@pytest.mark.parametrize("disposition", UNREADABLE)
async def test_a_form_whose_names_cannot_be_read_is_refused_and_no_other_name_is_made_of_them(
    disposition: str, server: Server
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = _form(disposition.encode())
    answer = await server.ask("POST", "/v1/batches", data=body, headers=headers)
    problem = answer.json
    assert answer.status == 400, problem
    assert "Content-Disposition" in problem["detail"] or "twice" in problem["detail"]


@pytest.mark.parametrize("disposition", UNREADABLE[:5])
async def test_a_disposition_that_cannot_be_read_is_refused_by_the_ietf_protocol(
    disposition: str, server: Server
) -> None:
    headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "8"}
    headers["Content-Disposition"] = f"attachment; {disposition}"
    answer = await server.ask("POST", "/v1/uploads", data=b"x", headers=headers)
    problem = answer.json
    assert answer.status == 422, problem
    assert problem["errors"][0]["pointer"] == "/Content-Disposition"


@pytest.mark.parametrize("disposition", ['filename="a%0D%0Ab.txt"', "filename*=UTF-8''caf%E9.txt"])
async def test_a_form_with_a_name_that_cannot_be_is_refused_file_by_file(
    disposition: str, server: Server
) -> None:
    body = _form(b'filename="well.txt"', disposition.encode())
    well, ill = await _sent_form(server, body)
    assert (well["status"], ill["status"]) == ("received", "rejected")
    assert ill["message"].startswith("path must")


async def test_a_form_of_aiohttp_keeps_the_name_of_its_file(server: Server) -> None:
    """The client with its defaults; one file whose name has what others encode, too."""

    form = aiohttp.FormData()
    names = ["My Photo é 100%.jpg", "a/b%20c.txt", 'say "hi".txt']
    for name in names:
        form.add_field("file", BODY, filename=name)
    answer = await server.ask("POST", "/v1/batches", data=form)
    assert [file["path"] for file in answer.json["files"]] == names


async def test_a_long_name_is_accepted_with_all_metadata_of_uppy(server: Server) -> None:
    """The header is stored beside the pairs if an empty value makes it differ from them."""
    name, folder = "写" * 251 + ".txt", "画" * 200

    def pair(key: str, value: str) -> str:
        return f"{key} {b64encode(value.encode()).decode()}"

    pairs = {"relativePath": f"/{folder}/{name}", "name": name, "filename": name}
    said = ",".join([pair("caption", ""), *(pair(*item) for item in pairs.items())])
    headers = {**TUS, "Upload-Length": "5", "Upload-Metadata": said}
    answer = await server.ask("POST", "/files/", headers=headers)
    assert answer.status == 201, answer.text
    location = answer.headers["Location"]
    upload = await server.services.log.upload(upload_in(location))
    assert upload.path == f"{folder}/{name}"
    answer = await server.ask("HEAD", location, headers=TUS)
    assert answer.headers["Upload-Metadata"] == said

    headers["Upload-Metadata"] = pair("a", "x" * 20_000)
    answer = await server.ask("POST", "/files/", headers=headers)
    assert answer.status == 400
    assert "at most 16384 bytes" in answer.json["detail"]
