"""Batches over HTTP: start, states at any time, commands."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from application.append import Append, StreamAppend
from application.pipeline import Pipeline, Step
from application.ports.auth import Scope
from domain.batch.events import BatchErased, BatchSealed
from domain.ids import upload_id_for
from domain.retry import RetryPolicy
from tests.builders import ALICE, NOON
from tests.interfaces.rest.server import Answer, Server


async def read_own(server: Server, path: str, written: Answer) -> Any:
    """Return the response to a read of the client's own write."""
    answer = await server.get(path, params={"min_position": written.json["position"]})
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_batch_starts_with_its_files_and_is_read_back(server: Server) -> None:
    started = await server.batch("a.txt", "b/c.txt", label="photos", metadata={"k": "v"})

    id = UUID(started.json["id"])
    assert started.headers["Location"] == f"{server.url}/v1/batches/{id}"
    assert started.json["state"] == "open"
    assert started.json["owner"] == "acme"
    assert started.json["uploads"] == [
        str(upload_id_for(id, "a.txt", server.services.log.id_secret)),
        str(upload_id_for(id, "b/c.txt", server.services.log.id_secret)),
    ]
    assert started.headers["Uptrail-Position"] == str(started.json["position"])
    batch = await read_own(server, f"/v1/batches/{id}", started)
    assert (batch["label"], batch["metadata"]) == ("photos", {"k": "v"})
    page = await read_own(server, f"/v1/batches/{id}/uploads", started)
    assert [upload["path"] for upload in page["items"]] == ["a.txt", "b/c.txt"]
    assert not [upload for upload in page["items"] if "blob" in upload]


async def test_the_idempotency_key_of_an_erased_batch_is_refused(server: Server) -> None:
    key = {"Idempotency-Key": "monday"}
    first = await server.post("/v1/batches", json={"label": "x"}, headers=key)
    erased = (BatchSealed(at=NOON, by=ALICE), BatchErased(at=NOON, by=ALICE))
    append = StreamAppend(UUID(first.json["id"]), None, erased, "acme")
    await server.services.log.append(Append((append,)))

    again = await server.post("/v1/batches", json={"label": "x"}, headers=key)

    assert (first.status, again.status) == (201, 422)
    assert again.code == "idempotency_key_reused"
    assert "erased batch" in again.json["detail"]


async def test_the_same_idempotency_key_starts_one_batch(server: Server) -> None:
    key = {"Idempotency-Key": "monday"}
    body = {"label": "x", "files": [{"path": "a", "size": 1}]}
    first = await server.post("/v1/batches", json=body, headers=key)
    again = await server.post(
        "/v1/batches",
        data=b'{"files": [{"size": 1, "path": "a"}],   "label": "x"}',
        headers={**key, "Content-Type": "application/json"},
    )
    other = await server.post("/v1/batches", json={"label": "y"}, headers=key)

    assert (first.status, again.status) == (201, 200)
    assert first.json["id"] == again.json["id"]
    assert first.json["uploads"] == again.json["uploads"]
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    rival = await server.key_for(Scope.OPERATOR, "globex")
    theirs = await server.post("/v1/batches", json=body, headers=key, key=rival)
    assert theirs.status == 201
    assert theirs.json["id"] != first.json["id"]


async def test_ten_thousand_files_are_accepted_in_one_request(server: Server) -> None:
    started = await server.batch(*(f"folder/{n}.bin" for n in range(10_000)), seal=True)

    assert started.json["state"] == "sealed"
    assert len(set(started.json["uploads"])) == 10_000
    path = f"/v1/batches/{started.json['id']}/uploads"
    page = await server.get(path, params={"min_position": started.json["position"], "limit": 1000})
    assert len(page.json["items"]) == 1000
    assert page.json["next"]


COMMANDS = [
    ("seal", {"state": "sealed"}),
    ("pause", {"paused": True}),
    ("resume", {"paused": False}),
    ("cancel", {"state": "cancelling"}),
]


@pytest.mark.parametrize(("command", "leads_to"), COMMANDS)
async def test_a_command_answers_what_it_leads_to(
    server: Server, command: str, leads_to: dict[str, Any]
) -> None:
    started = await server.batch("a")
    path = f"/v1/batches/{started.json['id']}"

    done = await server.post(f"{path}/{command}")

    assert done.status == 202
    assert leads_to.items() <= done.json.items()
    batch = await read_own(server, path, done)
    assert leads_to.items() <= batch.items()


async def test_a_repeated_command_gets_its_first_answer_even_when_it_is_illegal_by_now(
    server: Server,
) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}"
    key = {"Idempotency-Key": "1"}
    first = await server.post(f"{path}/pause", headers=key)
    assert (await server.post(f"{path}/cancel")).status == 202
    assert (await server.post(f"{path}/pause")).status == 409

    again = await server.post(f"{path}/pause", headers=key)

    assert (again.status, again.json["paused"]) == (202, True)
    assert first.json["id"] == again.json["id"]
    seen = {"min_position": again.json["position"]}
    events = (await server.get(f"{path}/history", params=seen)).json["items"]
    assert [event["type"] for event in events].count("batch.paused") == 1
    reused = await server.post(f"{path}/resume", headers=key)
    assert (reused.status, reused.code) == (422, "idempotency_key_reused")


