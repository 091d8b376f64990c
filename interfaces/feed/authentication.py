"""Who is on the other end of a socket, and whether that still holds."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import WSMsgType, web

from application.errors import Unavailable
from application.ports.auth import Credential, Keys, Principal
from interfaces.common.access import CREDENTIAL, PRINCIPAL
from interfaces.common.failed_attempts import ClientAttempts, TooManyAttempts
from interfaces.feed.protocol import (
    Authenticate,
    AuthenticateRequest,
    CloseCode,
    ConnectionClosed,
    Encoding,
)

_LAST_WORDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def authenticate(credential: Credential, keys: Keys) -> Principal | None:
    """Who holds the credential now; None once it was revoked, or is over."""
    if credential.is_session:
        return await keys.session(credential.text)
    return await keys.authenticate(credential.text)


def request_credential(request: web.Request) -> tuple[Credential, Principal] | None:
    """The credential the request came with, which the access middleware found good."""
    if PRINCIPAL not in request:
        return None
    return request[CREDENTIAL], request[PRINCIPAL]


async def first_message_auth(
    socket: web.WebSocketResponse,
    encoding: Encoding,
    keys: Keys,
    within: float,
    attempts: ClientAttempts,
) -> tuple[Credential, Principal]:
    """Asks for the first message and judges it. Raises Closed."""
    await socket.send_frame(encoding.plain(AuthenticateRequest(within)), encoding.kind)
    try:
        async with asyncio.timeout(within):
            text = await _first_message(socket)
    except TimeoutError:
        raise _refused(f"nobody said who this is within {within:g} s") from None
    try:
        message = encoding.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _refused("the first message must be authenticate") from None
    if not isinstance(message, Authenticate):
        raise _refused("the first message must be authenticate")
    credential = Credential(message.token)
    try:
        principal = await attempts.authenticate(
            "key", credential.text, lambda: authenticate(credential, keys)
        )
    except Unavailable:
        raise ConnectionClosed(
            CloseCode.FAILED, "the database does not answer; connect again"
        ) from None
    except TooManyAttempts as error:
        raise _refused(error.detail) from None
    if principal is None:
        raise _refused("the key is unknown, revoked or expired")
    return credential, principal


async def _first_message(socket: web.WebSocketResponse) -> str | bytes:
    while True:
        message = await socket.receive()
        if message.type in _LAST_WORDS:
            raise _refused("closed before it was known who this is")
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            return message.data  # type: ignore[no-any-return]


def _refused(reason: str) -> ConnectionClosed:
    return ConnectionClosed(CloseCode.UNAUTHENTICATED, reason)
