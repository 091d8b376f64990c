from __future__ import annotations

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application.commands import BatchCommand
from application.handlers.execute import CommandContext, execute
from domain.access.events import AccessEvent
from domain.batch.aggregate import Batch
from domain.errors import ValidationFailed
from domain.file import FileDeclaration, validate_declaration
from interfaces.uploads import tus_protocol
from tests.interfaces.uploads.server import (
    BYTES,
    TUS,
    Server,
    filename,
    stored_files,
    upload_in,
)

LARGE = 300_000  # more than is held in memory


async def _send(server: Server, path: str, size: int, body: bytes, name: str) -> tuple[int, str]:
    headers = {**BYTES, **filename(name), "Upload-Length": str(size)}
    answer = await server.ask("POST", path, headers=headers, data=body)
    return answer.status, answer.headers.get("Location", "")


@pytest.mark.parametrize("size", [0, 1, 5000, LARGE])
async def test_a_file_may_come_whole_with_its_creation(size: int, server: Server) -> None:
    body = b"\x07" * size
    status, location = await _send(server, "/v1/uploads", size, body, "a.bin")

    assert status == 201
    assert await server.offset(location) == size
    assert await server.content(location) == body
    assert (await server.topics(location))[-1] == "upload.file_received"


async def test_a_small_file_costs_one_append(server: Server) -> None:
    _, location = await _send(server, "/v1/uploads", 5, b"hello", "a.txt")
    upload = await server.services.log.upload(upload_in(location))
    found = await server.services.log.read(0, limit=100)
    events = [one for one in found if not isinstance(one.event, AccessEvent)]

    assert [event.event.at for event in events] == [events[0].event.at] * len(events)
    assert upload.path == "a.txt"


async def test_the_rest_of_a_file_may_follow_its_creation(server: Server) -> None:
    _, location = await _send(server, "/v1/uploads", 10, b"01234", "a.txt")
    assert await server.offset(location) == 5
    assert await server.patch(location, 5, b"56789") == 204
    assert await server.content(location) == b"0123456789"


@pytest.mark.parametrize("size", [5, LARGE])
async def test_creating_a_declared_path_finds_the_upload_that_is_there(
    size: int, server: Server, tmp_path: Path
) -> None:
    batch = await server.start_batch(FileDeclaration(path="a", size=size))
    path, body = f"/v1/batches/{batch}/uploads", b"\x01" * size
    status, location = await _send(server, path, size, b"", "a")
    assert (status, await server.offset(location)) == (201, 0)
    assert await _send(server, path, size, body, "a") == (201, location)
    assert await _send(server, path, size, body, "a") == (201, location)

    assert await server.content(location) == body
    assert (await server.topics(location)).count("upload.file_received") == 1
    assert (await _send(server, path, size + 1, body + b"x", "a"))[0] == 403
    assert len(stored_files(tmp_path)) == 1


async def test_a_declaration_without_a_size_takes_that_of_the_creation(server: Server) -> None:
    batch = await server.start_batch(FileDeclaration(path="a"))
    _, location = await _send(server, f"/v1/batches/{batch}/uploads", 10, b"", "a")
    assert await server.patch(location, 0, b"0123456789") == 204
    assert await server.content(location) == b"0123456789"


async def test_senders_of_the_same_path_at_once_leave_one_file_and_no_orphan(
    server: Server, tmp_path: Path
) -> None:
    path = f"/v1/batches/{await server.start_batch()}/uploads"
    bodies = [bytes([n]) * 1000 for n in range(8)]
    answers = await asyncio.gather(*(_send(server, path, 1000, b, "a") for b in bodies))

    locations = {location for _, location in answers if location}
    assert len(locations) == 1
    assert await server.content(locations.pop()) in bodies
    assert len(stored_files(tmp_path)) == 1


async def test_nothing_joins_a_sealed_batch_and_nothing_of_it_is_kept(
    server: Server, tmp_path: Path
) -> None:
    batch = await server.start_batch()
    context = CommandContext("key:test", server.services.now())
    await execute(server.services.log, BatchCommand(batch, Batch.seal), context)
    path = f"/v1/batches/{batch}/uploads"

    assert (await _send(server, path, 5, b"hello", "a"))[0] == 403
    assert stored_files(tmp_path) == []


async def test_a_batch_of_another_owner_does_not_exist(server: Server) -> None:
    batch = await server.start_batch(owner="rival")
    path = f"/v1/batches/{batch}/uploads"
    assert (await _send(server, path, 5, b"hello", "a"))[0] == 404
    headers = {**TUS, "Upload-Length": "5"}
    assert (await server.ask("POST", "/v1/batches/none/uploads", headers=headers)).status == 404


# Metadata.


HEADERS = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80),
    st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")),
    st.lists(
        st.tuples(
            st.sampled_from(["filename", "relativePath", "name", "type", "checksum", "tus-concat"]),
            st.binary(max_size=20),
        ),
        max_size=5,
    ).map(lambda pairs: ",".join(f"{key} {b64encode(raw).decode()}" for key, raw in pairs)),
)


@given(HEADERS)
def test_any_header_is_refused_or_echoed_exactly(header: str) -> None:
    try:
        pairs = tus_protocol.parse(header)
        file = tus_protocol.declaration(pairs, None, default=lambda: "file")
    except ValidationFailed:
        return
    assert tus_protocol.format(pairs) == header or not header.strip()
    assert tus_protocol.CONCAT_METADATA_KEY not in pairs
    for fault in validate_declaration(file):  # no other error is raised
        assert fault.field in ("path", "metadata", "checksum")
