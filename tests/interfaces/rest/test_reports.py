"""The completion report: every file, grouped reasons, one snapshot, safe in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from uuid import UUID

import pytest

from application.views import FAILURES
from interfaces.rest.reports import MAX_CONCURRENT_REPORTS, REPORT_LIMITER
from tests.interfaces.rest.server import Server
from tests.interfaces.rest.test_controls import judged

PATHS = ("=cmd|' /C calc'!A0", "a, b.txt", "bad 1.jpg", "bad 2.jpg")


async def report_text(server: Server) -> str:
    """The path of a batch of which two files failed and one is held back."""
    started = await server.batch(*PATHS)
    uploads = [UUID(id) for id in started.json["uploads"]]
    await judged(server, uploads[0], "quarantined")
    await judged(server, uploads[2], "failed")
    position = await judged(server, uploads[3], "failed")
    await server.services.queries.wait_for(position, timeout=60)
    return f"/v1/batches/{started.json['id']}"


async def test_json_holds_the_batch_the_reasons_and_every_file(server: Server) -> None:
    path = await report_text(server)

    whole = await server.get(f"{path}/report.json")
    failed = await server.get(f"{path}/report.json", params={"only": "failed"})

    assert whole.headers["Content-Disposition"].startswith('attachment; filename="report-')
    assert [upload["path"] for upload in whole.json["uploads"]] == sorted(PATHS)
    assert {upload["state"] for upload in failed.json["uploads"]} <= set(FAILURES)
    assert len(failed.json["uploads"]) == 3
    assert whole.json["batch"]["id"] in path
    assert [(r["state"], r["reason"], r["uploads"]) for r in whole.json["reasons"]] == [
        ("failed", "EICAR", 2),
        ("quarantined", "EICAR", 1),
    ]


async def test_csv_runs_no_formula(server: Server) -> None:
    answer = await server.get(f"{await report_text(server)}/report.csv")

    heading, *rows = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    paths = [row[heading.index("path")] for row in rows]
    assert paths == [f"'{PATHS[0]}", *PATHS[1:]]
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert answer.headers["Content-Disposition"].endswith('.csv"')


async def test_ndjson_is_one_file_a_line_and_the_same_moment_to_the_end(server: Server) -> None:
    started = await server.batch(*(f"{n:04}" for n in range(1200)))
    id = UUID(started.json["id"])
    queries = server.services.queries
    await queries.wait_for(started.json["position"], timeout=60)

    async with queries.report(id, owner="acme") as report:
        late = await judged(server, UUID(started.json["uploads"][-1]), "failed")
        await queries.wait_for(late, timeout=60)
        states = [row.state async for row in report.files]

    assert states == ["registered"] * 1200
    answer = await server.get(f"/v1/batches/{id}/report.ndjson?only=failed")
    assert [json.loads(line)["path"] for line in answer.body.splitlines()] == ["1199"]


async def test_reports_that_are_being_read_are_few(server: Server) -> None:
    path = await report_text(server)
    server.app[REPORT_LIMITER].free = 0

    refused = await server.get(f"{path}/report.json")
    server.app[REPORT_LIMITER].free = MAX_CONCURRENT_REPORTS
    answers = [await server.get(f"{path}/report.json") for _ in range(2 * MAX_CONCURRENT_REPORTS)]

    assert (refused.status, refused.code) == (503, "too_many_reports")
    assert {answer.status for answer in answers} == {200}
    assert server.app[REPORT_LIMITER].free == MAX_CONCURRENT_REPORTS


@pytest.mark.parametrize("ending", ["json", "ndjson", "csv"])
async def test_a_report_of_an_empty_batch_is_whole(server: Server, ending: str) -> None:
    started = await server.batch()
    params = {"min_position": started.json["position"]}
    path = f"/v1/batches/{started.json['id']}/report.{ending}"

    answer = await server.get(path, params=params)
    head = await server.ask("HEAD", path)

    assert (answer.status, head.status, head.body) == (200, 200, b"")
    assert ending != "json" or answer.json["uploads"] == []
