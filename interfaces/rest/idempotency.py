"""Requests that may be sent twice: what an `Idempotency-Key` stands for.

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
from interfaces.common.api_types import CommandAnswer
from interfaces.common.middleware import traceparent_of
from interfaces.common.problems import bad_parameter
from interfaces.common.services import SERVICES

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(CommandAnswer).decode

_NEVER = -1  # no stream is ever at this version


def idempotency_key(request: web.Request) -> str | None:
    """The key of the request, if it has one; raises a 400 Problem for what cannot be one."""
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise bad_parameter(HEADER, "must be 1 to 255 visible ASCII characters")
    return key


def fingerprint_of(*parts: object) -> str:
    """The hash of what is asked for: alike however the JSON was laid out."""
    return sha256(_encode(parts)).hexdigest()


def context_of(request: web.Request, answer: IdempotencyRecord | None = None) -> CommandContext:
    """Who commands, when and why; each command has an id, the client's key's or a new one."""
    services = request.app[SERVICES]
    command = answer.command_id if answer else services.new_id()
    cause = Causation(command, traceparent_of(request))
    return CommandContext(principal_of(request).name, services.now(), cause, answer)


async def once(
    request: web.Request,
    owner: str,
    predicted: CommandAnswer,
    parts: tuple[object, ...],
    act: Callable[[CommandContext], Awaitable[int]],
) -> CommandAnswer:
    """Acts, unless this key was acted on before: then its very first answer is given again.

    `act` returns the position of what it recorded, 0 for nothing; `predicted` is what the
    command leads to if it is not refused, `parts` what is asked for; `owner` is that of the
    batch or upload. Raises IdempotencyKeyReused.
    """
    log, key = request.app[SERVICES].log, idempotency_key(request)
    if key is None:
        position = await act(context_of(request))
        return await _placed(log, predicted, position)
    command = command_id_for(principal_of(request).owner, key)
    asked = fingerprint_of(request.method, request.path, *parts)
    answer = IdempotencyRecord(command, owner, asked, _encode(predicted))
    while True:
        try:
            await _refuse_repetition(log, predicted.id, answer)
            position = await act(context_of(request, answer))
            if not position:  # nothing was to be recorded but that the key is used
                predicted = await _placed(log, predicted, 0)
                used = IdempotencyRecord(command, owner, asked, _encode(predicted))
                await log.append(Append((), idempotency=used))
                return predicted
        except AlreadyHandled as known:
            if known.position is None:
                continue  # the first request is being recorded: its position is there in a moment
            first = _decode(known.body)
            return await _placed(log, first, first.position or known.position)
        return await _placed(log, predicted, position)


async def _refuse_repetition(log: EventLog, stream: UUID, answer: IdempotencyRecord) -> None:
    """Raises AlreadyHandled or IdempotencyKeyReused for a known key, whatever the state is by now.

    The log judges the key before the version, and this version is never right.
    """
    try:
        await log.append(Append((StreamAppend(stream, _NEVER, ()),), idempotency=answer))
    except Conflict:
        return


async def _placed(log: EventLog, answer: CommandAnswer, position: int) -> CommandAnswer:
    """The answer, with a position from which on its effect is seen."""
    return msgspec.structs.replace(answer, position=position or await log.head())
