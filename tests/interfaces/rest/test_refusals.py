"""Invalid requests get a problem that points at the cause, and record nothing."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from uuid import UUID

import pytest

from application.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    StorageFull,
    TooManyConflicts,
    Unavailable,
)
from domain.errors import FieldError, InvalidState, OutOfRange, StaleAttempt, ValidationFailed
from interfaces.common.problems import CONTENT_TYPE, problem_of
from tests.interfaces.last_position import last_position
from tests.interfaces.rest.server import Server

JSON = {"Content-Type": "application/json"}


def one(**fields: Any) -> dict[str, Any]:
    """A manifest whose second file is the faulty one."""
    return {"files": [{"path": "fine"}, {"path": "b", **fields}]}


TOO_MANY = {"files": [{"path": str(n)} for n in range(10_001)]}
FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("10,001 files", TOO_MANY, "/files"),
    ("a negative size", one(size=-1), "/files/1/size"),
    ("a size that is no number", one(size="10"), "/files/1/size"),
    ("a size that is not whole", one(size=1.5), "/files/1/size"),
    ("a size no JSON reader keeps whole", one(size=2**53), "/files/1/size"),
    ("a size of a thousand bits", one(size=2**1000), "/files/1/size"),
    ("a file larger than is allowed", one(size=10**7), "/files/1/size"),
    ("a path out of the batch", one(path="../etc/passwd"), "/files/1/path"),
    ("an absolute path", one(path="/etc/passwd"), "/files/1/path"),
    ("a backslash", one(path="a\\b"), "/files/1/path"),
    ("a control character", one(path="a\x07b"), "/files/1/path"),
    ("a NUL", one(path="a\0b"), "/files/1/path"),
    ("a text that turns its direction", one(path="a\u202egnp.exe"), "/files/1/path"),
    ("an empty path", one(path=""), "/files/1/path"),
    ("a path given twice", one(path="fine"), "/files/1/path"),
    ("no path", {"files": [{"size": 1}]}, "/files/0/path"),
    ("a path that is null", one(path=None), "/files/1/path"),
    ("a checksum too short", one(checksum="sha256:abc"), "/files/1/checksum"),
    ("a media type that is none", one(media_type="image"), "/files/1/media_type"),
    ("a header in a media type", one(media_type="a/b\r\nX: y"), "/files/1/media_type"),
    ("metadata that is no text", one(metadata={"a": 1}), "/files/1/metadata"),
    ("an unknown field of a file", one(sizes=1), "/files/1/sizes"),
    ("an unknown field", {"lable": "x"}, "/lable"),
    ("an unknown field with a slash", {"a/b~c": "x"}, "/a~1b~0c"),
    ("an unknown pipeline", {"pipeline": "magic"}, "/pipeline"),
    ("a label that is null", {"label": None}, "/label"),
    ("a label with a line break", {"label": "a\nb"}, "/label"),
    ("a priority out of range", {"priority": 10**30}, "/priority"),
    ("a share beyond the whole", {"failure_threshold": 1.5}, "/failure_threshold"),
    ("no attempts at all", {"retry_policy": {"attempts": 0}}, "/retry_policy/attempts"),
    ("a notice to no address", {"notify": "file:///etc/passwd"}, "/notify"),
    ("an owner that cannot be printed", {"owner": "a\x00b"}, "/owner"),
]


@pytest.mark.options(max_file_size=10**6)
async def test_a_faulty_batch_is_refused_whole_and_the_fault_pointed_at(server: Server) -> None:
    for what, body, pointer in FAULTS:
        answer = await server.post("/v1/batches", data=json.dumps(body), headers=JSON)

        assert answer.status == 422, (what, answer.body)
        assert pointer in answer.pointers, what
        expect_problem(answer)
    assert await last_position(server.services.log) == 0


def expect_problem(answer: Any) -> None:
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert answer.json["type"] == f"/problems/{answer.code}"
    assert answer.json["status"] == answer.status
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]


async def test_a_refusal_for_an_unknown_pipeline_names_the_known_ones(server: Server) -> None:
    answer = await server.post("/v1/batches", json={"pipeline": "magic"})

    assert "known: default" in answer.json["detail"]


MALFORMED: list[tuple[str, bytes, int, str]] = [
    ("nothing", b"", 400, "byte 0"),
    ("half of it", b'{"label": "x', 400, "byte 12"),
    ("no JSON", b'{"label": tru}', 400, "byte 14"),
    ("something after the end", b"{} x", 400, "byte"),
    ("invalid UTF-8", b'{"label": "a\xff"}', 400, "byte 12"),
    ("half a surrogate pair", b'{"label": "\\ud800"}', 400, "byte"),
    ("a NUL", b"\0", 400, "byte 0"),
    ("NaN", b'{"failure_threshold": NaN}', 400, "byte"),
    ("an infinite number", b'{"failure_threshold": 1e999}', 422, ""),
    ("ten thousand digits", b'{"priority": ' + b"9" * 10_000 + b"}", 422, ""),
    ("a list", b"[]", 422, ""),
    ("null", b"null", 422, ""),
    ("a hundred thousand brackets", b"[" * 100_000, 422, ""),
    ("a deep value", b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 422, ""),
]


async def test_an_invalid_batch_is_never_a_server_error(server: Server) -> None:
    for what, body, status, where in MALFORMED:
        answer = await server.post("/v1/batches", data=body, headers=JSON)

        assert answer.status == status, (what, answer.body)
        assert where in answer.json["detail"], what
        expect_problem(answer)
    assert await last_position(server.services.log) == 0


@pytest.mark.options(max_body=1000)
async def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    declared = await server.post("/v1/batches", data=b" " * 1001, headers=JSON)

    async def chunks() -> Any:
        for _ in range(11):
            yield b" " * 100

    streamed = await server.post("/v1/batches", data=chunks(), headers=JSON)

    for answer in (declared, streamed):
        assert (answer.status, answer.code) == (413, "too_large")
        assert "1000 bytes" in answer.json["detail"]
    assert await last_position(server.services.log) == 0


def keyed(key: str) -> dict[str, Any]:
    return {"json": {}, "headers": {"Idempotency-Key": key}}


GZIPPED = {"data": b"{}", "headers": {"Content-Encoding": "gzip"}}
OTHERS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", "/v1/nothing", {}, 404, "no_such_route"),
    ("PUT", "/v1/batches", {}, 405, "method_not_allowed"),
    ("GET", "/v1/batches/42", {}, 404, "not_found"),
    ("GET", "/v1/batches/00000000000000000000000000000001", {}, 404, "not_found"),
    ("GET", "/v1/batches/00000000-0000-0000-0000-000000000001", {}, 404, "not_found"),
    ("GET", "/v1/batches?sate=open", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?state=done", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?limit=0", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?limit=1&limit=2", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?limit=%F0%9F%92%A9", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?label=%00", {}, 400, "bad_parameter"),
    ("GET", "/v1/batches?label=%ff%fe", {}, 200, ""),
    ("GET", "/v1/history?after=-1", {}, 400, "bad_parameter"),
    ("GET", "/v1/history?after=99999999999999999999", {}, 400, "bad_parameter"),
    ("GET", "/v1/history?format=xml", {}, 400, "bad_parameter"),
    ("GET", f"/v1/batches/{'0' * 8}-0000-0000-0000-{'0' * 12}?at=noon", {}, 400, "bad_parameter"),
    ("GET", f"/v1/batches/{'0' * 8}-0000-0000-0000-{'0' * 12}?at=2026-01-01", {}, 400, ""),
    ("POST", "/v1/batches", {"data": b"x=1"}, 415, "unsupported_media_type"),
    (
        "POST",
        "/v1/batches",
        GZIPPED,
        415,
        "unsupported_media_type",
    ),
    (
        "POST",
        "/v1/batches",
        keyed("a b"),
        400,
        "bad_parameter",
    ),
    (
        "POST",
        "/v1/batches",
        keyed("x" * 256),
        400,
        "bad_parameter",
    ),
]


async def test_every_refusal_is_a_problem(server: Server) -> None:
    for method, path, options, status, code in OTHERS:
        answer = await server.ask(method, path, **options)

        assert answer.status == status, (method, path, answer.body)
        if status >= 400:
            expect_problem(answer)
            assert code in answer.code


async def raw(server: Server, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to what no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        return head, await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.close()
        await writer.wait_closed()


RAW = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
]


async def test_a_request_that_is_not_http_gets_a_problem(server: Server) -> None:
    for request in RAW:
        head, body = await raw(server, request)

        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        assert CONTENT_TYPE.encode() in head
        assert json.loads(body)["code"] == "malformed_request"

    long = b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    head, body = await raw(server, long)
    assert head.startswith((b"HTTP/1.1 414", b"HTTP/1.0 414"))
    assert json.loads(body)["code"] == "uri_too_long"


@pytest.mark.options(max_body=1000)
async def test_a_client_that_asks_first_is_refused_before_it_sends(server: Server) -> None:
    key = server.key.encode()
    request = (
        b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nAuthorization: Bearer " + key + b"\r\n"
        b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
    )
    head, body = await raw(server, request)

    assert head.startswith(b"HTTP/1.1 413")
    assert json.loads(body)["code"] == "too_large"


async def test_a_line_without_an_end_is_refused_while_it_comes_in(server: Server) -> None:
    batch, key = (await server.batch()).json["id"], server.key.encode()
    request = (
        b"POST /v1/batches/" + batch.encode() + b"/uploads HTTP/1.1\r\nHost: x\r\n"
        b"Connection: close\r\nContent-Type: application/x-ndjson\r\n"
        b"Authorization: Bearer " + key + b"\r\nContent-Length: 1000000\r\n\r\n"
    )
    head, body = await raw(server, request + b'{"path": "' + b"a" * 70_000)

    assert head.startswith(b"HTTP/1.1 413")
    assert json.loads(body)["code"] == "too_large"


@pytest.mark.options(max_body=1000)
async def test_lines_beyond_the_limit_of_a_body_are_refused(server: Server) -> None:
    batch = (await server.batch()).json["id"]
    lines = b"".join(b'{"path": "file-%d.txt"}\n' % number for number in range(60))
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await server.post(f"/v1/batches/{batch}/uploads", data=lines, headers=headers)

    assert (answer.status, answer.code) == (413, "too_large")
    assert "1000 bytes" in answer.json["detail"]


async def test_an_unexpected_error_reveals_no_internals(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def broken(self: Any, id: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(server.services.log), "origin", broken)
    id = "00000000-0000-0000-0000-000000000001"
    answer = await server.post(f"/v1/batches/{id}/seal", headers={"X-Request-ID": "my-request"})

    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert answer.json["request_id"] == "my-request"


async def test_a_request_id_that_is_not_sane_is_replaced(server: Server) -> None:
    for given in ("a b", "x" * 200, "<script>", ""):
        answer = await server.get("/healthz", headers={"X-Request-ID": given})

        assert answer.headers["X-Request-ID"] not in (given, "")


# Errors that no request can provoke.


EXPECTED: list[tuple[Exception, int, str]] = [
    (NotFound("x"), 404, "not_found"),
    (InvalidState("x"), 409, "invalid_state"),
    (OutOfRange("x"), 409, "out_of_range"),
    (StaleAttempt("x"), 409, "superseded"),
    (TooManyConflicts("x"), 409, "busy"),
    (Conflict(UUID(int=1), 1, 2), 409, "conflict"),
    (StorageFull("x"), 507, "storage_full"),
    (Unavailable("x"), 503, "unavailable"),
    (OutcomeUnknown("x"), 503, "undetermined"),
    (ValidationFailed(FieldError("files/3/size", "is odd")), 422, "invalid"),
    (KeyError("x"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), EXPECTED)
def test_every_error_has_its_problem(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)

    assert (problem.status, problem.code) == (status, code)


def test_a_document_names_the_first_hundred_faults_and_counts_the_rest() -> None:
    faults = [FieldError(f"files/{index}/path", "is bad") for index in range(250)]

    problem = problem_of(ValidationFailed(*faults))

    assert len(problem.errors) == 100
    assert problem.detail == "/files/0/path: is bad (and 249 more)"


def test_a_transient_problem_has_a_retry_after() -> None:
    for error in (TooManyConflicts("x"), Unavailable("x"), OutcomeUnknown("x")):
        assert problem_of(error).headers["Retry-After"] == "1"
