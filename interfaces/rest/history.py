"""Recorded events over HTTP: of an upload, a batch, or everything; JSON, or NDJSON as a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from aiohttp import hdrs, web

from application.append import RecordedEvent
from application.ports.auth import Principal, Scope
from application.public_addresses import masked
from domain.event import event_fields, topic_of
from interfaces.common.access import (
    load_batch,
    load_upload,
    load_webhook,
    principal_of,
    reject_batch_scoped_key,
    require,
)
from interfaces.common.api_types import HistoryItem, PageResponse
from interfaces.common.operations import ANY_SCOPE, OPERATOR_SCOPES, Operation
from interfaces.common.problems import bad_parameter
from interfaces.common.requests import (
    MAX_POSITION,
    NDJSON,
    NDJSON_TYPES,
    Query,
    path_id,
    wait_for_min_position,
)
from interfaces.common.responses import POSITION, STREAMS, Stream, json_response, write_in_pieces
from interfaces.common.services import SERVICES

QUERY = ("after", "limit", "format", "min_position")
BOTH_WAYS = ("after", "before", "limit", "format", "min_position")
EVENTS_PER_PAGE = 1000  # events
MAX_PAGE_BYTES = 256 * 1024  # about: of a page, which a client may be slow to read
EVENTS_PER_WRITE = 250  # events in memory at a time

# `blob` is the location in the blob store, which is internal; the others have their own fields.
_HIDDEN = frozenset({"type", "at", "by", "blob"})

Source: TypeAlias = Callable[[int, int], Awaitable[Sequence[RecordedEvent]]]
"""Function of a position and a limit that returns events after the position, or before it."""

_encode = msgspec.json.Encoder().encode
_lines = msgspec.json.Encoder().encode_lines


async def show_upload_history(request: web.Request) -> web.StreamResponse:
    upload = await load_upload(request, path_id(request))
    services, owner = request.app[SERVICES], principal_of(request).visible_owner
    return await _respond(
        request,
        lambda after, limit: services.history.of_upload(
            upload.id, owner=owner, after=after, limit=limit
        ),
        lambda before, limit: services.history.of_upload_before(
            upload.id, before, owner=owner, limit=limit
        ),
    )


async def show_batch_history(request: web.Request) -> web.StreamResponse:
    batch = await load_batch(request, path_id(request))
    services, owner = request.app[SERVICES], principal_of(request).visible_owner
    return await _respond(
        request,
        lambda after, limit: services.history.of_batch(
            batch.id, owner=owner, after=after, limit=limit
        ),
        lambda before, limit: services.history.of_batch_before(
            batch.id, before, owner=owner, limit=limit
        ),
    )


async def show_webhook_history(request: web.Request) -> web.StreamResponse:
    """Return the history of a webhook, also of a removed one.

    For operators only, as all routes of webhooks: their addresses may contain tokens.
    """
    require(request, *OPERATOR_SCOPES)
    webhook = await load_webhook(request, path_id(request), also_removed=True)
    log = request.app[SERVICES].log

    async def source(after: int, limit: int) -> Sequence[RecordedEvent]:
        events = await log.stream(webhook.id)
        return [recorded for recorded in events if recorded.position > after][:limit]

    return await _respond(request, source)


async def list_all_events(request: web.Request) -> web.StreamResponse:
    principal = principal_of(request)
    reject_batch_scoped_key(principal)
    history = request.app[SERVICES].history
    return await _respond(
        request,
        lambda after, limit: history.of_everything(
            owner=principal.visible_owner, after=after, limit=limit
        ),
    )


def history_item(recorded: RecordedEvent, reader: Principal) -> HistoryItem:
    """Return the event as clients see it: common fields, and the others in `data`.

    `notify` of a batch may be the address of a webhook, which only operators may read.
    """
    fields: dict[str, Any] = event_fields(recorded.event)
    if fields.get("notify") and reader.scope not in (Scope.ADMIN, Scope.OPERATOR):
        fields["notify"] = masked(fields["notify"])
    return HistoryItem(
        position=recorded.position,
        version=recorded.version,
        stream=recorded.stream,
        type=topic_of(recorded.event),
        at=fields["at"],
        by=recorded.event.by,
        command=recorded.cause.command_id,
        trace=recorded.cause.traceparent,
        data={name: value for name, value in fields.items() if name not in _HIDDEN},
    )


async def _respond(
    request: web.Request, source: Source, back: Source | None = None
) -> web.StreamResponse:
    """Respond with events of the source. `back`, if given, answers requests with `before`."""
    query = Query(request, QUERY if back is None else BOTH_WAYS)
    position, after = await wait_for_min_position(request, query), query.integer("after", 0)
    if back is not None and "before" in request.query:
        return await _respond_backwards(request, query, back, position)
    if _format(request, query) == "ndjson":
        limit = query.integer("limit", MAX_POSITION, low=1)
        return await _stream(request, source, after, limit, position)
    limit = query.integer("limit", 100, low=1, high=EVENTS_PER_PAGE)
    found = await source(after, limit)
    events = found[: _count_fitting(request, found)]
    is_last = len(events) == len(found) < limit
    return _page(request, events, None if is_last else events[-1].position, position)


async def _respond_backwards(
    request: web.Request, query: Query, source: Source, position: int
) -> web.Response:
    """Respond with the page before a position; `next` is the `before` of the previous page."""
    if "after" in request.query or _format(request, query) == "ndjson":
        raise bad_parameter("before", "goes neither with `after` nor with NDJSON")
    limit = query.integer("limit", 100, low=1, high=EVENTS_PER_PAGE)
    found = await source(query.integer("before", MAX_POSITION, low=1), limit)
    events = found[len(found) - _count_fitting(request, found[::-1]) :]
    is_first = len(events) == len(found) < limit
    return _page(request, events, None if is_first else events[0].position, position)


def _page(
    request: web.Request, events: Sequence[RecordedEvent], next: int | None, position: int
) -> web.Response:
    items = [history_item(recorded, principal_of(request)) for recorded in events]
    return json_response(PageResponse(items=items, next=next, position=position), position=position)


def _count_fitting(request: web.Request, events: Sequence[RecordedEvent]) -> int:
    """Return the number of events that fit into a page: at least one."""
    size = 0
    for count, recorded in enumerate(events):
        size += len(_encode(history_item(recorded, principal_of(request))))
        if size > MAX_PAGE_BYTES and count:
            return count
    return len(events)


async def _stream(
    request: web.Request, source: Source, after: int, limit: int, position: int
) -> web.StreamResponse:
    """Stream one event per line, page by page, no faster than the client reads."""
    reader = principal_of(request)
    request.app[STREAMS].open(request, reader.name, Stream.HISTORY)
    # Before the response begins, since the query may fail.
    events = await source(after, min(limit, EVENTS_PER_WRITE))
    response = web.StreamResponse(headers={POSITION: str(position)})
    response.content_type = NDJSON
    await response.prepare(request)
    while events and request.method != hdrs.METH_HEAD:
        lines = _lines([history_item(recorded, reader) for recorded in events])
        limit, last, events = limit - len(events), events[-1].position, ()
        await write_in_pieces(response, lines)
        if limit <= 0:
            break
        events = await source(last, min(limit, EVENTS_PER_WRITE))
    await response.write_eof()
    return response


def _format(request: web.Request, query: Query) -> Literal["json", "ndjson"]:
    format = query.text("format")
    if format == "json" or format == "ndjson":
        return "ndjson" if format == "ndjson" else "json"
    if format is not None:
        raise bad_parameter("format", "must be json or ndjson")
    accept = request.headers.get(hdrs.ACCEPT, "")
    return "ndjson" if any(kind in accept for kind in NDJSON_TYPES) else "json"


def _operation(
    path: str,
    handler: Any,
    what: str,
    query: tuple[str, ...] = QUERY,
    scopes: tuple[Scope, ...] = ANY_SCOPE,
) -> Operation:
    return Operation(
        method="GET",
        path=path,
        handler=handler,
        summary=f"Recorded events of {what}, oldest first",
        query=query,
        scopes=scopes,
        responses={200: PageResponse[HistoryItem]},
    )


OPERATIONS = (
    _operation("/v1/uploads/{id}/history", show_upload_history, "an upload", BOTH_WAYS),
    _operation(
        "/v1/batches/{id}/history", show_batch_history, "a batch and its uploads", BOTH_WAYS
    ),
    _operation(
        "/v1/webhooks/{id}/history", show_webhook_history, "a webhook", scopes=OPERATOR_SCOPES
    ),
    _operation("/v1/history", list_all_events, "everything"),
)