async def test_a_command_that_changed_nothing_uses_up_its_key_too(server: Server) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}"
    key = {"Idempotency-Key": "1"}
    await server.post(f"{path}/pause")
    assert (await server.post(f"{path}/pause", headers=key)).status == 202
    await server.post(f"{path}/resume")

    assert (await server.post(f"{path}/pause", headers=key)).status == 202

    batch = await server.services.log.batch(UUID(path.rpartition("/")[2]))
    assert not batch.paused


async def test_an_illegal_move_is_a_conflict(server: Server) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}"
    assert (await server.post(f"{path}/cancel")).status == 202

    refused = await server.post(f"{path}/seal")

    assert (refused.status, refused.code) == (409, "invalid_state")
    assert "cancelling" in refused.json["detail"]


async def test_a_batch_is_shown_as_of_a_position_and_a_time(server: Server) -> None:
    started = await server.batch("a")
    path = f"/v1/batches/{started.json['id']}"
    sealed = await server.post(f"{path}/seal")
    assert (await read_own(server, path, sealed))["state"] == "sealed"

    then = await server.get(path, params={"at": started.json["position"]})
    by_time = await server.get(path, params={"at": started.json["started_at"]})
    before = await server.get(path, params={"at": "2020-01-01T00:00:00Z"})

    assert then.json["state"] == "open"
    assert by_time.json["state"] == "open"
    assert (before.status, before.code) == (404, "not_found")


async def test_asking_again_for_an_unchanged_batch_costs_no_body(server: Server) -> None:
    started = await server.batch("a")
    path = f"/v1/batches/{started.json['id']}"
    params = {"min_position": started.json["position"]}
    etag = (await server.get(path, params=params)).headers["ETag"]

    same = await server.get(path, headers={"If-None-Match": f'"x", {etag}'})
    sealed = await server.post(f"{path}/seal")
    params = {"min_position": sealed.json["position"]}
    changed = await server.get(path, params=params, headers={"If-None-Match": etag})

    assert (same.status, same.body) == (304, b"")
    assert changed.status == 200
    assert changed.headers["ETag"] != etag


async def test_batches_are_listed_newest_first_page_by_page(server: Server) -> None:
    for n in range(5):
        last = await server.batch("a", label=f"n{n}")
    params: dict[str, Any] = {"limit": 2, "min_position": last.json["position"]}
    labels, pages = [], 0
    while True:
        page = (await server.get("/v1/batches", params=params)).json
        labels += [batch["label"] for batch in page["items"]]
        pages += 1
        if page["next"] is None:
            break
        params["cursor"] = page["next"]

    assert (labels, pages) == (["n4", "n3", "n2", "n1", "n0"], 3)
    only = await server.get("/v1/batches", params={"label": "n2", "state": "open"})
    assert [batch["label"] for batch in only.json["items"]] == ["n2"]
    bad = await server.get("/v1/batches", params={"cursor": "made-up"})
    assert (bad.status, bad.code, bad.pointers) == (400, "bad_parameter", ["cursor"])


async def test_an_admin_starts_batches_for_others_and_an_operator_does_not(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN, "default")
    body = {"owner": "globex"}

    mine = await server.post("/v1/batches", json=body, key=admin)
    refused = await server.post("/v1/batches", json=body)

    assert (mine.status, mine.json["owner"]) == (201, "globex")
    assert (refused.status, refused.pointers) == (403, ["/owner"])


async def test_a_trace_is_kept_with_the_events_it_caused(server: Server) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    good = await server.post("/v1/batches", json={}, headers={"traceparent": trace})
    bad = await server.post("/v1/batches", json={}, headers={"traceparent": "00-0-0-zz"})
    params = {"min_position": bad.json["position"]}

    traces = [
        (await server.get(f"/v1/batches/{one.json['id']}/history", params=params)).json["items"][0]
        for one in (good, bad)
    ]

    assert traces[0]["trace"] == trace
    assert UUID(traces[0]["command"])
    assert traces[1].get("trace") is None


async def test_waiting_for_a_position_that_never_comes_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.common.requests.MAX_POSITION_WAIT", 0.2)

    answer = await server.get("/v1/batches", params={"min_position": 10**9})

    assert (answer.status, answer.code) == (504, "position_not_reached")
    assert answer.headers["Retry-After"] == "1"


# Pipelines.


PATIENT = RetryPolicy(attempts=7)
STEPS = (Step(processor="checksum"),)
PIPELINES = {
    "default": Pipeline(steps=STEPS, retry_policy=RetryPolicy(attempts=5)),
    "plain": Pipeline(steps=STEPS),
    "patient": Pipeline(steps=STEPS, retry_policy=PATIENT),
}
TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": "filename YS50eHQ="}


@pytest.mark.options(pipelines=PIPELINES)
async def test_the_retry_policy_comes_from_the_pipeline_unless_the_batch_has_one(
    server: Server,
) -> None:

    async def attempts(**fields: object) -> tuple[int, float]:
        started = await server.batch("a.txt", **fields)
        upload = await server.services.log.upload(UUID(started.json["uploads"][0]))
        return upload.retry_policy.attempts, upload.retry_policy.factor

    assert (await attempts(pipeline="plain"))[0] == 3
    assert (await attempts(pipeline="patient"))[0] == 7
    assert await attempts(pipeline="patient", retry_policy={"factor": 3.0}) == (7, 3.0)
    assert (await attempts())[0] == 5
    alone = await server.post("/v1/uploads", headers=TUS)
    id = UUID(alone.headers["Location"].rpartition("/")[2])
    assert (await server.services.log.upload(id)).retry_policy.attempts == 5
