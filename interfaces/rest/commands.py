"""Commands over HTTP: each command to an aggregate is a row of a table, and one handler runs all.

The tables are in the modules of the resources: `batches`, `uploads`, `webhooks`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from application.commands import A, AggregateCommand
from application.handlers.execute import CommandContext, CommandResult, execute
from application.ports.auth import Scope
from interfaces.common.access import require
from interfaces.common.api_types import CommandResponse
from interfaces.common.idempotency import command_context, run_idempotent
from interfaces.common.operations import Operation
from interfaces.common.requests import Query, json_body, path_id
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES

B = TypeVar("B")


async def execute_in_log(
    request: web.Request, command: AggregateCommand[A], context: CommandContext
) -> CommandResult[A]:
    return await execute(request.app[SERVICES].log, command, context)


@dataclass(frozen=True, kw_only=True)
class CommandRoute(Generic[A, B]):
    """A command to an aggregate over HTTP.

    `load` returns the aggregate of the id in the path, if the principal may see it. The input of
    the command is the JSON `body` (`default` if the request has none), or what `read_input`
    returns. `command` makes the command of both.

    With `response`, a command is accepted with 202 and idempotent: the response is computed before
    execution, and stored under the request's Idempotency-Key. Without it, `respond` makes the
    response of the result; `responses` then has its types by status.
    """

    path: str
    summary: str
    scopes: tuple[Scope, ...]
    load: Callable[[web.Request, UUID], Awaitable[A]]
    command: Callable[[A, B], AggregateCommand[A]]
    method: str = "POST"
    body: type[msgspec.Struct] | None = None
    default: B | None = None
    read_input: Callable[[web.Request, A], Awaitable[B]] | None = None
    execute: Callable[[web.Request, Any, CommandContext], Awaitable[CommandResult[A]]] = (
        execute_in_log
    )
    response: Callable[[A, B], CommandResponse] | None = None
    respond: Callable[[web.Request, B, CommandResult[A]], Awaitable[web.Response]] | None = None
    responses: Mapping[int, Any] | None = None


def command_operations(*routes: CommandRoute[Any, Any]) -> tuple[Operation, ...]:
    """Return the operations of a table of commands, for the router and the OpenAPI document."""
    return tuple(_operation(route) for route in routes)


def _operation(route: CommandRoute[A, B]) -> Operation:
    async def handle(request: web.Request) -> web.Response:
        return await run_command(route, request)

    return Operation(
        method=route.method,
        path=route.path,
        handler=handle,
        summary=route.summary,
        body=route.body,
        scopes=route.scopes,
        responses=dict(route.responses or {202: CommandResponse}),
        idempotent=route.response is not None,
    )


async def run_command(route: CommandRoute[A, B], request: web.Request) -> web.Response:
    """Check the request, execute its command, and respond."""
    require(request, *route.scopes)
    Query(request, ())
    aggregate = await route.load(request, path_id(request))
    input = await _read_input(route, request, aggregate)
    command = route.command(aggregate, input)
    if route.response is None:
        assert route.respond is not None
        result = await route.execute(request, command, command_context(request))
        return await route.respond(request, input, result)

    async def run(context: CommandContext) -> int:
        return (await route.execute(request, command, context)).position

    expected = route.response(aggregate, input)
    parts = msgspec.structs.astuple(input) if isinstance(input, msgspec.Struct) else ()
    response = await run_idempotent(request, aggregate.owner, expected, parts, run)
    return json_response(response, status=202, position=response.position)


async def _read_input(route: CommandRoute[A, B], request: web.Request, aggregate: A) -> B:
    if route.read_input is not None:
        return await route.read_input(request, aggregate)
    if route.body is None or (route.default is not None and not request.can_read_body):
        return route.default  # type: ignore[return-value]  # None for a command without input
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(route.body)
    body: B = await json_body(request, decoder)
    return body
