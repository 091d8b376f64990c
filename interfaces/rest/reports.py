"""`GET /v1/batches/{id}/report.*`: what became of every file, streamed as one moment had it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from aiohttp import hdrs, web

from application.reporting import ReportRow
from interfaces.rest.access import owned, principal_of
from interfaces.rest.answers import POSITION
from interfaces.rest.bodies import NDJSON
from interfaces.rest.params import Query, id_in, reflected
from interfaces.rest.problems import Problem
from interfaces.rest.report_formats import Format, ReportDocument, as_csv, as_json, as_ndjson
from interfaces.rest.routes import Operation
from interfaces.rest.streams import STREAMS, Stream
from interfaces.services import SERVICES

QUERY = ("only", "min_position")
AT_ONCE = 4  # reports that one process tells: each holds a snapshot of the database
PATIENCE = 30.0  # seconds that a reader may take for one piece


class Only(StrEnum):
    FAILED = "failed"


class Seats:
    """How many reports may be told at the same time."""

    def __init__(self) -> None:
        self.free = AT_ONCE

    def __enter__(self) -> None:
        if not self.free:
            raise Problem(
                503,
                "too_many_reports",
                f"{AT_ONCE} reports are being read; try again soon",
                headers={"Retry-After": "5"},
            )
        self.free -= 1

    def __exit__(self, *exc_info: object) -> None:
        self.free += 1


SEATS: web.AppKey[Seats] = web.AppKey("report_seats", Seats)


async def _answer(
    request: web.Request, format: Format, ending: str, media: str
) -> web.StreamResponse:
    principal, query, id = principal_of(request), Query(request, QUERY), id_in(request)
    owned(principal, owner=principal.owner, batch=id)
    only = query.choice("only", Only)
    await reflected(request, query)
    queries = request.app[SERVICES].queries
    request.app[STREAMS].open(request, principal.name, Stream.REPORT)
    lost: ConnectionError | None = None  # the client's: within, it would pass for the database's
    with request.app[SEATS]:
        async with queries.report(id, owner=principal.sees, only_failed=only is not None) as report:
            response = web.StreamResponse(headers={POSITION: str(report.position)})
            response.headers[hdrs.CONTENT_TYPE] = media
            name = f"report-{id}{'-failed' if only else ''}.{ending}"
            response.headers[hdrs.CONTENT_DISPOSITION] = f'attachment; filename="{name}"'
            try:
                await response.prepare(request)
                if request.method != hdrs.METH_HEAD:
                    async for piece in format(report):
                        await _write(response, piece)
            except ConnectionError as error:
                lost = error
    if lost is not None:
        raise lost
    await response.write_eof()
    return response


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    """Raises ConnectionResetError where the reader is too slow: a snapshot is held for it."""
    try:
        async with asyncio.timeout(PATIENCE):
            await response.write(piece)
    except TimeoutError:
        raise ConnectionResetError("the report is not read") from None


def _handler(
    format: Format, ending: str, media: str
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def report(request: web.Request) -> web.StreamResponse:
        return await _answer(request, format, ending, media)

    return report


def _operation(format: Format, ending: str, media: str, type: Any) -> Operation:
    return Operation(
        method="GET",
        path=f"/v1/batches/{{id}}/report.{ending}",
        handler=_handler(format, ending, media),
        summary=f"What became of every file of a batch, as {ending.upper()}",
        query=QUERY,
        answers={200: type},
        media=media.partition(";")[0],
    )


OPERATIONS = (
    _operation(as_json, "json", "application/json", ReportDocument),
    _operation(as_ndjson, "ndjson", NDJSON, ReportRow),
    _operation(as_csv, "csv", "text/csv; charset=utf-8; header=present", str),
)
