"""Idempotent requests: the contract of `Idempotency-Key`.

Source: draft-ietf-httpapi-idempotency-key-header; the same key with another request is a 422.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from uuid import UUID

import msgspec
from aiohttp import web

from application.append import Append, Causation, IdempotencyRecord, StreamAppend
from application.errors import AlreadyHandled, Conflict
from application.handlers.execute import CommandContext
from application.ports.event_log import EventLog
from domain.ids import command_id_for
from interfaces.common.access import principal_of
from interfaces.common.api_types import CommandResponse
from interfaces.common.middleware import traceparent_of
from interfaces.common.problems import bad_parameter
from interfaces.common.services import SERVICES

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(CommandResponse).decode

_IMPOSSIBLE_VERSION = -1  # no stream is ever at this version


def idempotency_key(request: web.Request) -> str | None:
    """Return the key of the request, if it has one. Raises a 400 Problem for an invalid key."""
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise bad_parameter(HEADER, "must be 1 to 255 visible ASCII characters")
    return key


def request_fingerprint(*parts: object) -> str:
    """Return the hash of the decoded parts of a request, independent of the JSON's layout."""
    return sha256(_encode(parts)).hexdigest()


def command_context(
    request: web.Request, idempotency: IdempotencyRecord | None = None
) -> CommandContext:
    """Return who commands, when and why; the command id is that of the record, or a new one."""
    services = request.app[SERVICES]
    command = idempotency.command_id if idempotency else services.new_id()
    cause = Causation(command, traceparent_of(request))
    return CommandContext(principal_of(request).name, services.now(), cause, idempotency)


async def run_idempotent(
    request: web.Request,
    owner: str,
    expected: CommandResponse,
    fingerprint_parts: tuple[object, ...],
    execute: Callable[[CommandContext], Awaitable[int]],
) -> CommandResponse:
    """Execute a command, unless its key was used before: then return the first response.

    `execute` returns the position of what it recorded, 0 for nothing. `expected` is the response
    unless the command is refused; `fingerprint_parts` are its input; `owner` is that of the
    aggregate, whose erasure deletes the record. Raises IdempotencyKeyReused.
    """
    log, key = request.app[SERVICES].log, idempotency_key(request)
    if key is None:
        position = await execute(command_context(request))
        return await _with_position(log, expected, position)
    command = command_id_for(principal_of(request).owner, key)
    fingerprint = request_fingerprint(request.method, request.path, *fingerprint_parts)
    record = IdempotencyRecord(command, owner, fingerprint, _encode(expected))
    while True:
        try:
            await _refuse_repetition(log, expected.id, record)
            position = await execute(command_context(request, record))
            if not position:  # no event was recorded; record that the key is used
                expected = await _with_position(log, expected, 0)
                record = IdempotencyRecord(command, owner, fingerprint, _encode(expected))
                await log.append(Append((), idempotency=record))
                return expected
        except AlreadyHandled as known:
            if known.position is None:
                continue  # the first request is being recorded: its position is known in a moment
            first = _decode(known.body)
            return await _with_position(log, first, first.position or known.position)
        return await _with_position(log, expected, position)


async def _refuse_repetition(log: EventLog, stream: UUID, record: IdempotencyRecord) -> None:
    """Raise AlreadyHandled or IdempotencyKeyReused for a known key, in any state of the stream.

    The log checks the key before the version, and this append has a version that never matches.
    """
    try:
        await log.append(
            Append((StreamAppend(stream, _IMPOSSIBLE_VERSION, ()),), idempotency=record)
        )
    except Conflict:
        return


async def _with_position(
    log: EventLog, response: CommandResponse, position: int
) -> CommandResponse:
    """Return the response with a position from which on the effect of the command is visible."""
    return msgspec.structs.replace(response, position=position or await log.head())
