"""Seals and exports over HTTP, verified by an auditor without the database."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from application.audit.export import ExportVerification, verify_export
from application.ports.auth import Scope
from infrastructure.audit.sealer import read_public, verify_signature
from infrastructure.postgres.connection import connect
from tests.conftest import Databases
from tests.infrastructure.audit.harness import sealer_in
from tests.interfaces.rest.server import Answer, Server, serving
from tests.support import run, with_database

Lines = list[dict[str, Any]]


async def seal(server: Server, url: str, folder: Path, *, rotate: bool = False) -> None:
    sealer = sealer_in(folder)
    connection = await connect(url, name="test")
    try:
        await (sealer.rotate if rotate else sealer.seal)(connection)
    finally:
        await connection.close()


class Exports:
    """Three batches, of which the first two are sealed, exported in every way.

    The log begins with the event of the key that the requests use.
    """

    def __init__(self, url: str, folder: Path) -> None:
        run(self._take(url, folder))

    async def _take(self, url: str, folder: Path) -> None:
        async with serving(url, folder) as server:
            batch = await server.batch("a", "b")
            await seal(server, url, folder)
            other = await server.key_for(Scope.OPERATOR, owner="other")
            await server.post("/v1/batches", json={"label": "not ours"}, key=other)
            await server.batch("c")
            await seal(server, url, folder)
            last = await server.batch("d")
            seen = {"min_position": last.json["position"]}
            await server.get(f"/v1/batches/{last.json['id']}", params=seen)
            admin = await server.key_for(Scope.ADMIN)
            base = f"/v1/batches/{batch.json['id']}/history/export"
            upload = batch.json["uploads"][0]
            self.whole = await exported(server, "/v1/history/export", key=admin)
            self.later = await exported(server, "/v1/history/export?after=5", key=admin)
            self.owner = await exported(server, "/v1/history/export")
            self.batch = await exported(server, base)
            self.upload = await exported(server, f"/v1/uploads/{upload}/history/export")
            self.foreign = await server.get(base, key=other)
            viewer = await server.key_for(Scope.VIEWER)
            self.viewer = await server.get("/v1/history/export", key=viewer)
            self.seals = (await server.get("/v1/seals", params={"limit": 1})).json
            self.keys = (await server.get("/v1/seals/keys")).json["items"]
            self.batch_id = batch.json["id"]

    @property
    def key(self) -> bytes:
        return read_public(self.keys[0]["pem"].encode())

    def examined(self, lines: Lines) -> ExportVerification:
        encoded = (json.dumps(line).encode() for line in lines)
        return verify_export(encoded, [self.key], verify_signature)


async def exported(server: Server, path: str, **options: Any) -> Lines:
    answer = await server.get(path, **options)
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


@pytest.fixture(scope="module")
def exports(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Taken once; who forges them does it to a copy."""
    name = databases.take()
    made = Exports(with_database(databases.server_url, name), tmp_path_factory.mktemp("exports"))
    databases.drop(name)
    return made


def test_an_export_is_proven_by_the_file_and_the_public_key_alone(exports: Exports) -> None:
    whole = exports.examined(exports.whole)
    assert whole.sound, whole.findings
    assert (whole.whole, whole.events, whole.unsealed) == (True, 14, 4)
    assert (whole.first_seal, whole.last_seal, whole.through) == (1, 2, 10)

    later = exports.examined(exports.later)
    assert later.sound, later.findings
    assert (later.first_seal, later.events) == (2, 9)

    owner = exports.examined(exports.owner)
    assert owner.sound, owner.findings
    assert (owner.whole, owner.events, owner.unsealed) == (False, 10, 3)

    batch = exports.examined(exports.batch)
    assert batch.sound, batch.findings
    assert (batch.of, batch.events) == (f"batch {exports.batch_id}", 4)

    upload = exports.examined(exports.upload)
    assert upload.sound, upload.findings
    assert upload.events == 1


def test_an_export_is_for_those_whose_it_is(exports: Exports) -> None:
    refused: list[Answer] = [exports.foreign, exports.viewer]

    assert [(answer.status, answer.code) for answer in refused] == [
        (404, "not_found"),
        (403, "scope_missing"),
    ]


def test_seals_are_listed_page_by_page_with_the_key_that_signed(exports: Exports) -> None:
    (first,) = exports.seals["items"]

    assert (first["number"], first["through"], exports.seals["next"]) == (1, 5, 1)
    assert [key["first_seal"] for key in exports.keys] == [1]
    assert b64decode(first["key"]) == exports.key


