"""Control over HTTP: retry of a batch, priority, release from quarantine, refusals."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from application.ports.auth import Scope
from domain.batch.state import Outcome
from domain.upload.aggregate import Failure
from tests.builders import later
from tests.interfaces.rest.server import Server

NOW: dict[str, Any] = {"at": later(0), "by": "worker:w1"}
FAILURE = Failure(step="antivirus", error_type="Infected", message="EICAR", permanent=True)


async def judged(server: Server, upload: UUID, verdict: str) -> int:
    """Record a received file as a worker does; return the position."""
    log = server.services.log
    log.forget(upload)
    found = await log.upload(upload)
    began, version = found, found.version
    events: list[Any] = []

    def happen(*happened: Any) -> None:
        nonlocal found
        for event in happened:
            found = found.evolve(event)
            events.append(event)

    happen(*found.receive(10, f"uploads/{upload}", **NOW))
    happen(*found.queue(**NOW))
    happen(*found.start_attempt("w1", **NOW))
    if verdict == "quarantined":
        happen(*found.quarantine(1, FAILURE, duration=0.1, **NOW))
    else:
        happen(*found.fail_attempt(1, FAILURE, duration=0.1, random=0.5, **NOW))
    assert found.state == verdict
    return (
        await log.append(append_to_stream(began.id, version, *events, owner=began.owner))
    ).position


async def completed(server: Server, batch: UUID, counts: dict[Any, int]) -> None:
    """The verdict of the orchestrator, who does not run here."""
    log = server.services.log
    log.forget(batch)
    found = await log.batch(batch)
    at = {"at": later(5), "by": "orchestrator"}
    progressed = found.record_progress(counts, bytes_received=0, bytes_total=0, through=1, **at)  # type: ignore[arg-type]
    done = found.complete(counts, **at)  # type: ignore[arg-type]
    await log.append(append_to_stream(batch, found.version, *progressed, *done, owner=found.owner))


async def test_a_batch_that_is_over_begins_again_with_its_failed_uploads(server: Server) -> None:
    started = await server.batch("a", seal=True)
    path, id = f"/v1/batches/{started.json['id']}", UUID(started.json["id"])
    await judged(server, UUID(started.json["uploads"][0]), "failed")
    await completed(server, id, {"failed": 1})

    answer = await server.post(f"{path}/retry")

    assert (answer.status, answer.json["state"]) == (202, "sealed")
    params = {"min_position": answer.json["position"]}
    shown = (await server.get(path, params=params)).json
    assert (shown["state"], shown["outcome"]) == ("sealed", None)
    kinds = [e["type"] for e in (await server.get(f"{path}/history")).json["items"]]
    assert kinds[-2:] == ["batch.reopened", "batch.retry_requested"]


@pytest.mark.parametrize(
    ("outcome", "why"), [(Outcome.SUCCEEDED, "none of its uploads failed"), ("cancelled", "was")]
)
async def test_an_invalid_retry_is_refused_with_the_reason(
    server: Server, outcome: str, why: str
) -> None:
    started = await server.batch(seal=True)
    path, id = f"/v1/batches/{started.json['id']}", UUID(started.json["id"])
    if outcome == "cancelled":
        await server.post(f"{path}/cancel")
        early = await server.post(f"{path}/retry")
        assert (early.status, early.json["detail"]) == (409, "the batch is cancelling")
    await completed(server, id, {})

    answer = await server.post(f"{path}/retry")

    assert (answer.status, answer.code) == (409, "invalid_state")
    assert why in answer.json["detail"]


async def test_the_priority_of_a_batch_is_changed_while_it_runs(server: Server) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}"

    answer = await server.post(f"{path}/priority", json={"priority": 7})
    wrong = await server.post(f"{path}/priority", json={"priority": 1000})

    assert (answer.status, answer.json["priority"]) == (202, 7)
    assert (wrong.status, wrong.pointers) == (422, ["/priority"])
    params = {"min_position": answer.json["position"]}
    assert (await server.get(path, params=params)).json["priority"] == 7
    await server.post(f"{path}/cancel")
    late = await server.post(f"{path}/priority", json={"priority": 8})
    assert (late.status, late.json["detail"]) == (409, "the batch is cancelling")


async def test_a_quarantined_file_is_released_with_a_reason_and_can_be_read(server: Server) -> None:
    started = await server.batch("a")
    upload = UUID(started.json["uploads"][0])
    path = f"/v1/uploads/{upload}"
    early = await server.post(f"{path}/release", json={"reason": "x"})
    assert (early.status, early.json["detail"]) == (409, "the upload is registered")
    await judged(server, upload, "quarantined")

    without = await server.post(f"{path}/release", json={})
    released = await server.post(f"{path}/release", json={"reason": "a test file"})

    assert (without.status, released.status) == (422, 202)
    params = {"min_position": released.json["position"]}
    shown = (await server.get(path, params=params)).json
    assert (shown["state"], shown["error"]) == ("completed", None)
    events = (await server.get(f"{path}/history")).json["items"]
    assert [e["type"] for e in events][-2:] == ["upload.released", "upload.completed"]
    assert events[-2]["data"] == {"reason": "a test file"}


async def test_workers_are_listed_for_operators(server: Server) -> None:
    answer = await server.get("/v1/workers")

    assert (answer.status, answer.json) == (200, {"workers": [], "processes": []})


async def test_a_renamed_batch_has_its_new_label_everywhere(server: Server) -> None:
    path = f"/v1/batches/{(await server.batch('a', label='summer')).json['id']}"
    await server.batch("a", label="summer")
    key = {"Idempotency-Key": "once"}

    renamed = await server.ask("PATCH", path, json={"label": "winter"}, headers=key)
    repeated = await server.ask("PATCH", path, json={"label": "winter"}, headers=key)
    same = await server.ask("PATCH", path, json={"label": "winter"})
    reused = await server.ask("PATCH", path, json={"label": "spring"}, headers=key)

    assert (renamed.status, renamed.json["state"]) == (202, "open")
    assert (repeated.json, same.status) == (renamed.json, 202)
    assert (reused.status, reused.code) == (422, "idempotency_key_reused")
    params = {"min_position": renamed.json["position"]}
    assert (await server.get(path, params=params)).json["label"] == "winter"
    for label, batches in (("winter", 1), ("summer", 1)):
        listed = await server.get("/v1/batches", params={**params, "label": label})
        assert [row["label"] for row in listed.json["items"]] == [label] * batches
    before = {"at": renamed.json["position"] - 1}
    assert (await server.get(path, params=before)).json["label"] == "summer"
    events = (await server.get(f"{path}/history")).json["items"]
    of_renames = [event["data"] for event in events if event["type"] == "batch.renamed"]
    assert of_renames == [{"label": "winter"}]


async def test_a_rename_is_refused_with_its_reason(server: Server) -> None:
    started = await server.batch("a", label="summer", seal=True)
    path, id = f"/v1/batches/{started.json['id']}", UUID(started.json["id"])
    uploader = await server.key_for(Scope.UPLOADER)
    foreign = await server.key_for(Scope.OPERATOR, owner="globex")
    body = {"json": {"label": "winter"}}

    for wrong in ({}, {"label": "x" * 201}, {"label": "a\nb"}, {"label": None}):
        refused = await server.ask("PATCH", path, json=wrong)
        assert (refused.status, refused.pointers) == (422, ["/label"])
    assert (await server.ask("PATCH", path, key=uploader, **body)).status == 403
    assert (await server.ask("PATCH", path, key=foreign, **body)).status == 404
    await completed(server, id, {"completed": 1})
    assert (await server.ask("PATCH", path, **body)).status == 202

    erased = (await server.services.log.batch(id)).erase(at=later(9), by="key:admin")
    await server.services.log.append(append_to_stream(id, None, *erased, owner="acme"))
    server.services.log.forget(id)
    late = await server.ask("PATCH", path, **body)
    assert (late.status, late.json["detail"]) == (409, "the batch is erased")
