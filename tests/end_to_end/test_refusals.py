"""
The limits of a manifest, against a real server with the limits it comes with: what is within them
is taken in one request, what is not is refused with a problem that points at it, and no event.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api_client import Answer
from tests.server_process import Cluster, wait_for

JSON = {"Content-Type": "application/json"}
LIMIT = 10_000
HEX = "0123456789abcdef" * 4


def one(**fields: Any) -> dict[str, Any]:
    """A manifest whose second file is the faulty one."""
    return {"files": [{"path": "fine"}, {"path": "b", **fields}]}


def many(count: int) -> dict[str, Any]:
    return {"files": [{"path": f"folder/{number:05}.bin", "size": 1} for number in range(count)]}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "10,001 files": (many(LIMIT + 1), "/files"),
    "a fault in the last of 10,000": (
        {"files": [*many(LIMIT - 1)["files"], {"path": "z", "size": -1}]},
        f"/files/{LIMIT - 1}/size",
    ),
    "a negative size": (one(size=-1), "/files/1/size"),
    "two dots": (one(path="../b"), "/files/1/path"),
    "two dots inside": (one(path="a/../../b"), "/files/1/path"),
    "two dots at the end": (one(path="a/.."), "/files/1/path"),
    "an escape": (one(path="a\x1b[2Jb"), "/files/1/path"),
    "a DEL": (one(path="a\x7fb"), "/files/1/path"),
    "a C1 control": (one(path="a\x85b"), "/files/1/path"),
    "a line break": (one(path="a\r\nb"), "/files/1/path"),
    "a checksum one digit short": (one(checksum=f"sha256:{HEX[1:]}"), "/files/1/checksum"),
    "a checksum one digit long": (one(checksum=f"sha256:{HEX}0"), "/files/1/checksum"),
    "a checksum with a line break": (one(checksum=f"sha256:{HEX}\n"), "/files/1/checksum"),
    "a checksum in capitals": (one(checksum=f"sha256:{HEX.upper()}"), "/files/1/checksum"),
    "a checksum of another length": (one(checksum=f"sha1:{HEX[:40]}"), "/files/1/checksum"),
    "an empty checksum": (one(checksum=""), "/files/1/checksum"),
    "an unknown field of a file": (one(colour="red"), "/files/1/colour"),
    "an unknown field": ({"files": [], "colour": "red"}, "/colour"),
    "an unknown field of the policy": ({"retry_policy": {"tries": 3}}, "/retry_policy/tries"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_faulty_manifest_is_never_recorded_in_part(cluster: Cluster, what: str) -> None:
    body, pointer = FAULTS[what]
    before = cluster.head()

    answer = start(cluster, json.dumps(body).encode())

    assert (answer.status, answer.json["code"]) == (422, "invalid"), answer
    assert pointer in [error["pointer"] for error in answer.json["errors"]]
    assert answer.json["detail"].startswith(f"{pointer}: ")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert cluster.head() == before


def test_a_body_over_the_limit_is_never_recorded(cluster: Cluster) -> None:
    before = cluster.head()
    body = json.dumps({"label": "x", "metadata": {"a": "b" * 16 * 1024 * 1024}}).encode()

    answer = start(cluster, body)

    assert (answer.status, answer.json["code"]) == (413, "too_large")
    assert str(16 * 1024 * 1024) in answer.json["detail"]
    assert cluster.head() == before


def test_a_list_that_is_too_long_is_never_added_in_part(cluster: Cluster) -> None:
    batch = cluster.admin.post("/v1/batches", {})["id"]
    before = cluster.head()

    for body in (many(LIMIT + 1), many(LIMIT + 1)["files"]):
        answer = cluster.admin.answer(
            "POST", f"/v1/batches/{batch}/uploads", headers=JSON, body=json.dumps(body).encode()
        )
        assert answer.status == 422
        assert [error["pointer"] for error in answer.json["errors"]] == ["/files"]
    assert cluster.head() == before


def test_ten_thousand_files_are_never_too_many(cluster: Cluster) -> None:
    before = cluster.head()
    answer = start(cluster, json.dumps(many(LIMIT)).encode())

    assert answer.status == 201
    assert len(set(answer.json["uploads"])) == LIMIT
    assert cluster.head() - before >= LIMIT + 2
    path = f"/v1/batches/{answer.json['id']}/uploads?limit=1000"
    asked = f"{path}&min_position={answer.json['position']}"
    wait_for(lambda: cluster.admin.answer("GET", asked).status == 200)
    assert len(cluster.admin.get(path)["items"]) == 1000


def start(cluster: Cluster, body: bytes) -> Answer:
    return cluster.admin.answer("POST", "/v1/batches", headers=JSON, body=body)
