"""Authentication of feed connections: by the request, or by the first message."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import WSMsgType, web

from application.errors import Unavailable
from application.ports.auth import Credential, Keys, Principal
from interfaces.common.access import CREDENTIAL, PRINCIPAL
from interfaces.common.failed_attempts import ClientAttempts, TooManyAttempts
from interfaces.feed import protocol

CLOSE_TYPES = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def authenticate(credential: Credential, keys: Keys) -> Principal | None:
    """Return the credential's principal; None if it was revoked or has expired."""
    if credential.is_session:
        return await keys.session(credential.text)
    return await keys.authenticate(credential.text)


def request_credential(request: web.Request) -> tuple[Credential, Principal] | None:
    """Return the credential that the access middleware has checked; None without one."""
    if PRINCIPAL not in request:
        return None
    return request[CREDENTIAL], request[PRINCIPAL]


async def first_message_auth(
    socket: web.WebSocketResponse,
    encoding: protocol.Encoding,
    keys: Keys,
    within: float,
    attempts: ClientAttempts,
) -> tuple[Credential, Principal]:
    """Request the first message and authenticate with it. Raises ConnectionClosed."""
    await socket.send_frame(encoding.control(protocol.AuthenticateRequest(within)), encoding.kind)
    try:
        async with asyncio.timeout(within):
            text = await _first_message(socket)
    except TimeoutError:
        raise _refused(f"no authentication within {within:g} s") from None
    try:
        message = encoding.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _refused("the first message must be authenticate") from None
    if not isinstance(message, protocol.Authenticate):
        raise _refused("the first message must be authenticate")
    credential = Credential(message.token)
    try:
        principal = await attempts.authenticate(
            "key", credential.text, lambda: authenticate(credential, keys)
        )
    except Unavailable:
        raise protocol.ConnectionClosed(
            protocol.CloseCode.FAILED, "the database does not answer; connect again"
        ) from None
    except TooManyAttempts as error:
        raise _refused(error.detail) from None
    if principal is None:
        raise _refused("the key is unknown, revoked or expired")
    return credential, principal


async def _first_message(socket: web.WebSocketResponse) -> str | bytes:
    while True:
        message = await socket.receive()
        if message.type in CLOSE_TYPES:
            raise _refused("closed before authentication")
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            return message.data  # type: ignore[no-any-return]


def _refused(reason: str) -> protocol.ConnectionClosed:
    return protocol.ConnectionClosed(protocol.CloseCode.UNAUTHENTICATED, reason)
