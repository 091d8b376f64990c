"""Fingerprints, signatures and the resume file, as `docs/formats.md` states them.

The expected values were computed from that page with hashlib and hmac, never with the product.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest

from application.ports.webhooks import Delivery
from infrastructure.outbound import signature_headers
from interfaces.cli.upload import ResumeState, open_resume_file
from interfaces.common.api_types import NewBatch
from interfaces.common.idempotency import request_fingerprint
from tests.interfaces.rest.server import serving

BATCH = "019b0000-0000-7000-8000-00000000000b"

CANCEL = ("POST", f"/v1/batches/{BATCH}/cancel", "enough")
CANCEL_FINGERPRINT = "eabc6441baa1e2cf2fcf465a05586ff40e6c38dc842e4fff62a97403fa0d911d"

NEW_BATCH: dict[str, Any] = {
    "seal": True,
    "files": [
        {
            "metadata": {"c": "2"},
            "checksum": "sha256:" + "0" * 64,
            "media_type": "image/jpeg",
            "size": 3,
            "path": "a.jpg",
        },
        {"path": "b"},
    ],
    "metadata": {"b": "\u00f6", "a": "1"},
    "notify": "https://hooks.example/",
    "failure_threshold": 0.25,
    "priority": 3,
    "retry_policy": {"factor": 1.5, "attempts": 5},
    "owner": "acme",
    "pipeline": "p",
    "label": "photos",
}


def test_the_fingerprint_of_a_command_is_that_of_the_manual() -> None:
    assert request_fingerprint(*CANCEL) == CANCEL_FINGERPRINT


@pytest.mark.parametrize(
    "changed",
    [
        ("PATCH", *CANCEL[1:]),
        (CANCEL[0], f"/v1/uploads/{BATCH}/cancel", CANCEL[2]),
        (*CANCEL[:2], "enough!"),
        CANCEL[:2],
    ],
    ids=["method", "path", "body", "no body"],
)
def test_each_part_of_a_command_changes_its_fingerprint(changed: tuple[str, ...]) -> None:
    assert request_fingerprint(*changed) != CANCEL_FINGERPRINT


def test_the_fingerprint_of_a_new_batch_does_not_depend_on_the_layout_of_its_json() -> None:
    form = msgspec.convert(NEW_BATCH, NewBatch)

    assert request_fingerprint(form) == (
        "d12985ff0d8de832abc6a663f2431b63de115ea5589e6ab9bc7bd845d1ce4db3"
    )
    assert set(NEW_BATCH) == set(NewBatch.__struct_fields__)


async def test_a_command_is_recorded_with_the_fingerprint_of_its_request(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        id = (await server.batch("a")).json["id"]
        path = f"/v1/batches/{id}/cancel"
        headers = {"Idempotency-Key": "once"}
        answer = await server.post(path, headers=headers, json={"reason": "enough"})
        assert answer.status == 202, answer

    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT fingerprint FROM command_answers").fetchall()
    assert found == [(request_fingerprint("POST", path, "enough"),)]


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="label"\r\n\r\nphotos\r\n'
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\na\r\n--x--'
)


@pytest.mark.parametrize(
    ("media_type", "body", "fingerprint"),
    [
        (
            "application/json",
            b'{"label": "photos"}',
            "49ca4604a82bf387438c1ec0b53758b5ca51f61a3892190a8445a46397bf25b8",
        ),
        (
            "multipart/form-data; boundary=x",
            FORM,
            "8b784bd8cf3e4b8e4bc2e10ed2b7cf0f30156ada6ca6d5ef8c2f88f1c29eba4a",
        ),
    ],
    ids=["JSON", "form"],
)
async def test_a_batch_is_started_with_the_fingerprint_of_its_request(
    database_url: str, tmp_path: Path, media_type: str, body: bytes, fingerprint: str
) -> None:
    async with serving(database_url, tmp_path) as server:
        headers = {"Idempotency-Key": "once", "Content-Type": media_type}
        started = await server.post("/v1/batches", headers=headers, data=body)
        assert started.status == 201, started
        batch = await server.services.log.batch(UUID(started.json["id"]))

    assert batch.fingerprint == fingerprint


def test_a_webhook_is_signed_as_the_specification_states() -> None:
    """HMAC-SHA-256 of id, timestamp and body (Standard Webhooks 1.0), computed with hmac."""
    headers = signature_headers(
        "evt_1", 1767268800, b'{"type":"batch.completed"}', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )

    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": "1767268800",
        "webhook-signature": "v1,Bfzy9CI+J08SEhnBQopU2BsuAaC2f2Mu5MqmyL4qMGg=",
    }


def test_the_id_of_a_message_names_the_webhook_and_the_position() -> None:
    """Receivers recognise repeated deliveries by it."""
    delivery = Delivery(
        webhook=UUID("0199c2f4-6f0a-7b61-9d2e-3a1f0c5b7e11"),
        position=48,
        lane=UUID(BATCH),
        stream=UUID(BATCH),
        version=1,
        type="batch.completed",
        queued_at=datetime(2026, 1, 1, tzinfo=UTC),
    )

    assert delivery.id == "msg_0199c2f46f0a7b619d2e3a1f0c5b7e11_48"


SERVER = "http://127.0.0.1:8080"
ROOTS = [Path("/srv/ada/a"), Path("/srv/ada/R\u00f6mer")]
RESUME_NAME = "95da086780c2b35e0de57578.json"
RESUME_FILE = (
    '{"key":"0123456789abcdef0123456789abcdef","server":"http://127.0.0.1:8080",'
    '"roots":["/srv/ada/R\u00f6mer","/srv/ada/a"],"label":"photos","pipeline":"default"}'
)
RESUMED = ResumeState(
    "0123456789abcdef0123456789abcdef",
    SERVER,
    ["/srv/ada/R\u00f6mer", "/srv/ada/a"],
    "photos",
    "default",
)


def test_an_upload_is_resumed_from_the_file_of_the_manual(tmp_path: Path) -> None:
    folder = tmp_path / "resume"
    folder.mkdir()
    (folder / RESUME_NAME).write_text(RESUME_FILE)

    with open_resume_file(tmp_path, SERVER, ROOTS, "photos", "default") as opened:
        file, state, is_resumed = opened

    assert is_resumed
    assert state == RESUMED
    file.save(state)
    assert (folder / RESUME_NAME).read_text() == RESUME_FILE


@pytest.mark.parametrize(
    "command",
    [
        (SERVER + "1", ROOTS, "photos", "default"),
        (SERVER, ROOTS[:1], "photos", "default"),
        (SERVER, ROOTS, "photos 2", "default"),
        (SERVER, ROOTS, "photos", "other"),
    ],
    ids=["server", "roots", "label", "pipeline"],
)
def test_another_command_does_not_resume_that_upload(
    tmp_path: Path, command: tuple[str, list[Path], str, str]
) -> None:
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / RESUME_NAME).write_text(RESUME_FILE)

    with open_resume_file(tmp_path, *command) as (_, state, is_resumed):
        assert not is_resumed
        assert state.key != RESUMED.key


def test_the_order_of_the_roots_does_not_matter(tmp_path: Path) -> None:
    for roots in (ROOTS, ROOTS[::-1]):
        with open_resume_file(tmp_path, SERVER, roots, "photos", "default") as (file, *_):
            assert file.path.name == RESUME_NAME
