from __future__ import annotations

from uuid import UUID

import pytest

from application.pipeline import Pipeline, Step
from domain.retry import RetryPolicy
from tests.interfaces.rest.server import Server

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
