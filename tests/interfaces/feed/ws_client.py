"""A client of the feed as its documentation describes one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import aiohttp
import msgspec


class FeedClient:
    """Applies frames by the rule `from <= position < to`, and keeps what it was sent."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.rows: dict[str, dict[Any, dict[str, Any]]] = {}
        self.forget()
        self.frames: list[dict[str, Any]] = []

    def forget(self) -> None:
        self.rows = {"batches": {}, "uploads": {}, "attempts": {}}
        self.position = -1
        self.cursor: str | None = None

    def go_on_from(self, before: FeedClient) -> None:
        """Takes over what a viewer had whose socket is gone."""
        self.rows, self.position, self.cursor = before.rows, before.position, before.cursor

    async def say(self, **message: Any) -> None:
        if self.socket.protocol == "uptrail.v1.msgpack":
            await self.socket.send_bytes(msgspec.msgpack.encode(message))
        else:
            await self.socket.send_json(message)

    async def subscribe(
        self, batches: Sequence[UUID | str] | str = "*", after: str | None = None, **more: Any
    ) -> None:
        names = batches if isinstance(batches, str) else [str(id) for id in batches]
        await self.say(type="subscribe", batches=names, after=after, **more)

    async def frame(self, deadline: float = 60.0) -> dict[str, Any]:
        """The next frame of any type, applied. Raises AssertionError when the socket ends."""
        async with asyncio.timeout(deadline):
            message = await self.socket.receive()
        frame = self._decoded(message)
        self.take({**frame, "size": len(message.data)})
        return frame

    def take(self, frame: dict[str, Any]) -> None:
        """Keeps a frame and applies it, however it came."""
        self.frames.append(frame)
        self._apply(frame)

    async def until_frame(self, type: str) -> dict[str, Any]:
        while (frame := await self.frame())["type"] != type:
            pass
        return frame

    async def until(
        self, condition: Callable[[FeedClient], object], deadline: float = 60.0
    ) -> None:
        async with asyncio.timeout(deadline):
            while not condition(self):
                await self.frame(deadline)

    async def until_position(self, position: int) -> None:
        """Until it knows that it has everything up to there; heartbeats say so if no row does."""
        await self.until(lambda viewer: viewer.position >= position)

    async def closed(self) -> int:
        """Reads to the end, and returns the code."""
        async with asyncio.timeout(60):
            while True:
                message = await self.socket.receive()
                if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE):
                    return int(self.socket.close_code or 0)
                if message.type is aiohttp.WSMsgType.PING:
                    continue
                self.frames.append(self._decoded(message))

    def positions(self) -> dict[str, dict[Any, int]]:
        return {
            kind: {key: row["position"] for key, row in rows.items()}
            for kind, rows in self.rows.items()
        }

    def of_type(self, type: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == type]

    def _decoded(self, message: aiohttp.WSMessage) -> dict[str, Any]:
        binary = self.socket.protocol == "uptrail.v1.msgpack"
        kind = aiohttp.WSMsgType.BINARY if binary else aiohttp.WSMsgType.TEXT
        assert message.type is kind, (message, self.socket.close_code)
        frame: dict[str, Any] = (msgspec.msgpack.decode if binary else json.loads)(message.data)
        return frame

    def _apply(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "reset":
                self.forget()
            case "snapshot":
                if frame["part"] == 1:
                    self.forget()
                self._take(frame)
                if not frame["more"]:
                    self.position = frame["position"]
                    self.cursor = frame["cursor"]
            case "changes" if frame["from"] <= self.position < frame["to"]:
                self._take(frame)
                self.position = frame["to"]
                self.cursor = frame["cursor"]

    def _take(self, frame: dict[str, Any]) -> None:
        for row in frame["batches"]:
            self.rows["batches"][row["id"]] = row
        for row in frame["uploads"]:
            self.rows["uploads"][row["id"]] = row
        for row in frame["attempts"]:
            self.rows["attempts"][row["upload"], row["number"]] = row
