"""
The fault: any user could listen to any upload whose id was known, files lay open for a year under
their address, and production ran with the secret that the source code named.

Here everything belongs to an owner, for others it does not exist, and there is no secret but those
that were made for this installation.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.api_client import OCTETS, Client
from tests.end_to_end.conftest import MakeCluster
from tests.interfaces.feed.ws_client import FeedClient
from tests.server_process import Cluster, wait_for

SECRET = b"nobody else may read this"
TUS = {"Tus-Resumable": "1.0.0"}
JSON = {"Content-Type": "application/json"}
PATCH = {**TUS, "Content-Type": OCTETS, "Upload-Offset": "0"}
CREATE = {**TUS, "Upload-Length": "1"}


class Two(NamedTuple):
    """Two owners; `acme` has a batch with an upload that is done and one that waits."""

    acme: Client
    rival: Client
    batch: str
    done: str
    waiting: str


@pytest.fixture(scope="module")
def two(cluster: Cluster) -> Two:
    acme, rival = cluster.key_for("acme"), cluster.key_for("rival")
    batch = acme.post("/v1/batches", {"label": "private"})["id"]
    done = acme.send(batch, "secret.txt", SECRET)
    waiting = acme.create(batch, "waiting.txt", 10).rpartition("/")[2]
    wait_for(lambda: acme.state(done) == "completed")
    return Two(acme, rival, batch, done, waiting)


ROUTES: list[tuple[str, str, dict[str, str], bytes | None]] = [
    ("GET", "/v1/batches/{batch}", {}, None),
    ("GET", "/v1/batches/{batch}?at=1", {}, None),
    ("GET", "/v1/batches/{batch}/uploads", {}, None),
    ("GET", "/v1/batches/{batch}/history", {}, None),
    ("POST", "/v1/batches/{batch}/seal", {}, None),
    ("POST", "/v1/batches/{batch}/pause", {}, None),
    ("POST", "/v1/batches/{batch}/resume", {}, None),
    ("POST", "/v1/batches/{batch}/cancel", {}, None),
    ("POST", "/v1/batches/{batch}/uploads", JSON, b'[{"path":"mine.txt"}]'),
    ("POST", "/v1/batches/{batch}/uploads", CREATE, None),
    ("GET", "/v1/uploads/{done}", {}, None),
    ("GET", "/v1/uploads/{done}?at=2026-11-21T00:00:00Z", {}, None),
    ("GET", "/v1/uploads/{done}/attempts", {}, None),
    ("GET", "/v1/uploads/{done}/history", {}, None),
    ("GET", "/v1/uploads/{done}/content", {}, None),
    ("GET", "/v1/uploads/{done}/content", {"Range": "bytes=0-3"}, None),
    ("GET", "/v1/uploads/{done}/content", {"Range": "bytes=9999-"}, None),
    ("HEAD", "/v1/uploads/{done}/content", {}, None),
    ("GET", "/v1/uploads/{done}/artifacts/thumbnail.webp", {}, None),
    ("POST", "/v1/uploads/{done}/retry", {}, None),
    ("POST", "/v1/uploads/{waiting}/cancel", {}, None),
    ("HEAD", "/v1/uploads/{waiting}", TUS, None),
    ("PATCH", "/v1/uploads/{waiting}", PATCH, b"0123456789"),
    ("POST", "/v1/uploads/{waiting}", {**PATCH, "X-HTTP-Method-Override": "PATCH"}, b"01234"),
    ("DELETE", "/v1/uploads/{waiting}", TUS, None),
]


def test_another_owner_never_sees_a_batch_an_upload_or_a_byte(cluster: Cluster, two: Two) -> None:
    before = cluster.head()
    for method, path, headers, body in ROUTES:
        known = path.format(**two._asdict())
        unknown = path.format(**dict.fromkeys(Two._fields, "01a1fffe-0000-7000-8000-000000000000"))

        answer = two.rival.answer(method, known, headers=headers, body=body)

        assert answer.status == 404, (method, known, answer)
        assert SECRET not in answer.content
        nothing = two.rival.answer(method, unknown, headers=headers, body=body)
        assert kind(answer) == kind(nothing), "what exists can be told from what does not"
    assert cluster.head() == before
    assert two.acme.offset(f"/v1/uploads/{two.waiting}") == 0


def test_lists_and_histories_never_hold_anything_of_another_owner(two: Two) -> None:
    for path in ("/v1/batches", "/v1/batches?label=private", "/v1/history"):
        assert two.rival.get(path)["items"] == [], path
    assert two.acme.get("/v1/history")["items"]


async def test_another_owner_never_sees_a_frame(cluster: Cluster, two: Two) -> None:
    headers = {"Authorization": f"Bearer {two.rival.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        named = FeedClient(await session.ws_connect(f"{cluster.url}/v1/feed"))
        all_of_them = FeedClient(await session.ws_connect(f"{cluster.url}/v1/feed"))
        await named.subscribe([two.batch])
        await all_of_them.subscribe("*")
        for viewer in (named, all_of_them):
            await viewer.until_frame("snapshot")
        assert named.of_type("error")[0]["batch"] == two.batch

        await asyncio.to_thread(two.acme.send, two.batch, "later.txt", SECRET)
        own = await asyncio.to_thread(two.rival.send_batch, {"own.txt": b"x"})
        await all_of_them.until(lambda seen: list(seen.rows["batches"]) == [own])
        await named.say(type="ping")
        await named.until_frame("pong")

        assert "later.txt" not in str(named.frames + all_of_them.frames)
        assert two.batch not in str(all_of_them.frames)
        assert not any(named.rows.values())


def test_a_key_of_one_batch_never_opens_another(cluster: Cluster, two: Two) -> None:
    other = two.acme.post("/v1/batches", {})["id"]
    limited = cluster.key_for("acme", "uploader", batch=other)

    for method, path, headers, body in ROUTES:
        known = path.format(**two._asdict())
        answer = limited.answer(method, known, headers=headers, body=body)
        assert answer.status in (403, 404), (method, known, answer)
        assert SECRET not in answer.content
    assert limited.answer("GET", "/v1/batches").status == 403
    assert limited.send(other, "mine.txt", b"x")


# 429: failed authentication is rate limited, and the tests share an address. Access is denied.
REFUSED = (400, 401, 429)

GUESSES = [
    None, "", "admin", "secret", "changeme", "password", "uptrail", "null", "undefined", "up__",
    "up_admin_admin", "up_default_default", "up_0000000000000000_", "Bearer", "*", "\x00",
    "' OR '1'='1", "up_%_%",
]  # fmt: skip


def test_no_default_secret_opens_anything(cluster: Cluster, two: Two) -> None:
    id = cluster.key.split("_")[1]
    wrong = [
        *GUESSES,
        f"up_{id}_",
        f"up_{id}_{'0' * 43}",
        cluster.key[:-1],
        cluster.key + "A",
    ]
    for guess in wrong:
        stranger = Client(cluster.port, guess)
        for path in ("/v1/batches", f"/v1/uploads/{two.done}/content", "/v1/keys", "/metrics"):
            answer = stranger.answer("GET", path)
            assert answer.status in REFUSED, (guess, path, answer)
            assert SECRET not in answer.content
    for name, value in (("Cookie", "uptrail_session=admin"), ("X-Api-Key", cluster.key)):
        answer = Client(cluster.port, None).answer("GET", "/v1/batches", headers={name: value})
        assert answer.status in REFUSED


def test_a_key_of_one_installation_never_opens_another(
    cluster: Cluster, make_cluster: MakeCluster
) -> None:
    other = make_cluster()
    other.start("api")

    assert other.key != cluster.key
    assert Client(cluster.port, other.key).answer("GET", "/v1/batches").status in REFUSED
    assert Client(other.port, cluster.key).answer("GET", "/v1/batches").status in REFUSED


def test_a_revoked_key_never_opens_anything_again(cluster: Cluster) -> None:
    gone = cluster.key_for("acme")
    assert gone.get("/v1/batches")
    assert gone.key
    id = gone.key.split("_")[1]

    assert cluster.admin.answer("DELETE", f"/v1/keys/{id}").status == 200

    assert gone.answer("GET", "/v1/batches").status in REFUSED


def test_the_key_file_is_never_readable_by_others(make_cluster: MakeCluster) -> None:
    """Under any umask of the shell that started the server."""
    cluster = make_cluster()
    careless = os.umask(0)
    try:
        cluster.start("api", "orchestrator", "worker")
        two_files = cluster.admin.send_batch({"a.txt": SECRET})
        wait_for(lambda: cluster.admin.batch(two_files)["outcome"] == "succeeded")
    finally:
        os.umask(careless)

    assert mode(cluster.data_dir / "admin.key") == 0o600
    assert mode(cluster.data_dir) == 0o700
    for file in (cluster.data_dir / "blobs").rglob("*"):
        assert mode(file) & 0o077 == 0, file
    assert cluster.key not in cluster.output()


def kind(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["code"] if answer.content else ""


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)