def test_a_key_that_is_not_the_one_that_signed_proves_nothing(exports: Exports) -> None:
    for lines in (exports.whole, exports.batch):
        encoded = (json.dumps(line).encode() for line in lines)
        found = verify_export(encoded, [b"s" * 32], verify_signature)
        assert "key_unknown" in {one.kind for one in found.findings}


Forge = Callable[[Lines], object]


def event(lines: Lines, position: int) -> dict[str, Any]:
    (found,) = (line for line in lines if line.get("position") == position)
    return found


def rewrite(lines: Lines) -> None:
    line = event(lines, 4)
    line["state"] = line["state"].replace("acme", "evil")


def swap(lines: Lines) -> None:
    one, two = event(lines, 3), event(lines, 4)
    for name in ("stream", "version", "topic", "state"):
        one[name], two[name] = two[name], one[name]


def remove(lines: Lines) -> None:
    lines.remove(event(lines, 4))


def drop_seal(lines: Lines) -> None:
    """With everything under it."""
    numbers = [n for n, line in enumerate(lines) if line["type"] == "seal"]
    del lines[numbers[0] : numbers[1]]


def forge_entries(lines: Lines) -> None:
    line = next(line for line in lines if line["type"] == "seal")
    line["entries"] = b64encode(b64decode(line["entries"])[:-40]).decode()


def forge_seal(lines: Lines) -> None:
    next(line for line in lines if line["type"] == "seal")["seal"]["count"] -= 1


@pytest.mark.parametrize(
    ("forge", "kind", "position"),
    [
        (rewrite, "altered", 4),
        (swap, "reordered", 3),
        (remove, "removed", 4),
        (drop_seal, "seal_missing", 6),
        (forge_entries, "list_altered", 1),
        (forge_seal, "seal_altered", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_alteration_of_a_whole_export_is_named(
    exports: Exports, forge: Forge, kind: str, position: int
) -> None:
    forged = deepcopy(exports.whole)
    forge(forged)

    first = exports.examined(forged).findings[0]

    assert (first.kind, first.position) == (kind, position)


def claim_another_place(lines: Lines) -> None:
    event(lines, 4)["index"] = 0


def shorten_path(lines: Lines) -> None:
    event(lines, 4)["path"].pop()


@pytest.mark.parametrize("forge", [rewrite, claim_another_place, shorten_path])
def test_an_alteration_of_the_export_of_a_batch_is_named(exports: Exports, forge: Forge) -> None:
    forged = deepcopy(exports.batch)
    forge(forged)

    (finding,) = exports.examined(forged).findings

    assert (finding.kind, finding.position) == ("altered", 4)


@pytest.mark.parametrize(
    "lines",
    [[], [{"type": "nonsense"}], [{"type": "export", "of": "x", "whole": True, "format": 2}]],
    ids=["empty", "nonsense", "later format"],
)
def test_a_file_that_is_no_export_proves_nothing(lines: Lines) -> None:
    found = verify_export((json.dumps(line).encode() for line in lines), [], verify_signature)

    assert [one.kind for one in found.findings] == ["malformed"]


async def test_a_rotated_key_is_followed_by_an_export_of_one_batch(
    database_url: str, tmp_path: Path
) -> None:
    """The auditor holds the first key only; the seal that named the second comes along."""

    async with serving(database_url, tmp_path) as server:
        await server.batch("a")
        await seal(server, database_url, tmp_path, rotate=True)
        batch = await server.batch("b")
        await seal(server, database_url, tmp_path)
        path = f"/v1/batches/{batch.json['id']}"
        await server.get(path, params={"min_position": batch.json["position"]})
        keys = (await server.get("/v1/seals/keys")).json["items"]
        lines, keys = await exported(server, f"{path}/history/export"), keys
    first, second = (read_public(key["pem"].encode()) for key in keys)

    found = verify_export((json.dumps(line).encode() for line in lines), [first], verify_signature)

    assert found.sound, found.findings
    assert (found.first_seal, found.last_seal, found.events) == (1, 3, 3)
    assert first != second


async def test_an_export_without_events_has_its_first_line_alone(server: Server) -> None:
    key = await server.key_for(Scope.OPERATOR)
    for path in ("/v1/history/export", "/v1/history/export?after=1000"):
        answer = await server.get(path, key=key)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
        (line,) = answer.body.splitlines()
        assert json.loads(line)["format"] == 1
