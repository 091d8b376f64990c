"""A client behind a proxy: its requests go to any API that answers, and it retries as tus does."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from itertools import cycle
from typing import Any

import aiohttp

from tests.server_process import TIMEOUT
from tests.support import eventually, path_of

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = "application/offset+octet-stream"
AGAIN = frozenset({409, 423, 429, 500, 502, 503, 504})  # those that tus clients repeat
PAUSE = 0.05  # seconds between two tries


class Uploader:
    """Sends files of one batch, in pieces of `chunk` bytes."""

    def __init__(
        self, client: aiohttp.ClientSession, urls: list[str], batch: str, chunk: int = 4096
    ) -> None:
        self._client = client
        self._urls = cycle(urls)
        self._batch = batch
        self._chunk = chunk
        self.acknowledged: dict[str, str] = {}

    async def send(self, name: str, content: bytes) -> None:
        """Returns once every byte was acknowledged, and remembers where."""
        metadata = "filename " + b64encode(name.encode()).decode()
        headers = {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
        created = await self._until_answered("POST", f"{self._batch}/uploads", headers, b"")
        location, offset = path_of(created["Location"]), 0
        while offset < len(content):
            headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS}
            body = content[offset : offset + self._chunk]
            answer = await self._request("PATCH", location, headers, body)
            if answer is None:
                answer = await self._until_answered("HEAD", location, {}, b"")
            offset = int(answer["Upload-Offset"])
        self.acknowledged[name] = location

    async def _until_answered(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> dict[str, str]:
        async def answered() -> dict[str, str] | None:
            return await self._request(method, path, headers, body)

        answer: dict[str, str] = await eventually(answered, TIMEOUT)
        return answer

    async def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> dict[str, str] | None:
        """The headers of a success; None where a client would try again."""
        url = next(self._urls) + path
        try:
            async with self._client.request(
                method, url, headers=TUS | headers, data=body
            ) as answer:
                if answer.status in AGAIN:
                    return None
                assert answer.status < 300, (method, path, answer.status, await answer.text())
                return dict(answer.headers)
        except aiohttp.ClientError:
            await asyncio.sleep(PAUSE)
            return None


async def ask(
    client: aiohttp.ClientSession, method: str, url: str, body: object = None
) -> dict[str, Any]:
    """The document that answers a request, which must succeed."""
    async with client.request(method, url, json=body) as answer:
        assert answer.status < 300, (url, answer.status, await answer.text())
        found: dict[str, Any] = await answer.json()
        return found
