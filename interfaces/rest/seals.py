"""Seals over HTTP: the chain, its public keys, and histories with their proofs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from aiohttp import hdrs, web

from application.append import RecordedEvent
from application.audit.export import ExportHeader, Line
from application.audit.seals import AuditSeal
from application.ports.audit import SigningKey
from interfaces.common.access import (
    load_batch,
    load_upload,
    principal_of,
    reject_batch_scoped_key,
    require,
)
from interfaces.common.api_types import PageResponse
from interfaces.common.operations import OPERATOR_SCOPES, Operation
from interfaces.common.requests import NDJSON, Query, path_id, wait_for_min_position
from interfaces.common.responses import STREAMS, Stream, json_response, write_in_pieces
from interfaces.common.services import SERVICES

EXPORT = ("after", "min_position")
SEALS_PER_PAGE = 1000  # seals
EVENTS_PER_WRITE = 250  # events in memory at a time

_lines = msgspec.json.Encoder().encode_lines


async def list_seals(request: web.Request) -> web.Response:
    """Respond with the chain of seals, oldest first, for a copy outside of this server."""
    query = Query(request, ("after", "limit"))
    limit = query.integer("limit", 100, low=1, high=SEALS_PER_PAGE)
    services = request.app[SERVICES]
    seals = list(await services.seals.page(query.integer("after", 0), limit))
    next = seals[-1].number if len(seals) == limit else None
    position = await services.queries.position()
    return json_response(PageResponse(items=seals, next=next, position=position))


async def list_signing_keys(request: web.Request) -> web.Response:
    Query(request, ())
    services = request.app[SERVICES]
    found = list(await services.seals.keys())
    position = await services.queries.position()
    return json_response(PageResponse(items=found, next=None, position=position))


async def export_everything(request: web.Request) -> web.StreamResponse:
    """Export everything with whole seals for an admin; for others, the events of their owner."""
    principal = require(request, *OPERATOR_SCOPES)
    reject_batch_scoped_key(principal)
    services = request.app[SERVICES]
    if principal.visible_owner is None:
        opening = ExportHeader(of="everything", whole=True, after=await _after(request))
        return await _stream(request, opening, services.seals.export_chunks(opening.after))
    history, owner = services.history, principal.visible_owner
    return await _stream_proofs(
        request,
        f"owner {owner}",
        lambda after, limit: history.of_everything(owner=owner, after=after, limit=limit),
    )


async def export_of_batch(request: web.Request) -> web.StreamResponse:
    require(request, *OPERATOR_SCOPES)
    batch = await load_batch(request, path_id(request))
    history, owner = request.app[SERVICES].history, principal_of(request).visible_owner
    return await _stream_proofs(
        request,
        f"batch {batch.id}",
        lambda after, limit: history.of_batch(batch.id, owner=owner, after=after, limit=limit),
    )


async def export_of_upload(request: web.Request) -> web.StreamResponse:
    require(request, *OPERATOR_SCOPES)
    upload = await load_upload(request, path_id(request))
    history, owner = request.app[SERVICES].history, principal_of(request).visible_owner
    return await _stream_proofs(
        request,
        f"upload {upload.id}",
        lambda after, limit: history.of_upload(upload.id, owner=owner, after=after, limit=limit),
    )


async def _stream_proofs(
    request: web.Request,
    of: str,
    source: Callable[[int, int], Awaitable[Sequence[RecordedEvent]]],
) -> web.StreamResponse:
    """Stream the events of the source, each with its inclusion proof in the tree of its seal."""
    opening = ExportHeader(of=of, whole=False, after=await _after(request))
    prover = request.app[SERVICES].seals.proofs()

    async def chunks() -> AsyncIterator[Sequence[Line]]:
        after = opening.after
        while events := await source(after, EVENTS_PER_WRITE):
            positions = [recorded.position for recorded in events]
            after, events = positions[-1], ()
            yield await prover.proofs_for(positions)

    return await _stream(request, opening, chunks())


async def _after(request: web.Request) -> int:
    """Return `after`, once the read model, which selects the owner's events, has caught up."""
    query = Query(request, EXPORT)
    await wait_for_min_position(request, query)
    return query.integer("after", 0)


async def _stream(
    request: web.Request, opening: ExportHeader, chunks: AsyncIterator[Sequence[Line]]
) -> web.StreamResponse:
    """Stream one object per line, chunk by chunk, no faster than the client reads."""
    request.app[STREAMS].open(request, principal_of(request).name, Stream.EXPORT)
    # Before the response begins, since the query may fail. A default of `()` would be a
    # SystemError: CPython takes it for the arguments of StopIteration.
    first: Sequence[Line] = await anext(chunks, [])
    response = web.StreamResponse()
    response.content_type = NDJSON
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        lines = _lines([opening, *first])
        del first
        await write_in_pieces(response, lines)
        async for chunk in chunks:
            lines = _lines(chunk)
            del chunk
            await write_in_pieces(response, lines)
    await response.write_eof()
    return response


def _export(path: str, handler: Callable[..., Awaitable[web.StreamResponse]], of: str) -> Operation:
    return Operation(
        method="GET",
        path=path,
        handler=handler,
        summary=f"Export {of} as stored, with proofs",
        query=EXPORT,
        scopes=OPERATOR_SCOPES,
        responses={200: Line},
        media=NDJSON,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/seals",
        handler=list_seals,
        summary="The chain of seals, oldest first",
        query=("after", "limit"),
        responses={200: PageResponse[AuditSeal]},
    ),
    Operation(
        method="GET",
        path="/v1/seals/keys",
        handler=list_signing_keys,
        summary="The public keys of seals, oldest first",
        responses={200: PageResponse[SigningKey]},
    ),
    _export("/v1/history/export", export_everything, "everything"),
    _export("/v1/batches/{id}/history/export", export_of_batch, "the events of a batch"),
    _export("/v1/uploads/{id}/history/export", export_of_upload, "the events of an upload"),
)
