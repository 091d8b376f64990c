"""`GET /v1/batches/{id}/report.*`: the result of every file, streamed from one snapshot."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec
from aiohttp import hdrs, web

from application.views import BatchView, FailureGroup, Report, ReportRow
from interfaces.common.access import principal_of, require_owned
from interfaces.common.operations import Operation
from interfaces.common.problems import Problem
from interfaces.common.requests import NDJSON, Query, path_id, wait_for_min_position
from interfaces.common.responses import POSITION, STREAMS, Stream
from interfaces.common.services import SERVICES

# The completion report as bytes: JSON, NDJSON and CSV, a piece at a time.

FILES_PER_WRITE = 500  # files in one piece

Format: TypeAlias = Callable[[Report], AsyncIterator[bytes]]

_encoder = msgspec.json.Encoder()
_COLUMNS = ReportRow.__struct_fields__

# A spreadsheet evaluates a cell that begins with one of these as a formula. An apostrophe
# before it makes it text. Source: OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class ReportDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report as one JSON document."""

    batch: BatchView
    position: int
    reasons: list[FailureGroup]
    uploads: list[ReportRow]


async def encode_json(report: Report) -> AsyncIterator[bytes]:
    """Encode the summary, then the files, each on a line of its own."""
    head = {"batch": report.batch, "position": report.position, "reasons": report.reasons}
    yield _encoder.encode(head)[:-1] + b',"uploads":['
    comma = b""
    async for rows in _pieces(report.files):
        yield comma + b"\n" + b",\n".join(map(_encoder.encode, rows))
        comma = b","
    yield b"\n]}\n"


async def encode_ndjson(report: Report) -> AsyncIterator[bytes]:
    """Encode one file per line."""
    async for rows in _pieces(report.files):
        yield _encoder.encode_lines(rows)


async def encode_csv(report: Report) -> AsyncIterator[bytes]:
    """Encode one file per row below a header (RFC 4180), safe to open in a spreadsheet."""
    yield _csv([_COLUMNS])
    async for rows in _pieces(report.files):
        yield _csv([[_cell(getattr(row, name)) for name in _COLUMNS] for row in rows])


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return f"'{value}" if value.startswith(_FORMULA) else value
        case datetime():
            return value.isoformat()
    return str(value)


async def _pieces(rows: AsyncIterator[ReportRow]) -> AsyncIterator[list[ReportRow]]:
    piece: list[ReportRow] = []
    async for row in rows:
        piece.append(row)
        if len(piece) == FILES_PER_WRITE:
            yield piece
            piece = []
    if piece:
        yield piece


QUERY = ("only", "min_position")
MAX_CONCURRENT_REPORTS = 4  # of one process: each holds a snapshot of the database
WRITE_TIMEOUT = 30.0  # seconds that a reader may take for one piece


class ReportFilter(StrEnum):
    FAILED = "failed"


class ReportLimiter:
    """Limit on the reports that a process sends at the same time."""

    def __init__(self) -> None:
        self.free = MAX_CONCURRENT_REPORTS

    def __enter__(self) -> None:
        if not self.free:
            raise Problem(
                503,
                "too_many_reports",
                f"{MAX_CONCURRENT_REPORTS} reports are being read; try again soon",
                headers={"Retry-After": "5"},
            )
        self.free -= 1

    def __exit__(self, *exc_info: object) -> None:
        self.free += 1


REPORT_LIMITER: web.AppKey[ReportLimiter] = web.AppKey("report_limiter", ReportLimiter)


async def _respond(
    request: web.Request, format: Format, ending: str, media: str
) -> web.StreamResponse:
    principal, query, id = principal_of(request), Query(request, QUERY), path_id(request)
    require_owned(principal, owner=principal.owner, batch=id)
    only = query.choice("only", ReportFilter)
    await wait_for_min_position(request, query)
    queries = request.app[SERVICES].queries
    request.app[STREAMS].open(request, principal.name, Stream.REPORT)
    lost: ConnectionError | None = (
        None  # raised after the snapshot: inside, it would be taken for an error of the database
    )
    with request.app[REPORT_LIMITER]:
        async with queries.report(
            id, owner=principal.visible_owner, only_failed=only is not None
        ) as report:
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
    """Write to the client. Raises ConnectionResetError if it is too slow for the open snapshot."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await response.write(piece)
    except TimeoutError:
        raise ConnectionResetError("the report is not read") from None


def _handler(
    format: Format, ending: str, media: str
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def report(request: web.Request) -> web.StreamResponse:
        return await _respond(request, format, ending, media)

    return report


def _operation(format: Format, ending: str, media: str, type: Any) -> Operation:
    return Operation(
        method="GET",
        path=f"/v1/batches/{{id}}/report.{ending}",
        handler=_handler(format, ending, media),
        summary=f"Report of a batch: the result of every file, as {ending.upper()}",
        query=QUERY,
        responses={200: type},
        media=media.partition(";")[0],
    )


OPERATIONS = (
    _operation(encode_json, "json", "application/json", ReportDocument),
    _operation(encode_ndjson, "ndjson", NDJSON, ReportRow),
    _operation(encode_csv, "csv", "text/csv; charset=utf-8; header=present", str),
)
