"""The feed as a client follows it: every change once, through any number of cuts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import aiohttp
import msgspec

from application.views import AttemptView, BatchView, UploadView
from interfaces.cli.client import LOST, Client
from interfaces.cli.errors import CommandError
from interfaces.cli.waiting import Waits

SUBPROTOCOL = "uptrail.v1.json"
MAX_FRAME = 64 * 1024 * 1024
FINAL = range(4500, 4600)  # close codes after which connecting again would not help


class Frame(msgspec.Struct, rename={"from_": "from"}):
    """A frame of the server, whatever its type; rows are those of the read model."""

    type: str
    cursor: str | None = None
    position: int | None = None
    from_: int | None = None
    to: int | None = None
    more: bool = False
    batches: list[BatchView] = []
    uploads: list[UploadView] = []
    attempts: list[AttemptView] = []
    code: str = ""
    message: str = ""
    reason: str = ""
    heartbeat: float | None = None


class FeedEnded(CommandError):
    """The server ended the feed, for good."""


async def follow(client: Client, batches: Sequence[UUID | str] | None) -> AsyncIterator[Frame]:
    """Frames with rows to apply, in order; None follows the batch rows of all.

    A cut is resumed from the last cursor. Raises FeedEnded, Unreachable.
    """
    place = _Place([str(id) for id in batches] if batches is not None else "*")
    waits = Waits(client.connection)
    while True:
        try:
            async with client.session.ws_connect(
                f"{client.server.url}/v1/feed", protocols=(SUBPROTOCOL,), max_msg_size=MAX_FRAME
            ) as socket:
                client.connection.answered()
                await socket.send_str(place.subscription())
                async for frame in _frames(socket):
                    waits.calm()
                    if place.applies(frame):
                        yield frame
                if socket.close_code in FINAL:
                    raise FeedEnded(f"the feed ended with code {socket.close_code}")
            await waits.lost(ConnectionError("the feed was cut"))
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise FeedEnded(
                    "the key is refused", "pass another with --key or UPTRAIL_KEY"
                ) from None
            await waits.next(client.connection.unreachable(error))
        except LOST as error:
            await waits.lost(error)


class _Place:
    """Where this client stands, by the rule of the feed: from <= position < to."""

    def __init__(self, batches: list[str] | str) -> None:
        self._batches = batches
        self._position: int | None = None
        self._cursor: str | None = None

    def subscription(self) -> str:
        subscribe = {"type": "subscribe", "batches": self._batches, "after": self._cursor}
        return msgspec.json.encode(subscribe).decode()

    def applies(self, frame: Frame) -> bool:
        match frame.type:
            case "snapshot":
                if not frame.more:
                    self._position, self._cursor = frame.position, frame.cursor
                return True
            case "changes":
                assert frame.from_ is not None
                assert frame.to is not None
                if self._position is None or not frame.from_ <= self._position < frame.to:
                    return False
                self._position, self._cursor = frame.to, frame.cursor
                return True
            case "reset":
                self._position = self._cursor = None
            case "error" if frame.code != "unknown_batch":  # an unknown one may yet appear
                raise FeedEnded(frame.message or frame.code, "look for it with: uptrail batch list")
        return False


async def _frames(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[Frame]:
    """Decoded frames until the socket closes; heartbeats are answered."""
    silence: float | None = None
    while True:
        message: Any = await socket.receive(timeout=silence)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return
        frame = msgspec.json.decode(message.data, type=Frame)
        if frame.heartbeat:
            silence = 3 * frame.heartbeat
        if frame.type == "ping":
            await socket.send_str('{"type":"pong"}')
        yield frame
