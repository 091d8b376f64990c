"""Upload client that retries for ever: sends by tus, and asks for its offset after a failure."""

from __future__ import annotations

import http.client
import json
import random
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from tests.chaos.cluster import ProcessCluster
from tests.support import path_of

PATIENCE = 240.0  # seconds until a request that keeps failing is a failed test
OCTETS = "application/offset+octet-stream"
NOT_NOW = (404, 409)  # a command that does not fit what the batch, or the upload, has come to


class Answer(NamedTuple):
    """Response of the server."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Gone(Exception):
    """The upload takes no more bytes: its batch was called off."""


class Sender:
    """Client of any of the APIs that repeats each request until it is answered."""

    def __init__(self, cluster: ProcessCluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._chance = chance

    def send(self, batch: str, name: str, content: bytes, chunk: int, **metadata: str) -> str:
        """The path of the upload, once every byte of it was acknowledged. Raises Gone."""
        named = ",".join(
            f"{key} {b64encode(value.encode()).decode()}"
            for key, value in {"filename": name, **metadata}.items()
        )
        created = {"Upload-Length": str(len(content)), "Upload-Metadata": named}
        if len(content) <= chunk:
            headers = created | {"Content-Type": OCTETS}
            answer = self._tus("POST", f"{batch}/uploads", headers, content)
        else:
            answer = self._tus("POST", f"{batch}/uploads", created)
        location = path_of(answer.headers["Location"])
        offset = int(answer.headers.get("Upload-Offset", 0))
        while offset < len(content):
            headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS}
            answer = self._tus("PATCH", location, headers, content[offset : offset + chunk])
            if answer.status == 409:
                answer = self._tus("HEAD", location)
            offset = int(answer.headers["Upload-Offset"])
        return location

    def ask(self, method: str, path: str, body: object = None, *, may_refuse: bool = False) -> Any:
        """A JSON request, and its JSON answer; None for a refusal that is allowed."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if method == "POST":  # whatever is repeated was meant once
            headers["Idempotency-Key"] = str(uuid4())
        answer = self._until_answered(method, path, headers, content)
        if may_refuse and answer.status in NOT_NOW:
            return None
        assert answer.status < 300, (method, path, answer.status, answer.content)
        return json.loads(answer.content)

    def content(self, location: str) -> bytes:
        answer = self._until_answered("GET", f"{location}/content", {}, None)
        assert answer.status == 200, (answer.status, answer.content)
        return answer.content

    def _tus(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        answer = self._until_answered(
            method, path, {"Tus-Resumable": "1.0.0"} | dict(headers or {}), body
        )
        gone = answer.status in (404, 410) or (answer.status == 409 and method != "PATCH")
        if gone or (answer.status == 403 and b"invalid_state" in answer.content):
            raise Gone(answer.content)
        assert answer.status in (200, 201, 204, 409), (method, answer.status, answer.content)
        return answer

    def _until_answered(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._once(method, path, headers, body)
                if answer.status < 500 and answer.status != 423:
                    return answer
                problem: object = answer.content
            except (OSError, http.client.HTTPException) as error:
                problem = error
                if method == "PATCH":  # the bytes may have arrived: ask, never assume
                    return Answer(409, {}, b"")
            if time.monotonic() > deadline:
                raise AssertionError(f"{method} {path} is not answered: {problem}")
            time.sleep(0.05)

    def _once(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        port = self._chance.choice(self._cluster.ports)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            own = {"Authorization": f"Bearer {self._cluster.key}"} | dict(headers)
            connection.request(method, path, body=body, headers=own)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()
